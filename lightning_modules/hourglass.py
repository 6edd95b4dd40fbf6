"""Training of the landmark estimator alone, DIC's first stage: heatmaps of HR faces.

The hourglass is called as DIC calls it, several times with its own hidden state, but always on the same face; the loss
is summed over the calls. Nothing improves from call to call here: the network learns to cope with a hidden state of its
own making.

Reference:
    Ma et al., CVPR 2020 (arXiv 2003.13063), sections 3.3 and 4.1.

Shapes: B batch, H = W high resolution, K = 68 landmarks.
"""

from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from lightning_modules.base import Optimization, check_end
from lightning_modules.generator import LANDMARK_METRICS, PUBLISHED, FaceTask, decode
from models.dic import normalise
from models.heatmaps import HEATMAP_STRIDE, landmarks_to_heatmaps, upscale_heatmaps
from models.hourglass import FeedbackHourglass
from models.losses import heatmap_loss
from models.resampling import to_uint8


class HourglassModule(FaceTask):
    """Train a feedback hourglass on HR faces with the heatmap loss.

    Args:
        num_steps: calls on each face, as many as the generator will make.
        start_sigma: standard deviation of the target's Gaussians in the first batch, in heatmap pixels; it falls to
            `data.heatmap_sigma` in the first half of the training. With the published 1 from the start, nearly all of
            the target is zero, and a small hourglass learns to return zeros.
        compile: have `torch.compile` translate the network; pays on GPUs in long trainings.
    """

    monitored: ClassVar = {f"val/{name}": "min" for name in (*LANDMARK_METRICS, "heatmap")}

    def __init__(
        self,
        net: FeedbackHourglass,
        num_steps: int = 4,
        start_sigma: float = 4.0,
        optimizer: Optimization = PUBLISHED,
        compile: bool = False,
    ) -> None:
        for name, value in {"num_steps": num_steps, "start_sigma": start_sigma}.items():
            if not 1 <= value <= 100:  # also refuses nan
                raise ValueError(f"{name} is {value}, expected 1 to 100")
        super().__init__(net, ("heatmap", *LANDMARK_METRICS), optimizer, compile)
        self.num_steps = num_steps
        self.start_sigma = start_sigma

    def check(self, data: L.LightningDataModule, trainer: L.Trainer) -> None:
        super().check(data, trainer)
        sigma = data.heatmap_sigma  # type: ignore[attr-defined]
        if self.start_sigma < sigma:
            raise ValueError(f"start_sigma is {self.start_sigma}, expected at least data.heatmap_sigma, {sigma}")
        if self.start_sigma > sigma:
            check_end(trainer)

    def forward(self, hr: Tensor) -> list[Tensor]:
        """uint8 B,3,H,H -> heatmaps of every call, B,K,H/4,H/4."""
        image = normalise(hr.float() / 255).contiguous(memory_format=torch.channels_last)
        heatmaps: list[Tensor] = []
        hidden = None
        for _ in range(self.num_steps):
            maps, hidden = self.net(image, hidden)
            heatmaps.append(maps)
        return heatmaps

    def sigma(self) -> float:
        """Width of the Gaussians for the current batch: falls geometrically from `start_sigma` to that of the data."""
        final = self.trainer.datamodule.heatmap_sigma  # type: ignore[attr-defined]
        done = self.trainer.global_step / self.trainer.estimated_stepping_batches
        return max(final, self.start_sigma * (final / self.start_sigma) ** (2 * done))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        heatmaps = self(batch["hr"])
        target = landmarks_to_heatmaps(batch["landmarks"] / HEATMAP_STRIDE, heatmaps[0].shape[-1], self.sigma())
        loss = heatmap_loss(heatmaps, target)
        self.log_losses({"g/heatmap": loss})
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Update the metrics with the last call's heatmaps; return what `callbacks.face_strip.FaceStrip` shows."""
        with torch.autocast(self.device.type, enabled=False):  # as precise as when it is used
            heatmaps = self(batch["hr"])[-1]
        error = (heatmaps - batch["heatmaps"]).square().mean(dim=(1, 2, 3))
        self.log_faces({"heatmap": error}, heatmaps, batch["landmarks"])
        strongest = upscale_heatmaps(heatmaps.amax(dim=1, keepdim=True))
        panels = {"HR": batch["hr"], "heatmaps": to_uint8(strongest.expand(-1, 3, -1, -1))}
        return {"panels": panels, "marked": batch["hr"], "landmarks": decode(heatmaps)}
