"""Exponential moving average of the weights (EMA)."""

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging


class WeightAverage(EMAWeightAveraging):
    """Lightning's EMA after every batch: validated, and kept as the checkpoint's ``state_dict``.

    The weights in training lie beside it in the checkpoint, so that resuming is exact.

    Args:
        decay: share of the old average in the new one, 0 to 1.

    Raises:
        ValueError: ``decay`` is out of its range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, allowed are 0 up to, but not including, 1")
        super().__init__(decay=decay)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Made before the module was moved, the average would stay behind, and every batch copy all weights to it.
        if self._average_model is not None:
            self._average_model.to(pl_module.device)
