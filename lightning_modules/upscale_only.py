"""A module without work of its own: predicting with it makes the data module enlarge its data on every device."""

import lightning as L
from torch import Tensor


class UpscaleOnly(L.LightningModule):
    """Lets a Trainer start the devices; the data module fills its cache while it is set up."""

    def predict_step(self, batch: Tensor, batch_idx: int) -> None:
        return None
