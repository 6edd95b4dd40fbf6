"""Console helpers shared by all commands: options, one-line errors, exit codes, an orderly end."""

import argparse
import ctypes
import logging
import shlex
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from commands.ending import EXIT_INTERRUPTED, fail, is_interruption, one_line, stop
from run_state.folder import share_with_children
from run_state.parser_words import tell
from run_state.preemption import EXIT_REQUEUE, PreemptedError, StoppedError
from storage.shortage import find_shortage

if TYPE_CHECKING:  # Lightning and W&B take seconds to import, which the processes that upscale a folder do not need
    import lightning as L

# What libraries say at every start and nobody here can act on.
_HARMLESS_WARNINGS = (
    ".*LightningCLI's args parameter.*",
    ".*LeafSpec.*",
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*it is recommended to use `Trainer\\(devices=1.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # the data module has the place
    ".*module\\(s\\) in eval mode at the start of training.*",  # frozen features
    ".*Total length of `list` across ranks is zero.*",
)
_HARMLESS_MESSAGES = ("litlogger", "Detected KeyboardInterrupt", "to estimate number of stepping batches")


# A symbolic link to itself is a RuntimeError, a package that a setting needs an ImportError.
_OF_THE_INPUT = (ValueError, TypeError, OSError, ArgumentError, ImportError, OverflowError, RuntimeError)


def quieten() -> None:
    """Silence library messages that users can do nothing about."""
    for pattern in _HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logger = logging.getLogger(name)
        if _is_useful not in logger.filters:
            logger.addFilter(_is_useful)


def _is_useful(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in _HARMLESS_MESSAGES)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory: returning large tensors to the kernel and faulting them in again costs 2-3x.

    The same as starting the process with MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ at 16 GiB.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # not glibc
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def refuse(error: object) -> NoReturn:
    """Print one line and exit with code 2."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def refusals() -> Iterator[None]:
    """End in one line and exit code 2 if the arguments or the data are wrong."""
    try:
        yield
    except Exception as error:
        share_with_children(None)
        if shortage := find_shortage(error):
            fail(shortage)
        if not isinstance(error, _OF_THE_INPUT) and type(error).__name__ != "MisconfigurationException":  # Lightning's
            raise
        refuse(tell(str(error)))


class Parser(argparse.ArgumentParser):
    """An argument parser that knows no abbreviations and refuses in one line."""

    def __init__(self, **settings: object) -> None:
        super().__init__(allow_abbrev=False, **settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        refuse(tell(message, [name.lstrip("-") for name in self._option_string_actions]))


@contextmanager
def finishing(trainer: "L.Trainer") -> Iterator[None]:
    """Run a trainer's work; close W&B at its end, and say where everything is.

    A scheduler that wants the machine back ends the work; the exit code is 75 then. A signal during the last upload
    cuts it off, and the exit code is that of the work.
    """
    from datamodules.upscalers import UpscalerError
    from run_state.checkpoints import LatestCheckpoint

    latest = next(callback for callback in trainer.callbacks if isinstance(callback, LatestCheckpoint))  # type: ignore[attr-defined]
    exit_code = 1
    with latest.preemption.listening(trainer):
        try:
            yield
            exit_code = 0
        except PreemptedError as signalled:
            exit_code = EXIT_REQUEUE
            stop(signalled, _how_to_go_on(trainer))
        except SystemExit as end:
            if not is_interruption(end):
                raise
            exit_code = EXIT_INTERRUPTED
            stop(KeyboardInterrupt(), _how_to_go_on(trainer))
        except StoppedError:
            exit_code = 0
        except UpscalerError as error:
            refuse(error)
        finally:
            latest.preemption.deferred = False
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
    folder = Path(trainer.default_root_dir)
    print(f"run folder: {folder}", flush=True)
    for mirror in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(mirror, WandbMirror):
            with suppress(PreemptedError, KeyboardInterrupt):
                mirror.close(exit_code)
            if not mirror.complete:
                print_upload(folder)


def print_upload(run: Path) -> None:
    """Say how to send a run to W&B."""
    print(f"to upload to W&B: superfer upload {shlex.quote(str(run))}", flush=True)
