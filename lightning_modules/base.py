"""What the commands and callbacks may ask of a training."""

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from lightning_modules.optimization import Optimization


class Task(L.LightningModule):
    """A network in training.

    Attributes:
        monitored: metrics that may choose the best checkpoint.
        not_averaged: prefixes of the weights that `callbacks.weight_average.WeightAverage` leaves as they are trained.
        optimizer: what `check` and `configure_optimizers` go by.
    """

    monitored: tuple[str, ...] = ()
    not_averaged: tuple[str, ...] = ()
    optimizer: Optimization

    def check(self, data: L.LightningDataModule, trainer: L.Trainer) -> None:
        """Refuse data or settings of the trainer that cannot work; called before anything starts.

        Raises:
            ValueError: which says what does not fit.
        """
        self.optimizer.check(trainer)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Train all parameters; the rate changes after every batch."""
        optimizer, scheduler = self.optimizer.build(self.parameters(), self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
