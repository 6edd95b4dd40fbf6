"""Training of the landmark estimator alone, DIC's first stage: heatmaps of HR faces.

The hourglass is called as DIC calls it, several times with its own hidden state, on the same face; the mean squared
error of the heatmaps is summed over the calls. On HR faces nothing improves from call to call; what it learns is to be
right with a hidden state of its own making.

Reference:
    Ma et al., CVPR 2020 (arXiv 2003.13063), sections 3.3 and 4.1.

Shapes: B batch, H = W high resolution, K = 68 landmarks.
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import mse_loss
from torchmetrics import MeanMetric

from lightning_modules.generator import LANDMARK_METRICS, LandmarkErrors, check_faces, decode, over_ranks
from lightning_modules.optimization import Adam, check_end, training_length
from models.dic import normalise
from models.heatmaps import HEATMAP_STRIDE, enlarge_heatmaps, landmarks_to_heatmaps
from models.hourglass import FeedbackHourglass
from models.resampling import to_uint8


class HourglassModule(L.LightningModule):
    """Trains a feedback hourglass on HR faces with the heatmap loss.

    Args:
        net: the hourglass.
        num_steps: calls on each face, as many as the generator will make.
        start_sigma: standard deviation of the target's Gaussians in the first batch, in heatmap pixels; it falls to the
            data module's `heatmap_sigma` in the first half of the training. With the published 1 all the way nearly all
            of the target is zero, and a small hourglass learns to return zeros.
        optimizer: Adam and its schedule.
        channels_last: keep weights and images in channels-last order.
        compile: have `torch.compile` translate the network; pays on GPUs in long trainings.

    Raises:
        ValueError: an argument is out of its range, or `onecycle` has no known length.
    """

    monitored = (*LANDMARK_METRICS, "val/heatmap")

    def __init__(
        self,
        net: FeedbackHourglass,
        num_steps: int = 4,
        start_sigma: float = 4.0,
        optimizer: Adam = Adam(),  # noqa: B008  (frozen)
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}; at least 1 is needed")
        if start_sigma < 1:
            raise ValueError(f"start_sigma is {start_sigma}; at least 1, the published width, is needed")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.memory_format)
        if compile:
            self.net.compile()  # in place: the keys of the checkpoint stay as they are
        self.num_steps = num_steps
        self.start_sigma = start_sigma
        self.final_sigma = 1.0  # the data module's
        self.optimizer = optimizer
        self.val_heatmap = MeanMetric()
        self.val_landmarks = LandmarkErrors()

    def check_data(self, data: L.LightningDataModule) -> None:
        """Refuse a data module without faces and landmarks; called before anything starts."""
        check_faces(self, data)
        self._adopt(data)

    def check_trainer(self, trainer: L.Trainer) -> None:
        """Refuse settings of the trainer; called before anything starts."""
        self.optimizer.check(trainer)
        if self.start_sigma != self.final_sigma:
            check_end(trainer)

    def on_fit_start(self) -> None:
        self._adopt(self.trainer.datamodule)  # type: ignore[attr-defined]

    def _adopt(self, data: L.LightningDataModule) -> None:
        self.final_sigma = data.heatmap_sigma  # type: ignore[attr-defined]
        if self.start_sigma < self.final_sigma:
            raise ValueError(f"start_sigma is {self.start_sigma}, below data.heatmap_sigma, {self.final_sigma}")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, scheduler = self.optimizer.build(self.net.parameters(), lambda: training_length(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def forward(self, hr: Tensor) -> list[Tensor]:
        """uint8 B,3,H,H -> heatmaps of every call, B,K,H/4,H/4."""
        image = normalise(hr.float() / 255).contiguous(memory_format=self.memory_format)
        heatmaps: list[Tensor] = []
        hidden = None
        for _ in range(self.num_steps):
            found, hidden = self.net(image, hidden)
            heatmaps.append(found)
        return heatmaps

    def sigma(self) -> float:
        """Width of the Gaussians for the current batch: falls geometrically from `start_sigma` to that of the data."""
        if self.start_sigma == self.final_sigma:
            return self.final_sigma
        done = self.trainer.global_step / training_length(self.trainer)
        return max(self.final_sigma, self.start_sigma * (self.final_sigma / self.start_sigma) ** (2 * done))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        found = self(batch["hr"])
        target = landmarks_to_heatmaps(batch["landmarks"] / HEATMAP_STRIDE, found[0].shape[-1], self.sigma())
        loss = torch.stack([mse_loss(maps.float(), target) for maps in found]).sum()
        self.log_dict(over_ranks({"train/g/heatmap": loss}))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Update the metrics with the last call's heatmaps; return what `callbacks.face_strip.FaceStrip` shows."""
        with torch.autocast(self.device.type, enabled=False):  # as precise as when it is used
            heatmaps = self(batch["hr"])[-1]
        self.val_heatmap.update(mse_loss(heatmaps, batch["heatmaps"]), weight=len(heatmaps))
        self.val_landmarks.update(heatmaps, batch["landmarks"])
        self.log("val/heatmap", self.val_heatmap)
        self.log_dict(self.val_landmarks)
        strongest = enlarge_heatmaps(heatmaps.amax(dim=1, keepdim=True))
        panels = {"HR": batch["hr"], "heatmaps": to_uint8(strongest.expand(-1, 3, -1, -1))}
        return {"panels": panels, "marked": batch["hr"], "landmarks": decode(heatmaps)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the network's sizes, for those who want to know them without reading the weights."""
        checkpoint["hourglass_config"] = dict(self.net.config)
