"""What the commands and callbacks may ask of a training."""

from typing import ClassVar

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from lightning_modules.optimization import Optimization, check_end


class Task(L.LightningModule):
    """A network in training.

    Attributes:
        monitored: metrics that may choose the best checkpoint, and whether their best value is the `max` or the `min`.
        not_averaged: prefixes of the weights that `callbacks.weight_average.WeightAverage` keeps as trained.
        optimizer: optimiser and schedule.
    """

    monitored: ClassVar[dict[str, str]] = {}
    not_averaged: tuple[str, ...] = ()
    optimizer: Optimization

    def check(self, data: L.LightningDataModule, trainer: L.Trainer) -> None:
        """Refuse with a ValueError, before anything starts, data or settings of the trainer that cannot work."""
        if self.optimizer.needs_end:
            check_end(trainer)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Train all parameters; the rate changes after every batch."""
        optimizer, scheduler = self.optimizer.build(self.parameters(), self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
