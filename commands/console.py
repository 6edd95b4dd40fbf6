"""What the project's programs do around their own work: memory, options, errors in one line, an orderly end."""

import ctypes
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import lightning as L
import wandb
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.upscalers import UpscalerError
from run_state.checkpoints import LatestCheckpoint
from run_state.folder import share_with_children
from run_state.preemption import EXIT_REQUEUE, PreemptedError, release_workers


def keep_freed_memory() -> None:
    """Has glibc keep freed memory: large tensors would go back to the system and fault in again, at 2-3 times the cost.

    In effect that of starting the process with MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ at 16 GiB.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # not glibc
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def refuse(error: object) -> NoReturn:
    """One line, exit code 2."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    raise SystemExit(2)


def take_option(args: list[str], name: str) -> tuple[str | None, list[str]]:
    """Value of ``--name VALUE`` or ``--name=VALUE`` and the other arguments."""
    for place, arg in enumerate(args):
        if arg == name:
            if place + 1 == len(args):
                refuse(f"{name} needs a value")
            return args[place + 1], args[:place] + args[place + 2 :]
        if arg.startswith(f"{name}="):
            return arg.removeprefix(f"{name}="), args[:place] + args[place + 1 :]
    return None, args


@contextmanager
def finishing(trainer: L.Trainer) -> Iterator[None]:
    """Closes W&B when a program's work is over, and says where everything is.

    A scheduler that wants the machine back ends the work; the exit code is 75 then.
    """
    latest = next(callback for callback in trainer.callbacks if isinstance(callback, LatestCheckpoint))  # type: ignore[attr-defined]
    exit_code = 1
    release_workers(False)
    with latest.listening(trainer):
        try:
            yield
            exit_code = 0
        except PreemptedError:
            exit_code = EXIT_REQUEUE
            print(f"preempted; {_how_to_go_on(trainer)}", file=sys.stderr, flush=True)
            if wandb.run is not None:
                wandb.run.mark_preempting()
            raise SystemExit(EXIT_REQUEUE) from None
        except UpscalerError as error:
            refuse(error)
        finally:
            latest.interrupt_at_once()
            with suppress(PreemptedError):  # cuts off the upload, but the exit code is decided
                _close(trainer, exit_code)


def _how_to_go_on(trainer: L.Trainer) -> str:
    folder = Path(trainer.default_root_dir)
    if trainer.state.fn is not TrainerFn.FITTING:
        return "give the same command again"
    if any(folder.glob("checkpoints/*.ckpt")):
        return f"continue with --resume {folder}"
    return "nothing was trained yet, give the same command again"


def _close(trainer: L.Trainer, exit_code: int) -> None:
    """Closes W&B, so that the next run of this process is another one."""
    release_workers(True)
    share_with_children(None)
    if trainer.is_global_zero:
        folder = Path(trainer.default_root_dir)
        print(f"run folder: {folder}", flush=True)
        wandb.finish(exit_code=exit_code)
        if any(folder.glob("wandb/offline-run-*")):
            print(f"to upload to W&B: wandb sync {folder}/wandb/offline-run-*", flush=True)


# What libraries say at every start and nobody here can act on.
HARMLESS_WARNINGS = (
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

HARMLESS_MESSAGES = ("litlogger", "to estimate number of stepping batches")


def quieten() -> None:
    """Leaves out messages of libraries that are of no use to the user, so that the others are seen."""
    for pattern in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logger = logging.getLogger(name)
        if _is_useful not in logger.filters:
            logger.addFilter(_is_useful)


def _is_useful(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in HARMLESS_MESSAGES)
