"""Write the checkpoint from which a run resumes, whole or not at all, and find the newest that is intact."""

import io
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from run_state.folder import NEWEST_FIRST, find_checkpoint
from run_state.metrics_csv import MetricsCSV
from run_state.preemption import PREEMPTION_SIGNALS, PreemptedError
from storage.atomic import write_atomically
from storage.checkpoints import CheckpointError, read_checkpoint

PREVIOUS = {"latest.ckpt": "previous.ckpt"}  # kept in case that the newer one is damaged later


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, renames; of ``latest.ckpt`` the one before it stays as ``previous.ckpt``.

    Lightning's own writes into the system's folder for temporary files and moves the result, which between two file
    systems is a copy that can be interrupted.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises:
        OSError: It cannot be written, for instance on a full disk; earlier checkpoints are as they were.
        """
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.writing-new")
        try:
            write_atomically(new, buffer.getbuffer())  # first: what it replaces may be the only one that is whole
            if path.name in PREVIOUS and path.is_file():
                _keep(path, path.with_name(PREVIOUS[path.name]))
            new.replace(path)
        except OSError as error:
            new.unlink(missing_ok=True)
            size = f"{len(buffer.getbuffer()) / 1e6:.0f} MB"
            reason = f"checkpoint of {size} cannot be written ({error.strerror}); the earlier ones are whole"
            raise OSError(error.errno, f"{reason}: make room and continue with --resume", str(path)) from error


def _keep(path: Path, name: Path) -> None:
    """Gives a file a second name, which it keeps when the first is replaced."""
    link = name.with_name(f".{name.name}.writing-link")
    link.unlink(missing_ok=True)
    try:
        try:
            os.link(path, link)
        except OSError:  # a file system without links
            shutil.copyfile(path, link)
        link.replace(name)
    finally:
        link.unlink(missing_ok=True)


def newest_whole(run: Path) -> Path:
    """The checkpoint to continue from; one that is damaged is named, and the one before it taken.

    Raises:
        FileNotFoundError: There is none.
        storage.checkpoints.CheckpointError: All are damaged.
    """
    there = [path for name in NEWEST_FIRST if (path := run / "checkpoints" / name).is_file()]
    for checkpoint in there:
        try:
            if "loops" not in read_checkpoint(checkpoint):
                raise CheckpointError(f"{checkpoint} is not the checkpoint of a training")
            return checkpoint
        except CheckpointError as error:
            if checkpoint == there[-1]:
                raise
            print(f"warning: {error}; continuing from an earlier one", file=sys.stderr, flush=True)
    return find_checkpoint(run, NEWEST_FIRST)  # says where it was looked for


class LatestCheckpoint(Checkpoint):
    """Writes ``latest.ckpt`` after every epoch, and within an epoch when ``minutes`` have passed since it was written.

    Not after a batch that a validation follows: continued from there, the run would not make up for the validation.
    Nor at an epoch's end if the length is given in ``max_steps``, but at the end of the training: continued from there,
    Lightning would end that epoch a second time.

    On SIGTERM or SIGUSR1, to any of its processes, the training ends with ``PreemptedError`` after the next batch (of a
    gradient accumulation: the last), with a checkpoint; before the first batch and when a validation has begun, at
    once, with the checkpoint that there is. A test ends at once. The process that started others for its devices
    passes the signal on.

    Args:
        minutes: bounds the work that is lost with a killed process.
        dirpath: the folder; set by the command line.
    """

    def __init__(self, minutes: float = 10.0, dirpath: str | None = None) -> None:
        if minutes < 0:
            raise ValueError(f"minutes is {minutes}, needed is 0 or more")
        self.interval, self.dirpath = timedelta(minutes=minutes), dirpath
        self._written = time.monotonic()
        self._written_after = -1  # batch of the whole training
        self._preempted = False  # this process has got the signal
        self._stopping = False  # all processes know, and the checkpoint is written
        self._training = False

    @contextmanager
    def listening(self, trainer: L.Trainer) -> Iterator[None]:
        """Takes the signals while ``trainer`` runs, in the place of Lightning's own handlers.

        Those end with exit code 0, may not save, and broadcast in the middle of other collective operations.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def preempt(number: int, _: object) -> None:
            if self._preempted:
                return
            self._preempted = True
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(number)
            if not self._training:
                raise PreemptedError

        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        earlier = {number: signal.signal(number, preempt) for number in PREEMPTION_SIGNALS}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def interrupt_at_once(self) -> None:
        """Has the first signal from now on raise ``PreemptedError``: no batch will end any more."""
        self._training = False

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A run folder may have been moved; ModelCheckpoint forgets the best score if its folder has another name."""
        for best in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(best.state_key)
            if not isinstance(best, ModelCheckpoint) or self.dirpath is None or state is None:
                continue
            if best.dirpath == self.dirpath != state["dirpath"]:
                earlier, state["dirpath"] = state["dirpath"], self.dirpath
                for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[name] = state[name].replace(earlier, self.dirpath, 1)
                state["best_k_models"] = {
                    path.replace(earlier, self.dirpath, 1): score for path, score in state["best_k_models"].items()
                }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._written = time.monotonic()
        self._training = True
        _refuse_different_places(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._stopping:  # only now: what the last batch had to log is logged after its end
            raise PreemptedError

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batches = batch_idx + 1
        if batches == trainer.num_training_batches or batches % trainer.accumulate_grad_batches:
            return
        counted = batches if trainer.check_val_every_n_epoch is not None else trainer.fit_loop.total_batch_idx + 1
        if trainer.enable_validation and trainer.val_check_batch and counted % trainer.val_check_batch == 0:
            return
        late = time.monotonic() - self._written >= self.interval.total_seconds()
        due, preempted = self._agree(trainer, late or trainer.should_stop)
        if due or preempted:
            _log_ahead(trainer)
            self._write(trainer)
        self._stopping = preempted

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # Ranks may differ by a batch of validation, so this one does not ask the others: schedulers tell all of them.
        if self._preempted:
            raise PreemptedError

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Reading what is logged per epoch is a collective operation, and Lightning's progress bar does it on rank 0
        # alone. This callback runs after all others: the ranks must read, too, before they save together.
        _ = trainer.callback_metrics
        # A run that is to stop does so in the next epoch: this one's metrics are not logged yet.
        if trainer.max_steps == -1:
            self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.max_steps != -1:
            self._write(trainer)

    def _agree(self, trainer: L.Trainer, due: bool) -> tuple[bool, bool]:
        """Whether any rank finds that a checkpoint is due, and whether any has been told to stop."""
        if trainer.world_size == 1:
            return due, self._preempted
        mine = torch.tensor([due, self._preempted], dtype=torch.int32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
        first, second = mine.tolist()
        return bool(first), bool(second)

    def _write(self, trainer: L.Trainer) -> None:
        batch = trainer.fit_loop.total_batch_idx
        if batch == self._written_after:
            return  # in mid-epoch, from where it can be continued better than from an epoch's end
        folder = Path(self.dirpath or trainer.default_root_dir)
        trainer.save_checkpoint(folder / "latest.ckpt", weights_only=False)
        self._written, self._written_after = time.monotonic(), batch


def _refuse_different_places(trainer: L.Trainer) -> None:
    """Every rank has looked for the checkpoint by itself; gradients of different weights would be averaged silently.

    Raises:
        RuntimeError: The ranks do not continue from the same batch.
    """
    places: list[Any] = [(trainer.current_epoch, trainer.global_step)] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(places, places[0])
    if len(set(places)) > 1:
        shown = ", ".join(f"rank {rank} epoch {epoch} step {step}" for rank, (epoch, step) in enumerate(places))
        raise RuntimeError(
            f"the ranks continue from different checkpoints ({shown}): the run folder must be on a file system that "
            "all nodes share"
        )


def _log_ahead(trainer: L.Trainer) -> None:
    """Has ``metrics.csv`` take this batch's figures now, which Lightning logs after the hook that saves."""
    connector = trainer._logger_connector
    files = [logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
    if not (files and trainer.is_global_zero and connector.should_update_logs):
        return
    metrics = connector.metrics["log"]
    if metrics:
        row = {"epoch": trainer.current_epoch} | convert_tensors_to_scalars(metrics)
        files[0].log_ahead(row, trainer.fit_loop.epoch_loop._batches_that_stepped)
