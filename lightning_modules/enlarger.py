"""Enlarges batches of images of `datamodules.image_folder` with a trained generator.

Shapes: B batch, h x w low resolution (padded), H = 8h, W = 8w; heatmaps lie on the H/4 x W/4 grid.
"""

from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from datamodules.image_folder import Face
from models.dic import DIC, SCALE, denormalise, normalise
from models.heatmaps import HEATMAP_STRIDE, heatmaps_to_landmarks
from models.resampling import round_levels

PIXELS_AT_ONCE = 3 * 2**20  # LR pixels times channels of the features: 65,536 pixels for F 16, G 1
OVERLAP = 32  # LR pixels, a multiple of 8


class Enlarged(NamedTuple):
    """A result, on the CPU and without the padding.

    Attributes:
        face: what it was made of.
        levels: uint8 C,H,W; C is 1 for gray images and 3 for the others.
        heat: float32 H/4,W/4, the maximum over the 68 heatmaps, [0, 1]; None where heatmaps are not asked for.
        landmarks: float32 68,2, (x, y) of their peaks in pixels of `levels`; None likewise.
    """

    face: Face
    levels: Tensor
    heat: Tensor | None
    landmarks: Tensor | None


class Enlarger(L.LightningModule):
    """Predicts with a generator; gray images keep the luma (BT.601) of the result.

    A batch that does not fit into the memory of a GPU is enlarged image by image, and an image of more than
    `whole_pixels`, or one that does not fit alone, in overlapping tiles; these find no landmarks.

    Args:
        net: the generator.
        heatmaps: give heatmaps and landmarks of the last step, too, at the cost of one more pass of the hourglass.

    Attributes:
        pixels: LR pixels that a batch should have, by the size of the generator: they need 3 GB of memory if it is
            small, 8 GB if it is of the published size. Most of that are features on a grid of twice the size of the
            result: F channels for each of G groups, and two in work.
        whole_pixels: LR pixels of the largest image that is enlarged in one piece.
        finite: whether all results so far were; after one that was not, nothing is enlarged any more. No exception is
            raised, because the other processes would wait for this one.
    """

    def __init__(self, net: DIC, heatmaps: bool = False) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.heatmaps = heatmaps
        self.pixels = PIXELS_AT_ONCE // (net.config["num_features"] * (net.config["num_groups"] + 2))
        self.whole_pixels = 2 * self.pixels
        self.tile = max(2 * OVERLAP, int(self.pixels**0.5) // 8 * 8)  # its side
        self.finite = True

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Enlarge a batch.

        Returns:
            `enlarged`, a list of `Enlarged`, and `refused`, reasons by name for what is not in it.
        """
        lr, faces, refused = batch["lr"], batch["faces"], dict(batch["refused"])
        enlarged = self._enlarge(lr, faces)
        if enlarged is None:
            enlarged = []
            for row, face in enumerate(faces):
                alone = self._enlarge(lr[row : row + 1], [face])
                if alone is None and not self.heatmaps:
                    alone = self._enlarge(lr[row : row + 1], [face], in_tiles=True)
                if alone is None:
                    refused[face.task.name] = f"{face.task.width} x {face.task.height}: too large for the GPU's memory"
                enlarged += alone or []
        return {"enlarged": enlarged, "refused": refused}

    def _enlarge(self, lr: Tensor, faces: list[Face], in_tiles: bool = False) -> list[Enlarged] | None:
        """Enlarge uint8 B,3,h,w; None if the memory does not suffice."""
        if not (self.finite and faces):
            return []
        try:
            images, heatmaps = self._run(lr, in_tiles or lr.shape[-2] * lr.shape[-1] > self.whole_pixels)
        except torch.OutOfMemoryError:
            return None
        self.finite = bool(images.isfinite().all() and (heatmaps is None or heatmaps.isfinite().all()))
        if not self.finite:
            return []
        large = images * 255
        color = round_levels(large).cpu()  # B,3,H,W
        red, green, blue = large.unbind(dim=1)
        luma = round_levels(0.299 * red + 0.587 * green + 0.114 * blue)[:, None].cpu()  # B,1,H,W
        results = []
        for row, face in enumerate(faces):
            height, width = SCALE * face.task.height, SCALE * face.task.width
            levels = (luma if face.gray else color)[row, :, :height, :width]
            heat = landmarks = None
            if heatmaps is not None:  # those of the padding must not win
                inside = heatmaps[row, :, : height // HEATMAP_STRIDE, : width // HEATMAP_STRIDE]
                heat = inside.amax(dim=0).clamp(0, 1).cpu()
                landmarks = (heatmaps_to_landmarks(inside[None], subpixel=True)[0] * HEATMAP_STRIDE).cpu()
            results.append(Enlarged(face, levels, heat, landmarks))
        return results

    def _run(self, lr: Tensor, in_tiles: bool) -> tuple[Tensor, Tensor | None]:
        """Images B,3,H,W in [0, 1] and, where asked for, heatmaps B,68,H/4,W/4 of the last step."""
        faces = (lr.float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as exact on GPUs as on CPUs
            if in_tiles:
                return self._run_in_tiles(faces), None
            if not self.heatmaps:
                return self.net.upscale(faces), None
            images, heatmaps = self.net(normalise(faces))
            return denormalise(images[-1]).clamp(0, 1), heatmaps[-1]

    def _run_in_tiles(self, faces: Tensor) -> Tensor:
        """B,3,h,w -> B,3,H,W, both in [0, 1]: where tiles overlap, each counts the less the nearer its border is."""
        height, width = faces.shape[-2:]
        total = faces.new_zeros(*faces.shape[:2], SCALE * height, SCALE * width)
        weights = faces.new_zeros(SCALE * height, SCALE * width)
        for top in _starts(height, self.tile):
            for left in _starts(width, self.tile):
                tile = faces[..., top : top + self.tile, left : left + self.tile].contiguous(
                    memory_format=torch.channels_last
                )
                rows, columns = (_ramp(SCALE * side, faces.device) for side in tile.shape[-2:])
                weight = rows[:, None] * columns
                place = slice(SCALE * top, SCALE * top + len(rows)), slice(SCALE * left, SCALE * left + len(columns))
                total[:, :, *place] += self.net.upscale(tile) * weight
                weights[place] += weight
        return total.div_(weights)


def _starts(side: int, tile: int) -> list[int]:
    """Where the tiles along a side of the image begin; the last one ends with the image."""
    return [*range(0, max(0, side - tile), tile - OVERLAP), max(0, side - tile)]


def _ramp(length: int, device: torch.device) -> Tensor:
    """Weights of the pixels along a side of an enlarged tile: 1, falling over the overlap on either end."""
    place = torch.arange(length, device=device) + 0.5
    return torch.minimum(place, length - place).div(SCALE * OVERLAP).clamp(max=1)
