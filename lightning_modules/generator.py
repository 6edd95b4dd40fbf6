"""What the stages of generator training share: faces as data, their metrics, the generator, and its validation.

Shapes: B batch, H = W high resolution, h = H/8 low resolution, K = 68 landmarks, T steps.
"""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_modules.base import Task
from lightning_modules.optimization import Optimization
from metrics.image_quality import psnr_rgb, psnr_y, ssim_rgb, ssim_y
from metrics.landmarks import nme_interocular
from models.dic import DIC, denormalise, normalise
from models.heatmaps import HEATMAP_STRIDE, heatmaps_to_landmarks
from models.loading import DIC_KIND, HOURGLASS_KIND, kind_of, load_strictly, network_weights
from models.resampling import resize_bicubic, to_uint8
from run_state.folder import find_checkpoint
from storage.checkpoints import CheckpointError, read_checkpoint

PUBLISHED = Optimization(lr=1e-4, schedule="multistep", milestones=(10_000, 20_000, 40_000, 80_000))
QUALITY = {"psnr_y": psnr_y, "ssim_y": ssim_y, "psnr_rgb": psnr_rgb, "ssim_rgb": ssim_rgb}
LANDMARK_METRICS = ("nme_interocular", "nme_interocular_argmax")
KINDS = {"initial_weights": DIC_KIND, "hourglass_weights": HOURGLASS_KIND}  # what each option takes


def over_ranks(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average loss terms over ranks in one all-reduce, which no GPU waits for, unlike `sync_dist` of Lightning.

    Args:
        terms: scalars, of equally many images on every rank.
    """
    values = torch.stack([value.detach().float() for value in terms.values()])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
        values = values / torch.distributed.get_world_size()
    return dict(zip(terms, values.unbind(), strict=True))


def decode(heatmaps: Tensor, subpixel: bool = True) -> Tensor:
    """Return the landmarks B,K,2 in pixels of the image (x, y) that heatmaps B,K,S,S show."""
    return heatmaps_to_landmarks(heatmaps, subpixel) * HEATMAP_STRIDE


def landmark_errors(heatmaps: Tensor, landmarks: Tensor) -> dict[str, Tensor]:
    """Return the NME of each face with both decoders, float B by name; `landmarks` B,K,2 in pixels of the image."""
    decoded = (decode(heatmaps, subpixel) for subpixel in (True, False))
    return {name: nme_interocular(points, landmarks) for name, points in zip(LANDMARK_METRICS, decoded, strict=True)}


def load_weights(net: nn.Module, option: str, run: str) -> None:
    """Load the network of an earlier stage.

    Args:
        net: what is to be trained.
        option: which of `KINDS` asks for it.
        run: a run folder or a checkpoint, of this project or of the authors.

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
    """A training on faces with landmarks; metrics are means over the faces of the validation set.

    Args:
        metrics: their names without `val/`.
        optimizer: optimiser and schedule.
    """

    def __init__(self, metrics: tuple[str, ...], optimizer: Optimization) -> None:
        super().__init__()
        self.optimizer = optimizer
        # A broken network has to show: NaN counts.
        self.means = nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in metrics})

    def check(self, data: L.LightningDataModule, trainer: L.Trainer) -> None:
        if not hasattr(data, "hr_size"):
            raise ValueError(f"data is a {type(data).__name__}, expected a FaceLandmarkDataModule")
        super().check(data, trainer)

    def log_faces(self, values: dict[str, Tensor]) -> None:
        """Add one value per face, float B, to each metric."""
        for name, value in values.items():
            mean: Any = self.means[name]
            mean.update(value)
            self.log(f"val/{name}", mean)


class GeneratorTask(FaceTask):
    """A DIC generator in training; subclasses say by which losses.

    Args:
        net: the generator.
        initial_weights: run folder or checkpoint of a generator.
        optimizer: optimiser and schedule.
        compile: have `torch.compile` translate the network.
    """

    monitored = tuple(f"val/{name}" for name in (*QUALITY, *LANDMARK_METRICS))

    def __init__(self, net: DIC, initial_weights: str | None, optimizer: Optimization, compile: bool) -> None:
        super().__init__((*QUALITY, "psnr_y_bicubic", *LANDMARK_METRICS), optimizer)
        self.untrained = initial_weights is None
        if initial_weights is not None:
            load_weights(net, "initial_weights", initial_weights)
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self.net.compile()  # in place: the keys of the checkpoint stay as they are

    def forward(self, lr: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """LR images B,3,h,w in [0, 1] -> T images B,3,H,W (mean-subtracted) and T heatmaps B,K,H/4,H/4."""
        images, heatmaps = self.net(normalise(lr).contiguous(memory_format=torch.channels_last))
        return images, heatmaps

    def target(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the HR faces as the losses take them: float32 B,3,H,W, mean-subtracted."""
        return normalise(batch["hr"].float() / 255).contiguous(memory_format=torch.channels_last)

    def log_terms(self, terms: dict[str, Tensor]) -> None:
        """Log loss terms of this batch every `trainer.log_every_n_steps` batches."""
        self.log_dict({f"train/{name}": value for name, value in over_ranks(terms).items()})

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Update the metrics, and return what `restore` gives, for callbacks that draw it."""
        restored = self.restore(batch)
        bicubic = {"psnr_y_bicubic": psnr_y(restored["panels"]["bicubic"], batch["hr"])}
        quality = {name: metric(restored["marked"], batch["hr"]) for name, metric in QUALITY.items()}
        self.log_faces(quality | bicubic | landmark_errors(restored["heatmaps"], batch["landmarks"]))
        return restored

    def restore(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Upscale a batch, rounded to 8 bits as it would be stored.

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
        """Store what using the network takes: its sizes, and how its training faces were cropped."""
        checkpoint["dic_config"] = dict(self.net.config)
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            checkpoint["faces"] = {"hr_size": data.hr_size, "crop_margin": data.crop_margin}
