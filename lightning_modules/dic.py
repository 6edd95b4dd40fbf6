"""Training of DIC, first stage: pixel and landmark losses at every step.

Losses as published: the L1 distance of every step's image to the HR face, plus 0.1 times the mean squared error of
every step's heatmaps, both summed over the T steps, both on mean-subtracted images. Gradients flow from each image
back through the heatmaps that guided it.

Shapes: B batch, H = W high resolution, h = H/8 low resolution, K = 68 landmarks, T steps.
"""

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR
from torchmetrics import MetricCollection

from lightning_modules.schedules import one_cycle, training_length
from metrics.image_quality import LumaPSNR, LumaSSIM
from metrics.landmarks import InterocularNME
from models.dic import DIC, denormalise, normalise
from models.heatmaps import HEATMAP_STRIDE, heatmaps_to_landmarks
from models.resampling import resize_bicubic, to_uint8


def dic_losses(
    images: list[Tensor], heatmaps: list[Tensor], target: Tensor, target_heatmaps: Tensor
) -> tuple[Tensor, Tensor]:
    """Pixel loss (L1) and heatmap loss (MSE), each summed over the steps.

    Args:
        images: T images B,3,H,W, mean-subtracted.
        heatmaps: T heatmaps B,K,H/4,H/4.
        target: HR faces B,3,H,W, mean-subtracted.
        target_heatmaps: B,K,H/4,H/4.

    Returns:
        Two float32 scalars, without weights.
    """
    pixel = torch.stack([l1_loss(image.float(), target) for image in images]).sum()
    heatmap = torch.stack([mse_loss(maps.float(), target_heatmaps) for maps in heatmaps]).sum()
    return pixel, heatmap


class DICModule(L.LightningModule):
    """Trains a DIC generator with pixel and heatmap losses.

    Args:
        net: the generator.
        learning_rate: Adam's; the peak of the one-cycle schedule, the start of the multi-step schedule.
        heatmap_weight: of the heatmap loss; the pixel loss has weight 1.
        schedule: `onecycle` (warm-up, then cosine to nearly zero; for short trainings) or `multistep` (the published
            one: halved at each milestone). Both are counted in batches.
        milestones: batches after which `multistep` halves the learning rate.
        warmup_fraction: part of the training in which `onecycle` rises to its peak.
        betas: Adam's decay rates.
        channels_last: keep weights and images in channels-last order: the same numbers, 1.3 times as fast on CPUs.

    Raises:
        ValueError: an argument is out of its range, or `onecycle` has no known length.
    """

    monitored = ("val/psnr_y", "val/ssim_y", "val/nme_interocular")  # what may choose the best checkpoint

    def __init__(
        self,
        net: DIC,
        learning_rate: float = 1e-4,
        heatmap_weight: float = 0.1,
        schedule: Literal["onecycle", "multistep"] = "multistep",
        milestones: tuple[int, ...] = (10_000, 20_000, 40_000, 80_000),
        warmup_fraction: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {learning_rate}")
        if heatmap_weight < 0:
            raise ValueError(f"heatmap_weight must not be negative, got {heatmap_weight}")
        if not 0 < warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must lie between 0 and 1, got {warmup_fraction}")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.memory_format)
        self.learning_rate = learning_rate
        self.heatmap_weight = heatmap_weight
        self.schedule = schedule
        self.milestones = milestones
        self.warmup_fraction = warmup_fraction
        self.betas = betas
        self.configure_metrics()

    def check_data(self, data: L.LightningDataModule) -> None:
        """Refuse a data module without faces and landmarks; called before anything starts."""
        if not hasattr(data, "hr_size"):
            raise ValueError(f"{type(self).__name__} needs a FaceLandmarkDataModule, got a {type(data).__name__}")

    def configure_metrics(self) -> None:
        """Image quality of the last step and of plain bicubic enlargement, and the landmarks of the last step."""
        self.val_quality = MetricCollection({"psnr_y": LumaPSNR(), "ssim_y": LumaSSIM()}, prefix="val/")
        self.val_bicubic = LumaPSNR()
        self.val_nme = InterocularNME()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.learning_rate, betas=self.betas)
        scheduler: LRScheduler
        if self.schedule == "multistep":
            scheduler = MultiStepLR(optimizer, milestones=list(self.milestones), gamma=0.5)
        else:
            length = training_length(self.trainer)
            scheduler = LambdaLR(optimizer, lambda step: one_cycle(step, length, self.warmup_fraction))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def forward(self, lr: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """LR images B,3,h,w in [0, 1] -> T images B,3,H,W (mean-subtracted) and T heatmaps B,K,H/4,H/4."""
        images, heatmaps = self.net(normalise(lr).contiguous(memory_format=self.memory_format))
        return images, heatmaps

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images, heatmaps = self(batch["lr"])
        target = normalise(batch["hr"].float() / 255)
        pixel, heatmap = dic_losses(images, heatmaps, target, batch["heatmaps"])
        total = pixel + self.heatmap_weight * heatmap
        terms = {"train/g/pixel": pixel, "train/g/heatmap": heatmap, "train/g/total": total}
        self.log_dict(
            {name: value.detach() for name, value in terms.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(target),
            sync_dist=True,
        )
        return total

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Update the metrics, and return what `restore` gives, for those who want to show it."""
        restored = self.restore(batch)
        self.val_quality.update(restored["steps"][-1], batch["hr"])
        self.val_bicubic.update(restored["bicubic"], batch["hr"])
        self.val_nme.update(restored["landmarks"], batch["landmarks"])
        self.log_dict(self.val_quality)
        self.log("val/psnr_y_bicubic", self.val_bicubic)
        self.log("val/nme_interocular", self.val_nme)
        return restored

    def restore(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Enlarge a batch, rounded to 8 bits as it would be stored.

        Returns:
            `steps`: the T images, uint8 B,3,H,W; `bicubic`: uint8 B,3,H,W; `landmarks`: the last step's, float32 B,K,2
            in HR pixels.
        """
        images, heatmaps = self(batch["lr"])
        return {
            "steps": [to_uint8(denormalise(image.float())) for image in images],
            "bicubic": resize_bicubic(to_uint8(batch["lr"]), batch["hr"].shape[-1]),
            "landmarks": heatmaps_to_landmarks(heatmaps[-1], subpixel=True) * HEATMAP_STRIDE,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the network's sizes, so that `models.dic.load_generator` can rebuild it without the configuration."""
        checkpoint["dic_config"] = dict(self.net.config)
