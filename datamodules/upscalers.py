"""Ways to upscale 48x48 faces eightfold. The arms of the comparison differ in this and in nothing else.

To add one, write a subclass of `Upscaler` and name it in a configuration as `data.init_args.upscaler.class_path`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.bfloat16 import check_bfloat16
from models.dic import DIC, SCALE
from models.resampling import luma_bt601, round_levels
from run_state.folder import find_checkpoint

Interpolation = Literal["nearest", "bilinear", "bicubic"]

# Mean gray levels between bfloat16 and float32: good generators have 0.04, one on wrong kernels 0.6.
MOST_BY_ROUNDING = 0.25


class UpscalerError(ValueError):
    """An upscaler returned pixels that must not be used."""


class Upscaler(ABC):
    """Upscale gray faces, deterministically."""

    name: str  # of the arm, in tables and dashboards
    channels: int = 1  # of the result: 1 (gray) or 3 (RGB)
    cached: bool = False  # whether results are worth keeping on disk

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Upscale uint8 B,1,h,w to uint8 B,channels,8h,8w, on the device of `images`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a name for the cache folder that changes whenever the output does: settings, weights."""

    def check_device(self, device: torch.device) -> None:  # noqa: B027  (most have nothing to refuse)
        """Refuse a device on which the results would be wrong; called before anything starts."""


def upscale_faces(upscaler: Upscaler, images: Tensor) -> Tensor:
    """Upscale, refusing results of another type or shape than `Upscaler` promises."""
    large = upscaler(images)
    expected = (len(images), upscaler.channels, *(SCALE * side for side in images.shape[2:]))
    if large.dtype != torch.uint8 or large.shape != expected:
        found = f"{large.dtype} {tuple(large.shape)}"
        raise ValueError(f"{type(upscaler).__name__} returned {found}, expected torch.uint8 {expected}")
    return large


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep GPUs from rounding the factors of products to TF32: the pixels are the same on all devices."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class InterpolationUpscaler(Upscaler):
    """Interpolate as PyTorch does (`align_corners=False`; the bicubic kernel has a = -0.75), rounded to uint8.

    Along columns and rows in turn, as two products of matrices, which on a CPU takes a fraction of the time of
    `torch.nn.functional.interpolate`. All sums of nearest and bilinear interpolation are exact in float32.
    """

    def __init__(self, mode: Interpolation = "bilinear") -> None:
        self.mode = self.name = mode

    def fingerprint(self) -> str:
        return self.name

    def __call__(self, images: Tensor) -> Tensor:
        rows, columns = (self._weights(side).to(images.device) for side in images.shape[2:])
        with full_float32():
            return round_levels(rows @ (images.float() @ columns.T))

    @cache  # noqa: B019  (there are few sides, and upscalers live as long as the program)
    def _weights(self, side: int) -> Tensor:
        """Return what each of `side` pixels counts in each upscaled one, float32 8 side,side."""
        impulses = torch.eye(side)[None, None]
        return F.interpolate(impulses, size=(SCALE * side, side), mode=self.mode)[0, 0]


class DICUpscaler(Upscaler):
    """Upscale with the last step of a trained DIC generator.

    Args:
        checkpoint: A run folder (its best checkpoint), a checkpoint file of such a run, or one of the authors'.
        color: `gray` keeps the luma (BT.601) of the result, `rgb` all of it.
        name: Name of the arm; two generators need two names to be compared.
        precision: `bfloat16` (mixed) is faster where the hardware has it, and fills another cache.
    """

    cached = True

    def __init__(
        self,
        checkpoint: str,
        color: Literal["gray", "rgb"] = "gray",
        name: str = "dic",
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.checkpoint, self.color, self.name, self.precision = checkpoint, color, name, precision
        self.channels = 3 if color == "rgb" else 1
        self._precision_checked = False

    @cached_property
    def network(self) -> DIC:
        """The generator, read when first needed: the argument parser would bury an error."""
        return DIC.from_checkpoint(find_checkpoint(self.checkpoint)).to(memory_format=torch.channels_last)

    def fingerprint(self) -> str:
        """Hash the network's configuration and weights, the colour and the precision, but not the file's name."""
        precision = () if self.precision == "float32" else (self.precision,)
        digest = hashlib.sha256(repr((sorted(self.network.config.items()), self.color, *precision)).encode())
        for key, value in sorted(self.network.state_dict().items()):
            digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return f"dic-{digest.hexdigest()[:16]}"

    def check_device(self, device: torch.device) -> None:
        """Refuse bfloat16 on a CPU that computes a layer of the generator wrongly."""
        if self.precision == "bfloat16" and device.type == "cpu":
            check_bfloat16(self.network)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        if self.precision == "bfloat16" and not self._precision_checked:
            self.check_device(images.device)
            off = (self._upscale(images, "bfloat16") - self._upscale(images, "float32")).abs().mean().item()
            if off > MOST_BY_ROUNDING:
                raise UpscalerError(
                    f"{self.checkpoint}: faces upscaled in bfloat16 are {off:.2f} gray levels from those in float32, "
                    f"expected at most {MOST_BY_ROUNDING}; use precision float32"
                )
            self._precision_checked = True
        return round_levels(self._upscale(images, self.precision))

    def _upscale(self, images: Tensor, precision: str) -> Tensor:
        """Upscale uint8 B,1,h,w to gray levels, float32 B,channels,8h,8w."""
        self.network.to(images.device)
        faces = (images.float() / 255).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        reduced = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16")
        with reduced, full_float32():
            large = self.network.upscale(faces).float() * 255
        self.check_finite(large)
        return luma_bt601(large) if self.color == "gray" else large

    def check_finite(self, results: Tensor) -> None:
        """Refuse what a broken generator returns."""
        if not results.isfinite().all():
            raise UpscalerError(f"{self.checkpoint}: the generator returned numbers that are not finite; untrained?")
