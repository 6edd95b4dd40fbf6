"""How every command ends: in at most one line, with an exit code that a shell or a scheduler can act on.

0: done. 1: a failure. 2: wrong input, which `commands.console` refuses. 75: preempted, start it again. 130: Ctrl-C.
Imports nothing that takes long, so that it is there before PyTorch is.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NoReturn

from run_state.preemption import EXIT_REQUEUE, PreemptedError, Preemption
from storage.shortage import find_shortage

EXIT_INTERRUPTED = 128 + signal.SIGINT
MAX_MESSAGE = 290  # characters, without "error: "


@contextmanager
def orderly() -> Iterator[None]:
    """Run a command: end in one line where there is nothing to debug, and go on when nobody reads the output any more.

    SIGTERM and SIGUSR1 end it at once, wherever it is, except where a training listens to them itself.
    """
    with redirect_stdout(_Unbroken(sys.stdout)), redirect_stderr(_Unbroken(sys.stderr)), Preemption().listening():
        try:
            yield
        except (PreemptedError, KeyboardInterrupt) as error:
            stop(error, "give the same command again")
        except SystemExit as end:
            if not is_interruption(end):
                raise
            stop(KeyboardInterrupt(), "give the same command again")
        except Exception as error:
            shortage = find_shortage(error)
            of_lightning = type(error).__name__ == "MisconfigurationException"  # of what it sees only when it starts
            if not (shortage or of_lightning or isinstance(error, OSError | FloatingPointError)):
                raise
            fail(shortage or error)


@contextmanager
def importing() -> Iterator[None]:
    """Let Ctrl-C end the process at once, without a traceback, while libraries are imported."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.getsignal(signal.SIGINT)
    if earlier is not signal.SIG_IGN:  # as shells have it for jobs in the background
        signal.signal(signal.SIGINT, lambda *_: os._exit(os.write(2, b"interrupted\n") and EXIT_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def one_line(message: object) -> str:
    """Return a message without line breaks, and not longer than a person reads."""
    words = " ".join(str(message).split())
    return words if len(words) <= MAX_MESSAGE else f"{words[:190]} ... {words[-95:]}"


def stop(reason: BaseException, how_to_go_on: str) -> NoReturn:
    """End because of a signal."""
    interrupted = isinstance(reason, KeyboardInterrupt)
    print(f"{'interrupted' if interrupted else 'preempted'}; {how_to_go_on}", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_INTERRUPTED if interrupted else EXIT_REQUEUE) from None


def is_interruption(end: SystemExit) -> bool:
    """Return whether this is how Lightning ends after Ctrl-C; ends its ignoring of further ones."""
    if end.code != 1 or not isinstance(end.__context__, KeyboardInterrupt):
        return False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return True


def fail(error: BaseException) -> NoReturn:
    """Print one line and exit with code 1."""
    print(f"error: {one_line(str(error) or type(error).__name__)}", file=sys.stderr, flush=True)
    raise SystemExit(1) from error


class _Unbroken:
    """An output stream that is discarded from when on its reader is gone, as in `superfer train ... | head`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except BrokenPipeError:
            self._discard()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
