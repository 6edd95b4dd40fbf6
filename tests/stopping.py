"""A callback that stops a training once, wherever a test wants it; resumed, the same configuration goes through."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import Tensor

from datamodules.upscalers import InterpolationUpscaler


class KilledError(Exception):
    """Stands for the death of the process."""


class Stop(L.Callback):
    """Stop at one place.

    Args:
        marker: file that says that it has happened.
        batches: when so many batches of the training are done, and before their checkpoint is written.
        step: in the middle of this batch of the training, before its optimiser step.
        epoch: in the first validation of this epoch.
        ended: at the end of this epoch, before it is logged.
        how: die, receive a signal together with the loader's workers, run out of `trainer.max_time` or of memory.
    """

    def __init__(
        self,
        marker: str,
        batches: int = -1,
        step: int = -1,
        epoch: int = -1,
        ended: int = -1,
        how: Literal["die", "SIGTERM", "SIGUSR1", "SIGINT", "clock", "memory"] = "die",
    ) -> None:
        self.marker, self.batches, self.step, self.how = Path(marker), batches, step, how
        self.epoch, self.ended = epoch, ended

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            self._stop(trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.step:
            self._stop(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch and not trainer.sanity_checking:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.ended:
            self._stop(trainer)

    def _stop(self, trainer: L.Trainer) -> None:
        if self.marker.exists():
            return
        self.marker.touch()
        if self.how == "die":
            raise KilledError
        if self.how == "memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        if self.how == "clock":
            trainer.should_stop = True
            return
        number = signal.Signals[self.how]
        signal.raise_signal(number)
        for worker in multiprocessing.active_children():  # as if sent to the whole process group
            os.kill(int(worker.pid or 0), number)


class Preempted(InterpolationUpscaler):
    """An upscaler whose results are cached, and that a scheduler interrupts when it begins."""

    cached = True

    def __call__(self, images: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGTERM)
        return super().__call__(images)
