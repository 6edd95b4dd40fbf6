"""Upscale images that are too large for one pass of DIC: in overlapping tiles, blended where they meet.

Shapes: B batch, h x w low resolution, H = 8h, W = 8w.
"""

import torch
from torch import Tensor

from models.dic import DIC, SCALE

MIN_TILE = 64  # LR pixels
_PIXELS_TIMES_CHANNELS = 3 * 2**20


def pixels_at_once(net: DIC) -> int:
    """Return how many LR pixels one pass should have: 65,536 for F 16 and G 1, 8,192 for the published network.

    They need about 3 GB of memory. Most of that are features on a grid of twice the size of the result: F channels for
    each of G groups, and those in work.
    """
    return _PIXELS_TIMES_CHANNELS // (net.config["num_features"] * (net.config["num_groups"] + 2))


def tile_side(pixels: int) -> int:
    """Return the side of a tile of about `pixels` LR pixels, a multiple of 8."""
    return max(MIN_TILE, int(pixels**0.5) // 8 * 8)


def upscale_in_tiles(net: DIC, lr: Tensor, tile: int, overlap: int = MIN_TILE // 2) -> Tensor:
    """Upscale float B,3,h,w to B,3,H,W, RGB in [0, 1]; where tiles overlap, each counts less towards its border.

    The side of a tile and the overlap are LR pixels; they, h and w are multiples of 8.
    """
    height, width = lr.shape[-2:]
    total = lr.new_zeros(*lr.shape[:2], SCALE * height, SCALE * width)
    weights = lr.new_zeros(SCALE * height, SCALE * width)
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = lr[..., top : top + tile, left : left + tile].contiguous(memory_format=torch.channels_last)
            rows, columns = (_ramp(SCALE * side, SCALE * overlap, lr.device) for side in part.shape[-2:])
            weight = rows[:, None] * columns
            place = slice(SCALE * top, SCALE * top + len(rows)), slice(SCALE * left, SCALE * left + len(columns))
            total[:, :, *place] += net.upscale(part) * weight
            weights[place] += weight
    return total.div_(weights)


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Return where the tiles along a side begin; the last one ends with the image."""
    last = max(0, side - tile)
    return [*range(0, last, tile - overlap), last]


def _ramp(length: int, overlap: int, device: torch.device) -> Tensor:
    """Return weights along a side of an upscaled tile: 1, falling over the overlap on either end."""
    place = torch.arange(length, device=device) + 0.5
    return torch.minimum(place, length - place).div(overlap).clamp(max=1)
