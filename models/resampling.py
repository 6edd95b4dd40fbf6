"""Bicubic resizing of 8-bit images as PIL does it, on any device.

Low-resolution training images must be those that PIL makes, because the published results were made with them. PIL
filters first along rows, rounds to 8 bits, then along columns, and rounds again; a plain `interpolate` of float images
does not round in between and ends up to six grey levels away. Its 8-bit path does round, but exists on CPUs only, so
the two passes are written out here.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def round_levels(images: Tensor) -> Tensor:
    """Round float gray levels, 0 to 255 (values outside are cut off), to uint8."""
    return images.round().clamp_(0, 255).to(torch.uint8)


def to_uint8(images: Tensor) -> Tensor:
    """Round float images in [0, 1] (values outside are cut off) to uint8 0-255."""
    return round_levels(images.float() * 255)


def luma_bt601(rgb: Tensor) -> Tensor:
    """Return the luma (ITU-R BT.601) of RGB images: float B,3,H,W -> B,1,H,W in the same range."""
    red, green, blue = rgb.unbind(dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def resize_bicubic(images: Tensor, size: int) -> Tensor:
    """Resize images with PIL's (antialiased, a = -0.5) bicubic filter, to larger or smaller squares.

    uint8 B,C,H,W -> uint8 B,C,size,size, within one grey level of PIL's result.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images are {images.dtype}, expected uint8")
    rows = _filter(images.float(), (images.shape[-2], size))
    return _filter(rows, (size, size)).to(torch.uint8)


def _filter(images: Tensor, size: tuple[int, int]) -> Tensor:
    """One antialiased bicubic pass, rounded to whole grey levels, still float."""
    return interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False).round_().clamp_(0, 255)
