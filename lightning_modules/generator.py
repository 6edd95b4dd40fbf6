"""What the stages of generator training share: the network, its validation, and what its checkpoint says about it.

Shapes: B batch, H = W high resolution, h = H/8 low resolution, K = 68 landmarks, T steps.
"""

from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from metrics.image_quality import psnr_rgb, psnr_y, ssim_rgb, ssim_y
from metrics.landmarks import nme_interocular
from metrics.per_image import MeanPerImage
from models.dic import DIC, denormalise, normalise
from models.heatmaps import HEATMAP_STRIDE, heatmaps_to_landmarks
from models.pretrained import start_from
from models.resampling import resize_bicubic, to_uint8
from run_state.folder import find_checkpoint


def over_ranks(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means of loss terms over all processes; with one message that no GPU waits for, unlike `sync_dist` of Lightning.

    Args:
        terms: scalars, of equally many images in every process.
    """
    values = torch.stack([value.detach().float() for value in terms.values()])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
        values = values / torch.distributed.get_world_size()
    return dict(zip(terms, values.unbind(), strict=True))


LANDMARK_METRICS = ("val/nme_interocular", "val/nme_interocular_argmax")


class LandmarkErrors(MetricCollection):
    """NME with both decoders, from heatmaps B,K,S,S and landmarks B,K,2 in pixels of the image."""

    def __init__(self) -> None:
        subpixel, argmax = (partial(_landmark_error, subpixel=choice) for choice in (True, False))
        super().__init__(
            {"nme_interocular": MeanPerImage(subpixel), "nme_interocular_argmax": MeanPerImage(argmax)},
            prefix="val/",
            compute_groups=False,  # would merge the two for good if they agreed on the first batch
        )


def _landmark_error(heatmaps: Tensor, landmarks: Tensor, subpixel: bool) -> Tensor:
    return nme_interocular(decode(heatmaps, subpixel), landmarks)


def decode(heatmaps: Tensor, subpixel: bool = True) -> Tensor:
    """Landmarks B,K,2 in pixels of the image (x, y) that heatmaps B,K,S,S show."""
    return heatmaps_to_landmarks(heatmaps, subpixel) * HEATMAP_STRIDE


def check_faces(module: L.LightningModule, data: L.LightningDataModule) -> None:
    """Refuse a data module without faces and landmarks."""
    if not hasattr(data, "hr_size"):
        raise ValueError(f"{type(module).__name__} needs a FaceLandmarkDataModule, got a {type(data).__name__}")


class GeneratorModule(L.LightningModule):
    """A DIC generator in training; subclasses say by which losses.

    Args:
        net: the generator.
        initial_weights: run folder or checkpoint of an earlier stage.
        hourglass_will_do: whether that stage may be the hourglass.
        channels_last: keep weights and images in channels-last order.
        compile: have `torch.compile` translate the network.
    """

    monitored = ("val/psnr_y", "val/ssim_y", "val/psnr_rgb", "val/ssim_rgb", *LANDMARK_METRICS)

    def __init__(
        self, net: DIC, initial_weights: str | None, hourglass_will_do: bool, channels_last: bool, compile: bool
    ) -> None:
        super().__init__()
        self._untrained = initial_weights is None
        if initial_weights is not None:
            start_from(net, find_checkpoint(initial_weights), hourglass_will_do)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.memory_format)
        if compile:
            self.net.compile()  # in place: the keys of the checkpoint stay as they are
        quality = {"psnr_y": psnr_y, "ssim_y": ssim_y, "psnr_rgb": psnr_rgb, "ssim_rgb": ssim_rgb}
        metrics: dict[str, Metric | MetricCollection] = {name: MeanPerImage(value) for name, value in quality.items()}
        self.val_quality = MetricCollection(metrics, prefix="val/", compute_groups=False)
        self.val_bicubic = MeanPerImage(psnr_y)
        self.val_landmarks = LandmarkErrors()

    def check_data(self, data: L.LightningDataModule) -> None:
        """Refuse data that this module cannot be trained with; called before anything starts."""
        check_faces(self, data)

    def forward(self, lr: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """LR images B,3,h,w in [0, 1] -> T images B,3,H,W (mean-subtracted) and T heatmaps B,K,H/4,H/4."""
        images, heatmaps = self.net(normalise(lr).contiguous(memory_format=self.memory_format))
        return images, heatmaps

    def target(self, batch: dict[str, Tensor]) -> Tensor:
        """HR faces as the losses take them: float32 B,3,H,W, mean-subtracted."""
        return normalise(batch["hr"].float() / 255).contiguous(memory_format=self.memory_format)

    def log_terms(self, terms: dict[str, Tensor]) -> None:
        """Log loss terms of this batch every `trainer.log_every_n_steps` batches."""
        self.log_dict({f"train/{name}": value for name, value in over_ranks(terms).items()})

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Update the metrics, and return what `restore` gives, for those who want to show it."""
        restored = self.restore(batch)
        self.val_quality.update(restored["marked"], batch["hr"])
        self.val_bicubic.update(restored["panels"]["bicubic"], batch["hr"])
        self.val_landmarks.update(restored["heatmaps"], batch["landmarks"])
        self.log_dict(self.val_quality)
        self.log("val/psnr_y_bicubic", self.val_bicubic)
        self.log_dict(self.val_landmarks)
        return restored

    def restore(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Enlarge a batch, rounded to 8 bits as it would be stored.

        Returns:
            What `callbacks.face_strip.FaceStrip` shows: `panels`, uint8 B,3,H,H (LR: B,3,h,h) by title; `marked`, the
            last step, uint8 B,3,H,H; `heatmaps` of the last step, B,K,H/4,H/4; `landmarks` that they show, float32
            B,K,2 in HR pixels.
        """
        with torch.autocast(self.device.type, enabled=False):  # as precise as when it is used
            images, heatmaps = self(batch["lr"])
        steps = [to_uint8(denormalise(image.float())) for image in images]
        lr = to_uint8(batch["lr"])
        panels = {"LR": lr, "bicubic": resize_bicubic(lr, batch["hr"].shape[-1])}
        panels |= {f"step {number}": step for number, step in enumerate(steps, start=1)}
        panels["HR"] = batch["hr"]
        return {"panels": panels, "marked": steps[-1], "heatmaps": heatmaps[-1], "landmarks": decode(heatmaps[-1])}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what is needed to use the network without the configuration: its sizes, and what it was shown."""
        checkpoint["dic_config"] = dict(self.net.config)
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            checkpoint["faces"] = {"hr_size": data.hr_size, "crop_margin": data.crop_margin}
