"""Write the checkpoint from which a run resumes, whole or not at all, and find the newest that is intact.

The order of events in a start, a kill and a resume: `run_state/__init__.py`.
"""

import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, ModelCheckpoint

from run_state.folder import LATEST, PREVIOUS, checkpoints
from run_state.identity import read_record, sha256
from run_state.lightning_internals import group_of_hosts
from run_state.preemption import PreemptedError, Preemption, StoppedError
from run_state.ranks import gather
from storage.atomic import write_atomically
from storage.checkpoints import CheckpointError, read_checkpoint


class LatestCheckpoint(Checkpoint):
    """Save `latest.ckpt` at the start of a batch: of the first one in an epoch, and when `minutes` have passed.

    Then the batch before is logged, its validation done, its epoch closed; of a gradient accumulation the step is done.
    At the end of the training it is saved once more.

    When any process receives SIGTERM or SIGUSR1, finish the current optimiser step, save, and raise `PreemptedError`.
    During validation, or before the training starts, raise it at once: the last checkpoint is still valid. A stop
    within an epoch, by `trainer.max_time` for instance, is put off to the next moment at which the run can be saved,
    and raises `StoppedError` then: Lightning would validate and close the epoch, which the resumed run goes on with.

    A resumed run starts the saved batch again: a callback that keeps a count saves it exactly if it counts in
    `on_train_batch_end`, and one too many in `on_train_batch_start`.

    Args:
        minutes: bounds the work that is lost with a killed process.
        dirpath: the folder; set by the program.
    """

    def __init__(self, minutes: float = 10.0, dirpath: str | None = None) -> None:
        self.minutes, self.dirpath = minutes, dirpath
        self.preemption = Preemption()
        self._saved_at = time.monotonic()
        self._resumed = False  # no batch has started since
        self._stop_requested = False
        self._hosts: Any = None  # all of them, if there are several

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tell `ModelCheckpoint` where a moved run folder lies now: it forgets the best score of another folder.

        Let it forget the score, too, if `best.ckpt` was written after this checkpoint, or is gone: its score belongs to
        weights that no longer exist, and the next validation is the best of this way of the training.
        """
        self._resumed = True
        for best in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(best.state_key)
            if not isinstance(best, ModelCheckpoint) or self.dirpath is None or state is None:
                continue
            if best.dirpath == self.dirpath and not _is_from_before(Path(self.dirpath) / "best.ckpt", checkpoint):
                checkpoint["callbacks"][best.state_key] = best.state_dict()
            elif best.dirpath == self.dirpath != state["dirpath"]:
                earlier, state["dirpath"] = state["dirpath"], self.dirpath
                for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[name] = state[name].replace(earlier, self.dirpath, 1)
                state["best_k_models"] = {
                    path.replace(earlier, self.dirpath, 1): score for path, score in state["best_k_models"].items()
                }

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Do not count the batch that was fetched but not trained with, nor take it for the last one of the epoch."""
        loop = checkpoint["loops"]["fit_loop"]
        progress, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]["current"]
        if epochs["ready"] == epochs["completed"]:  # else a run counted in batches resumes with an empty epoch
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["is_last_batch"] = False
        for counts in (progress["total"], progress["current"]):
            if counts["started"] == counts["completed"] < counts["ready"]:
                counts["ready"] = counts["completed"]
                progress["is_last_batch"] = False  # Lightning would take the epoch for done

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _refuse_different_places(trainer)
        if trainer.is_global_zero and trainer.ckpt_path and self.dirpath and Path(trainer.ckpt_path).name != LATEST:
            (Path(self.dirpath) / LATEST).unlink(missing_ok=True)  # damaged: it must not replace the one before it
        self._hosts = group_of_hosts(trainer.strategy) if trainer.world_size > 1 else None
        self._saved_at = time.monotonic()
        self.preemption.deferred = True
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                callback.on_train_epoch_start(trainer)  # which a run that resumes within an epoch leaves out

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        resumed, self._resumed = self._resumed, False
        if batch_idx % trainer.accumulate_grad_batches:
            return
        due = time.monotonic() - self._saved_at >= 60 * self.minutes or batch_idx == 0
        mine = (due and not resumed, self._stop_requested and _may_stop(trainer), self.preemption.requested)
        due, stopped, preempted = _any_rank(self._hosts, mine)
        if due or preempted or stopped:
            self._save(trainer)
        if preempted:
            raise PreemptedError
        if stopped:
            raise StoppedError

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._put_off_a_stop(trainer)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # Ranks may differ by a batch of validation, so this one does not ask the others: schedulers tell all of them.
        if self.preemption.requested:
            raise PreemptedError

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        started: int = trainer.fit_loop.epoch_loop.batch_progress.current.started  # type: ignore[attr-defined]
        if 0 < started < trainer.num_training_batches:
            self._put_off_a_stop(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Reading what is logged per epoch is a collective operation, and Lightning's progress bar does it on rank 0
        # alone. This callback runs after all others: the ranks read, too, before they do anything else together.
        _ = trainer.callback_metrics

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)
        self.preemption.deferred = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.preemption.deferred = False

    def _put_off_a_stop(self, trainer: L.Trainer) -> None:
        if trainer.should_stop:
            trainer.should_stop, self._stop_requested = False, True

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(Path(self.dirpath or trainer.default_root_dir) / LATEST, weights_only=False)
        self._saved_at = time.monotonic()


def _is_from_before(path: Path, checkpoint: dict[str, Any]) -> bool:
    try:
        step = read_checkpoint(path)["global_step"]
    except (CheckpointError, KeyError, OSError):
        return False
    return isinstance(step, int) and step <= int(checkpoint["global_step"])


def _any_rank(hosts: Any, mine: Sequence[bool]) -> Sequence[bool]:
    """Whether each holds for any rank, so that all do the same; no host waits for its GPU to find out."""
    if hosts is None:
        return mine
    flags = torch.tensor(mine, dtype=torch.int32)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=hosts)
    return [bool(flag) for flag in flags.tolist()]


def _may_stop(trainer: L.Trainer) -> bool:
    return trainer.current_epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)


def _refuse_different_places(trainer: L.Trainer) -> None:
    """Every rank has looked for the checkpoint by itself; gradients of different weights would be averaged silently."""
    places = gather(trainer, (trainer.current_epoch, trainer.global_step))
    if len(set(places)) > 1:
        first = {place: places.index(place) for place in places}
        shown = ", ".join(f"rank {rank} epoch {epoch} step {step}" for (epoch, step), rank in first.items())
        raise RuntimeError(
            f"the ranks resume from different checkpoints ({shown}): all nodes must share the run folder"
        )


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint of a run, and what it says of itself: its optimiser steps, and the settings it was trained with."""

    path: Path
    sha256: str
    run_id: str
    global_step: int
    epoch: int
    settings: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """Return which checkpoint it is, for `run.json` and the results of a test."""
        step, epoch = self.global_step, self.epoch
        return {"name": self.path.name, "sha256": self.sha256, "global_step": step, "epoch": epoch}


def read_own(path: Path, run: Path) -> RunCheckpoint:
    """Read a checkpoint that a run has written; one of another run is a ValueError, a damaged one a CheckpointError."""
    record, digest = read_record(run), sha256(path)
    content: dict[str, Any] = read_checkpoint(path)
    step, epoch, own = (content.get(name) for name in ("global_step", "epoch", "run"))
    if "loops" not in content or not isinstance(step, int) or not isinstance(epoch, int):
        raise CheckpointError(f"{path} is not the checkpoint of a training")
    if not isinstance(own, dict) or not isinstance(own.get("settings"), dict):
        raise ValueError(f"{path} does not say of which run it is: an earlier version wrote it; train the run anew")
    if own.get("run_id") != record["run_id"]:
        of, instead = (f"{x.get('run_id')} (arm {x.get('arm')}, seed {x.get('seed')})" for x in (own, record))
        raise ValueError(f"{path} is a checkpoint of run {of}, but {run} is run {instead}")
    return RunCheckpoint(path, digest, record["run_id"], step, epoch, own["settings"])


def newest_intact(run: Path) -> RunCheckpoint | None:
    """Return the newest intact checkpoint of a run, and name those that are damaged; None if there is none at all."""
    present = checkpoints(run)
    for checkpoint in present:
        try:
            return read_own(checkpoint, run)
        except CheckpointError as error:
            if checkpoint == present[-1]:
                raise
            print(f"warning: {error}; resuming from an earlier one", file=sys.stderr, flush=True)
    return None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write atomically; of `latest.ckpt` keep the one before it as `previous.ckpt`.

    Lightning's own writes into the system's folder for temporary files and moves the result, which between two file
    systems is a copy that can be interrupted.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            write_atomically(path, buffer.getbuffer(), path.with_name(PREVIOUS) if path.name == LATEST else None)
        except OSError as error:
            reason = f"checkpoint of {len(buffer.getbuffer()) / 1e6:.0f} MB cannot be written ({error.strerror}); the"
            hint = "earlier ones are intact: make room and resume with --resume"
            raise OSError(error.errno, f"{reason} {hint}", str(path)) from error
