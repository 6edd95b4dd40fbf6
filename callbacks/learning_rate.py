"""The learning rate among the metrics of an epoch."""

import lightning as L


class LearningRate(L.Callback):
    """Logs ``lr``, the first optimizer's learning rate when an epoch begins."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        pl_module.log("lr", rate, on_step=False, on_epoch=True, sync_dist=True)
