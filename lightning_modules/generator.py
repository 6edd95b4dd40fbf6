"""What the stages of generator training share: data, metrics, the generator and its validation.

Shapes: B batch, H = W high resolution, h = H/8 low resolution, K = 68 landmarks, T steps.
"""

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_modules.base import Optimization, Task
from metrics.image_quality import psnr_y, ssim_y
from metrics.landmarks import nme_interocular
from models.dic import DIC, denormalise, normalise
from models.heatmaps import HEATMAP_STRIDE, heatmaps_to_landmarks
from models.loading import DIC_KIND, HOURGLASS_KIND, kind_of, load_strictly, network_weights
from models.resampling import resize_bicubic, to_uint8
from run_state.folder import find_checkpoint
from storage.checkpoints import CheckpointError, read_checkpoint

PUBLISHED = Optimization(lr=1e-4, schedule="multistep", milestones=(10_000, 20_000, 40_000, 80_000))
QUALITY = {"psnr_y": psnr_y, "ssim_y": ssim_y}
LANDMARK_METRICS = {"nme_interocular": True, "nme_interocular_argmax": False}  # whether peaks are sub-pixel
KINDS = {"initial_weights": DIC_KIND, "hourglass_weights": HOURGLASS_KIND}  # what each option takes


def decode(heatmaps: Tensor, subpixel: bool = True) -> Tensor:
    """Return the landmarks B,K,2 in pixels of the image (x, y) that heatmaps B,K,S,S show."""
    return heatmaps_to_landmarks(heatmaps, subpixel) * HEATMAP_STRIDE


def load_weights(net: nn.Module, option: str, run: str) -> None:
    """Load the network of an earlier stage from a run folder or a checkpoint, ours or the authors'.

    Raises:
        FileNotFoundError: there is no checkpoint.
        storage.checkpoints.CheckpointError: the file is unsafe or damaged, or holds another network.
    """
    path = find_checkpoint(run)
    weights = network_weights(read_checkpoint(path), path, *KINDS.values())
    kind = kind_of(weights)
    if kind not in (KINDS[option], None):
        other = next(name for name, taken in KINDS.items() if taken == kind)
        raise CheckpointError(f"model.{option} is {path}, {kind}, expected {KINDS[option]}; model.{other} takes {kind}")
    load_strictly(net, weights, path)


class FaceTask(Task):
    """A network in training on faces with landmarks; `metrics` are means over the faces of the validation set."""

    def __init__(self, net: nn.Module, metrics: Iterable[str], optimizer: Optimization, compile: bool) -> None:
        super().__init__()
        self.optimizer = optimizer
        # A broken network has to show: NaN counts.
        self.means = nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in metrics})
        self.net: Any = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self.net.compile()  # in place: the keys of the checkpoint stay as they are

    def check(self, data: L.LightningDataModule, trainer: L.Trainer) -> None:
        if not hasattr(data, "hr_size"):
            raise ValueError(f"data is a {type(data).__name__}, expected a FaceLandmarkDataModule")
        super().check(data, trainer)

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        """Log losses of a batch, averaged over ranks in one all-reduce that no GPU waits for, unlike `sync_dist`."""
        values = torch.stack([value.detach().float() for value in losses.values()])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(values)
            values = values / torch.distributed.get_world_size()
        self.log_dict({f"train/{name}": value for name, value in zip(losses, values.unbind(), strict=True)})

    def log_faces(self, values: dict[str, Tensor], heatmaps: Tensor, landmarks: Tensor) -> None:
        """Add one value per face, float B, to each metric, and the landmark errors of the heatmaps."""
        errors = {name: nme_interocular(decode(heatmaps, sub), landmarks) for name, sub in LANDMARK_METRICS.items()}
        for name, value in (values | errors).items():
            mean: Any = self.means[name]
            mean.update(value)
            self.log(f"val/{name}", mean)


class GeneratorTask(FaceTask):
    """A DIC generator in training; subclasses say by which losses."""

    monitored = {f"val/{name}": "max" for name in QUALITY} | {f"val/{name}": "min" for name in LANDMARK_METRICS}

    def __init__(self, net: DIC, initial_weights: str | None, optimizer: Optimization, compile: bool) -> None:
        super().__init__(net, (*QUALITY, "psnr_y_bicubic", *LANDMARK_METRICS), optimizer, compile)
        self.untrained = initial_weights is None
        if initial_weights is not None:
            load_weights(self.net, "initial_weights", initial_weights)

    def forward(self, lr: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """LR images B,3,h,w in [0, 1] -> T images B,3,H,W (mean-subtracted) and T heatmaps B,K,H/4,H/4."""
        return self.net(normalise(lr).contiguous(memory_format=torch.channels_last))

    def target(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the HR faces as the losses take them: float32 B,3,H,W, mean-subtracted."""
        return normalise(batch["hr"].float() / 255).contiguous(memory_format=torch.channels_last)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Update the metrics; return what `restore` gives, for callbacks that draw it."""
        restored = self.restore(batch)
        values = {name: metric(restored["marked"], batch["hr"]) for name, metric in QUALITY.items()}
        values["psnr_y_bicubic"] = psnr_y(restored["panels"]["bicubic"], batch["hr"])
        self.log_faces(values, restored["heatmaps"], batch["landmarks"])
        return restored

    def restore(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Upscale a batch, rounded to 8 bits as it would be stored.

        Returns:
            What `callbacks.face_strip.FaceStrip` shows: `panels`, uint8 B,3,H,H (LR: B,3,h,h) by title; `marked`, the
            last step, uint8 B,3,H,H; its `heatmaps`, B,K,H/4,H/4, and their `landmarks`, float32 B,K,2 in HR pixels.
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
        """Store what using the network takes: its sizes, and how its training faces were cropped."""
        checkpoint["dic_config"] = dict(self.net.config)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["faces"] = {"hr_size": data.hr_size, "crop_margin": data.crop_margin}
