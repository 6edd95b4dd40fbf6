"""What happens when a scheduler wants the machine back."""

import os
import signal
import threading
from multiprocessing.sharedctypes import RawValue

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: start me again later

PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class PreemptedError(BaseException):
    """The scheduler wants the machine back. Not an Exception: nothing may take it for an error of the training."""


WORKERS_LINGER = 30.0  # seconds; schedulers wait about as long before they kill

_training_is_over = RawValue("b", 1)  # in memory that worker processes share


def outlive_signals(worker: int) -> None:
    """For the worker processes of a loader: SIGTERM ends them a little later, unless the training is over; SIGUSR1 not.

    A scheduler sends them to the whole process group, and the training needs its workers until it has saved.
    """

    def end(*_: object) -> None:
        if _training_is_over.value:
            os._exit(0)
        timer = threading.Timer(WORKERS_LINGER, os._exit, (0,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def release_workers(over: bool) -> None:
    """Says whether the worker processes may end at once when they are told to."""
    _training_is_over.value = over
