"""Random changes of training faces with landmarks, so that a generator learns the images it will be used on.

They are drawn in the data set from (seed, epoch, index) alone, and applied to whole batches on the training device:

1. HR faces and landmarks: flip, rotation, scale, shift; heatmaps are drawn from the landmarks afterwards.
2. HR faces: gray.
3. LR images, made from these HR faces: blur, contrast, noise, JPEG, in this order. HR faces stay clean.

Shapes: B batch, H = W high resolution, h = w = H / 8 low resolution.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad
from torchvision.io import decode_jpeg, encode_jpeg

from models.heatmaps import flip_landmarks
from models.resampling import luma_bt601, round_levels

DRAWN = ("flip", "rotation", "scale", "shift_x", "shift_y", "gray", "blur", "contrast", "noise", "jpeg")

_UNMOVED = (1.0, 0.5, 0.5, 0.5, 0.5)  # draws of flip, rotation, scale and shift with which a face stays as it is

_LIMITS = {
    "flip": (0, 1), "rotation": (0, 180), "scale": (0, 0.9), "shift": (0, 0.5), "gray": (0, 1),
    "blur": (0, 5), "contrast": (0, 0.9), "noise": (0, 255), "jpeg": (1, 100),
}  # fmt: skip


class LandmarkAugmentation:
    """Random changes of faces with landmarks, drawn uniformly up to the limits given here; 0 turns a change off.

    Args:
        flip: probability of the mirror image.
        rotation: largest angle, degrees, either way.
        scale: largest relative change of size, below 1.
        shift: largest shift along each axis, as a fraction of the side.
        gray: probability of luma (BT.601) in all three channels, HR and LR; 1 for a generator that upscales gray faces.
        blur: largest standard deviation of a Gaussian blur, LR pixels.
        contrast: largest relative change of the distance from mid-gray, below 1; LR only.
        noise: largest standard deviation of Gaussian noise, the same in all channels, gray levels (0 to 255); LR only.
        jpeg: lowest JPEG quality, 1 to 100 (drawn between this and 100); LR only, coded on the CPU. None turns it off.
    """

    def __init__(
        self,
        flip: float = 0.5,
        rotation: float = 0.0,
        scale: float = 0.0,
        shift: float = 0.0,
        gray: float = 0.0,
        blur: float = 0.0,
        contrast: float = 0.0,
        noise: float = 0.0,
        jpeg: int | None = None,
    ) -> None:
        self.flip, self.rotation, self.scale, self.shift = flip, rotation, scale, shift
        self.gray, self.blur, self.contrast, self.noise, self.jpeg = gray, blur, contrast, noise, jpeg
        for name, (lowest, highest) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:  # also refuses nan
                raise ValueError(f"{name} is {value}, expected {lowest} to {highest}")

    def draw(self, seed: int, epoch: int, index: int, lr_size: int, still: bool = False) -> dict[str, Tensor]:
        """Draw what happens to one face: the same whatever is turned on. With `still` it is not mirrored or moved.

        Returns:
            `draws`: float32 10, uniform in [0, 1], in the order of `DRAWN`; with noise also `noise`: float32 1,h,h,
            standard normal.
        """
        rng = np.random.default_rng((seed, epoch, index))
        draws = rng.random(len(DRAWN)).astype(np.float32)
        if still:
            draws[: len(_UNMOVED)] = _UNMOVED
        drawn = {"draws": torch.from_numpy(draws)}
        if self.noise:
            drawn["noise"] = torch.from_numpy(rng.standard_normal((1, lr_size, lr_size), dtype=np.float32))
        return drawn

    @property
    def changes_input(self) -> bool:
        """Whether inputs are to be anything but plain reductions of colour photographs."""
        return bool(self.gray or self.blur or self.contrast or self.noise or self.jpeg is not None)

    def change_faces(self, hr: Tensor, landmarks: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Mirror, move and gray faces, uint8 B,3,H,H, with their landmarks, float32 B,68,2, as was drawn (B,10)."""
        drawn = dict(zip(DRAWN, draws.unbind(1), strict=True))
        mirrored = drawn["flip"] < self.flip
        hr = torch.where(mirrored[:, None, None, None], hr.flip(-1), hr)
        landmarks = torch.where(mirrored[:, None, None], flip_landmarks(landmarks, hr.shape[-1]), landmarks)
        if self.rotation or self.scale or self.shift:
            angle = torch.deg2rad(_around_zero(drawn["rotation"], self.rotation))
            factor = 1 + _around_zero(drawn["scale"], self.scale)
            offset = torch.stack([_around_zero(drawn[f"shift_{axis}"], self.shift) for axis in "xy"], dim=1)
            hr, landmarks = move_faces(hr, landmarks, angle, factor, offset * hr.shape[-1])
        if self.gray:
            hr = torch.where((drawn["gray"] < self.gray)[:, None, None, None], to_gray(hr), hr)
        return hr, landmarks

    def degrade(self, lr: Tensor, draws: Tensor, noise: Tensor | None) -> Tensor:
        """Degrade low-resolution images, uint8 B,3,h,h, as was drawn (B,10; noise B,1,h,h or None)."""
        drawn = dict(zip(DRAWN, draws.unbind(1), strict=True))
        levels = lr.float()
        if self.blur:
            levels = gaussian_blur(levels, drawn["blur"] * self.blur, self.blur)
        if self.contrast:
            factor = 1 + _around_zero(drawn["contrast"], self.contrast)
            levels = 127.5 + (levels - 127.5) * factor[:, None, None, None]
        if noise is not None:
            levels = levels + noise * (drawn["noise"] * self.noise)[:, None, None, None]
        lr = round_levels(levels)
        if self.jpeg is not None:
            qualities = (self.jpeg + drawn["jpeg"] * (100 - self.jpeg)).round().int().tolist()
            lr = code_as_jpeg(lr, qualities)
        return lr


def _around_zero(uniform: Tensor, limit: float) -> Tensor:
    """Numbers in [0, 1] -> [-limit, limit]."""
    return (2 * uniform - 1) * limit


def move_faces(hr: Tensor, landmarks: Tensor, angle: Tensor, factor: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate and scale faces about the centre of the image, then shift them; all in one bicubic interpolation.

    Beyond its border an image is continued by reflection, as in `datamodules.faces.cropping.crop_face`.
    Faces are uint8 B,3,H,H; landmarks B,68,2 and offsets B,2 (x, y) in HR pixels; angles B, in radians, clockwise as
    seen; factors, B, those of the size.
    """
    side = hr.shape[-1]
    centre = complex(side - 1, side - 1) / 2  # points as x + iy: one factor rotates and scales, in full precision
    turn, shift = torch.polar(factor, angle)[:, None], torch.view_as_complex(offset)[:, None]
    moved = (torch.view_as_complex(landmarks) - centre) * turn + centre + shift
    axis = torch.arange(side, device=hr.device, dtype=torch.float32)
    pixels = torch.complex(*torch.meshgrid(axis, axis, indexing="xy")).flatten()  # H*H
    origins = (pixels - centre - shift) / turn + centre  # B,H*H: where each pixel comes from
    grid = ((2 * torch.view_as_real(origins) + 1) / side - 1).unflatten(1, (side, side))  # the image spans -1 ... 1
    images = grid_sample(hr.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return round_levels(images), torch.view_as_real(moved)


def to_gray(images: Tensor) -> Tensor:
    """Put the luma of uint8 B,3,H,H images into all three channels."""
    return round_levels(luma_bt601(images.float())).expand_as(images)


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur every image, float B,C,h,h, with its own Gaussian, continued by repetition beyond the border.

    The standard deviations in pixels, B, are 0 to `largest`; 0 leaves the image as it is. As a sum over shifted images,
    the result for one image does not depend on the others of its batch.
    """
    radius = math.ceil(3 * largest)
    steps = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-(steps**2) / (2 * sigma[:, None].clamp_min(1e-3) ** 2))  # at 1e-3 the neighbours weigh nothing
    weights = (weights / weights.sum(1, keepdim=True)).T[..., None, None, None]  # one B,1,1,1 per shift
    size = images.shape[-1]
    for _ in range(2):  # along the rows, then along the columns
        padded = pad(images, [radius, radius, 0, 0], mode="replicate")
        images = torch.stack([weight * padded[..., n : n + size] for n, weight in enumerate(weights)]).sum(0).mT
    return images


def code_as_jpeg(images: Tensor, qualities: list[int]) -> Tensor:
    """Compress uint8 B,3,h,h images, each with its own quality (1 to 100), and read them again."""
    coded = [encode_jpeg(image, quality) for image, quality in zip(images.cpu(), qualities, strict=True)]
    return torch.stack([decode_jpeg(image) for image in coded]).to(images.device)
