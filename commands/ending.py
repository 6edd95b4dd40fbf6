"""How every command ends: in at most one line, with an exit code that a shell or a scheduler can act on.

0: done. 1: a failure. 2: wrong input. 75: preempted, start it again. 130: Ctrl-C.
Imports nothing that takes long, so that it is there before PyTorch is.
"""

import argparse
import os
import re
import shlex
import signal
import sys
import threading
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from commands.parser_words import tell
from run_state.folder import is_follower, share_with_children
from run_state.preemption import EXIT_REQUEUE, PREEMPTION_SIGNALS, PreemptedError, Preemption, StoppedError
from storage.shortage import find_shortage

if TYPE_CHECKING:
    import lightning as L

EXIT_INTERRUPTED = 128 + signal.SIGINT
MAX_MESSAGE = 290  # characters, without "error: "
_LOST_PEER = re.compile("gloo|NCCL|connection (closed|reset|refused)", re.IGNORECASE)
_OF_LIGHTNING = "MisconfigurationException"  # what it refuses only when it starts
_OF_THE_INPUT = (ValueError, OSError, ArgumentError, ImportError)  # the last: a setting needs a package


@contextmanager
def importing() -> Iterator[None]:
    """Let Ctrl-C and a scheduler's signals end the process at once, in one line, while libraries are imported."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        interrupted = number == signal.SIGINT
        os.write(2, b"interrupted\n" if interrupted else b"preempted; give the same command again\n")
        os._exit(EXIT_INTERRUPTED if interrupted else EXIT_REQUEUE)

    if is_follower():  # the first process waits for it, and can only be reached when it has come
        for number in PREEMPTION_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, *PREEMPTION_SIGNALS)}
    for number, handler in earlier.items():
        if handler is not signal.SIG_IGN:  # as shells have Ctrl-C for jobs in the background
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def orderly() -> Iterator[None]:
    """Run a command: end in one line where there is nothing to debug, and go on when nobody reads the output any more.

    SIGTERM and SIGUSR1 end it at once, wherever it is, except where a training listens to them itself.
    """
    with redirect_stdout(_Unbroken(sys.stdout)), redirect_stderr(_Unbroken(sys.stderr)), Preemption().listening():
        try:
            yield
        except (PreemptedError, KeyboardInterrupt, SystemExit) as end:
            _stop(end, "give the same command again")
        except Exception as error:
            if _is_a(error, "UpscalerError"):
                refuse(error)
            shortage = find_shortage(error)
            if not (shortage or _is_a(error, _OF_LIGHTNING) or isinstance(error, OSError | FloatingPointError)):
                raise
            fail(shortage or error)


@contextmanager
def refusals() -> Iterator[None]:
    """End in one line and exit code 2 if the arguments or the data are wrong."""
    try:
        yield
    except Exception as error:
        share_with_children(None)
        if shortage := find_shortage(error):
            fail(shortage)
        if not isinstance(error, _OF_THE_INPUT) and not _is_a(error, _OF_LIGHTNING):
            raise
        refuse(tell(str(error)))


class Parser(argparse.ArgumentParser):
    """An argument parser that knows no abbreviations and refuses in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse what is nearly one of our options: it would pass for a setting of a configuration."""
        ours = self._option_string_actions
        for option in (word.split("=")[0] for word in (sys.argv[1:] if args is None else args)):
            near = get_close_matches(option, ours, n=1, cutoff=0.8) if option.startswith("--") else []
            if near and option not in ours:
                refuse(f"there is no option {option}; did you mean {near[0]!r}?")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        refuse(tell(message))


@contextmanager
def finishing(trainer: "L.Trainer") -> Iterator[None]:
    """Run a trainer's work; close W&B at its end, and say where everything is.

    A scheduler that wants the machine back ends the work; the exit code is 75 then. A signal during the last upload
    cuts it off, and the exit code is that of the work.
    """
    from run_state.checkpoints import LatestCheckpoint

    latest = next(callback for callback in trainer.callbacks if isinstance(callback, LatestCheckpoint))  # type: ignore[attr-defined]
    exit_code = 1
    with latest.preemption.listening(trainer):
        try:
            with suppress(StoppedError):
                try:
                    yield
                except RuntimeError as error:
                    if latest.preemption.requested and _LOST_PEER.search(str(error)):
                        raise PreemptedError from error  # the signal has ended another process, which this waited for
                    raise
            exit_code = 0
        except (PreemptedError, KeyboardInterrupt, SystemExit) as end:
            exit_code = _signalled(end) or 1
            if is_follower():
                raise SystemExit(0) from end  # Lightning kills rank 0, which may still upload, when another one fails
            _stop(end, _how_to_go_on(trainer))
        finally:
            latest.preemption.deferred = latest.preemption.requested = False  # a further signal cuts an upload off
            _close(trainer, exit_code)


def _how_to_go_on(trainer: "L.Trainer") -> str:
    folder = Path(trainer.default_root_dir)
    if trainer.state.fn != "fit":
        return "give the same command again"
    if (folder / "run.json").is_file():
        return f"resume with --resume {shlex.quote(str(folder))}"
    return "nothing was trained yet, give the same command again"


def _close(trainer: "L.Trainer", exit_code: int) -> None:
    """Close W&B, so that the next run of this process is another one; a signal cuts the last upload off."""
    from run_state.wandb_run import WandbMirror

    share_with_children(None)
    if not trainer.is_global_zero:
        return
    print(f"run folder: {trainer.default_root_dir}", flush=True)
    for mirror in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(mirror, WandbMirror):
            with suppress(PreemptedError, KeyboardInterrupt):
                mirror.close(exit_code)
            if not mirror.complete and (mirror.folder / "run.json").is_file():
                print_upload(mirror.folder)


def print_upload(run: Path) -> None:
    """Say how to send a run to W&B."""
    print(f"to upload to W&B: superfer upload {shlex.quote(str(run))}", flush=True)


def refuse(error: object) -> NoReturn:
    """Print one line and exit with code 2."""
    fail(error, exit_code=2)


def fail(error: object, exit_code: int = 1) -> NoReturn:
    """Print one line, no longer than a person reads, and exit."""
    words = " ".join(str(error).split()) or type(error).__name__
    shown = words if len(words) <= MAX_MESSAGE else f"{words[:190]} ... {words[-95:]}"
    print(f"error: {shown}", file=sys.stderr, flush=True)
    raise SystemExit(exit_code) from (error if isinstance(error, BaseException) else None)


def _stop(end: BaseException, how_to_go_on: str) -> NoReturn:
    """End in one line if a signal is the reason; otherwise as it was about to end."""
    exit_code = _signalled(end)
    if exit_code is None:
        raise end
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores further ones
    print(f"{'preempted' if exit_code == EXIT_REQUEUE else 'interrupted'}; {how_to_go_on}", file=sys.stderr, flush=True)
    raise SystemExit(exit_code) from None


def _signalled(end: BaseException) -> int | None:
    """Return the exit code if a signal is why a command ends; after Ctrl-C, Lightning exits with code 1."""
    if isinstance(end, PreemptedError):
        return EXIT_REQUEUE
    of_lightning = isinstance(end, SystemExit) and end.code == 1 and isinstance(end.__context__, KeyboardInterrupt)
    return EXIT_INTERRUPTED if of_lightning or isinstance(end, KeyboardInterrupt) else None


def _is_a(error: Exception, name: str) -> bool:
    return type(error).__name__ == name  # importing the class takes seconds


class _Unbroken:
    """An output stream that is discarded from when on its reader is gone, as in `superfer train ... | head`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
