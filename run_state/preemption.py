"""Give the machine back when a scheduler asks for it, without losing work.

The order of events in a start, a kill and a resume: `run_state/__init__.py`.

Lightning's own handlers end with exit code 0, may not save, and broadcast in the middle of other collective operations.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawValue
from typing import TYPE_CHECKING, Any

from run_state.folder import is_follower

if TYPE_CHECKING:  # a command listens before Lightning is imported, which takes seconds
    import lightning as L

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: start me again later
PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_WORKERS_LINGER_S = 30.0  # schedulers wait about as long before they kill
_workers_may_end = RawValue("b", 1)  # in memory that worker processes share


class PreemptedError(BaseException):
    """The scheduler wants the machine back. Not an `Exception`: nothing may take it for an error of the training."""


class StoppedError(BaseException):
    """The training ends within an epoch, by its own settings, and has been saved. Not an `Exception`, either."""


class Preemption:
    """Take SIGTERM and SIGUSR1 while a command or a trainer runs.

    Attributes:
        requested: a signal has come, to this process.
        deferred: a training is under way and looks at `requested` itself; otherwise the signal raises at once.
    """

    def __init__(self) -> None:
        self.requested = self.deferred = False

    @contextmanager
    def listening(self, trainer: "L.Trainer | None" = None) -> Iterator[None]:
        """Take the signals, and pass them on to the processes that a trainer has started for other devices.

        The first one raises PreemptedError, unless that is `deferred`; further ones change nothing. The other processes
        are ended, unless they have something to save; without a trainer, they leave the signals to the first one.
        """
        if threading.current_thread() is not threading.main_thread() or (trainer is None and is_follower()):
            yield
            return

        def preempt(number: int, _: object) -> None:
            if self.requested:
                return
            self.requested = True
            launcher: Any = trainer and trainer.strategy.launcher
            if launcher:
                launcher.kill(number if self.deferred else signal.SIGKILL)
            if not self.deferred:
                if launcher:
                    launcher.procs.clear()  # or Lightning would kill this process as well, within five seconds
                raise PreemptedError

        if trainer:
            from run_state.lightning_internals import leave_signals_alone

            leave_signals_alone(trainer)
        earlier = {number: signal.getsignal(number) for number in (*PREEMPTION_SIGNALS, signal.SIGINT)}
        for number in PREEMPTION_SIGNALS:
            signal.signal(number, preempt)
        _workers_may_end.value = False
        try:
            yield
        finally:
            _workers_may_end.value = True
            for number, handler in earlier.items():
                signal.signal(number, handler)


def defer_signals(worker: int) -> None:
    """Let a loader's worker process outlive SIGTERM for a while, and ignore SIGUSR1.

    A scheduler signals the whole process group, and the training needs its workers until it has saved.
    """

    def end(*_: object) -> None:
        if _workers_may_end.value:
            os._exit(0)
        timer = threading.Timer(_WORKERS_LINGER_S, os._exit, (0,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
