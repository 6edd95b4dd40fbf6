"""The learning rate among the metrics of an epoch."""

from typing import Any

import lightning as L


class LearningRate(L.Callback):
    """Logs ``lr``, the first optimizer's learning rate when an epoch begins."""

    def __init__(self) -> None:
        self._rate = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Called when a checkpoint is saved: an epoch that is continued has begun before."""
        return {"rate": self._rate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called when a run is resumed."""
        self._rate = state_dict["rate"]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("lr", self._rate, sync_dist=True)
