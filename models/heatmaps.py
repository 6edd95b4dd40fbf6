"""Landmark heatmaps and the mirror image of the 68 iBUG landmarks.

A landmark is a point (x, y) in pixels; whole numbers are pixel centres, so an image of width W spans -0.5 ... W - 0.5.
Heatmaps have a quarter of the image's resolution, and heatmap pixel u stands for image pixel 4 * u (the convention of
the published DIC, which divides landmarks by four and does not shift them by half a pixel). Mirroring a heatmap would
therefore be off by 0.75 heatmap pixels: heatmaps of a mirrored face are drawn from the mirrored landmarks.

Shapes: B batch, K landmarks, S heatmap side.

Sources: Ma et al., Deep Face Super-Resolution with Iterative Collaboration between Attentive Recovery and Landmark
Estimation, CVPR 2020 (heatmaps); Sagonas et al., 300 Faces in-the-Wild, ICCVW 2013 (the 68 points).
"""

import functools

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

HEATMAP_STRIDE = 4
NUM_LANDMARKS = 68

FLIP_INDEX: tuple[int, ...] = (
    *range(16, -1, -1),  # outline, ear to ear
    *range(26, 16, -1),  # brows
    *range(27, 31),  # bridge of the nose, on the axis
    *range(35, 30, -1),  # nostrils
    *(45, 44, 43, 42, 47, 46),  # 36-41 become the other eye: corners swap first, then the lower lid
    *(39, 38, 37, 36, 41, 40),
    *range(54, 47, -1),  # outer lip, upper edge
    *range(59, 54, -1),  # outer lip, lower edge
    *range(64, 59, -1),  # inner lip, upper edge
    *range(67, 64, -1),  # inner lip, lower edge
)
"""Point k of a mirrored face is point FLIP_INDEX[k] of the original face."""


def landmarks_to_heatmaps(landmarks: Tensor, size: int, sigma: float = 1.0) -> Tensor:
    """Draw one Gaussian per landmark, with value 1 at the (sub-pixel) landmark itself.

    float B,K,2, (x, y) in heatmap pixels, as is `sigma` -> B,K,S,S in [0, 1], S `size`. The Gaussian is the product
    of a row and a column, so 2 * S exponentials per landmark replace S * S of them.
    """
    grid = torch.arange(size, device=landmarks.device, dtype=landmarks.dtype)
    profile = torch.exp(-((grid - landmarks[..., None]) ** 2) / (2 * sigma**2))  # B,K,2,S
    return profile[..., 1, :, None] * profile[..., 0, None, :]


def heatmaps_to_landmarks(heatmaps: Tensor, subpixel: bool) -> Tensor:
    """Find the peak of every heatmap: float B,K,S,S, of any range -> float32 B,K,2, (x, y) in heatmap pixels.

    The sub-pixel decoder fits a Gaussian to the peak and its two neighbours along each axis (a parabola through their
    logarithms): exact for the heatmaps of `landmarks_to_heatmaps`, and at most half a pixel away from the peak for any
    other. Along an axis on whose border the peak lies there is no second neighbour, and the peak itself is returned.
    Without `subpixel` it is the plain arg-max.
    """
    height, width = heatmaps.shape[-2:]
    peak = heatmaps.flatten(-2).argmax(-1)
    x, y = peak % width, peak // width
    points = torch.stack((x, y), dim=-1).float()
    if not subpixel:
        return points
    logs = heatmaps.float().clamp_min(1e-6).log().flatten(-2)
    dx = _parabola_offset(logs, peak, position=x, step=1, length=width)
    dy = _parabola_offset(logs, peak, position=y, step=width, length=height)
    return points + torch.stack((dx, dy), dim=-1)


def _parabola_offset(logs: Tensor, peak: Tensor, position: Tensor, step: int, length: int) -> Tensor:
    """Vertex, relative to the peak, of the parabola along one axis; all B,K except `logs`, B,K,S*S."""
    places = torch.stack([peak - step, peak, peak + step], dim=-1).clamp(0, logs.shape[-1] - 1)
    before, centre, after = logs.gather(-1, places).unbind(-1)
    curvature = 2 * centre - before - after  # >= 0, because the centre is the maximum
    offset = (after - before) / (2 * curvature.clamp_min(1e-6))
    inside = (position > 0) & (position < length - 1)
    return torch.where(inside, offset.clamp(-0.5, 0.5), 0.0)


def upscale_heatmaps(heatmaps: Tensor) -> Tensor:
    """Interpolate heatmaps to the size of the image, pixel u to pixel 4 * u: B,C,S,S -> B,C,4S,4S."""
    size = [(length - 1) * HEATMAP_STRIDE + 1 for length in heatmaps.shape[-2:]]
    fine = interpolate(heatmaps, size=size, mode="bilinear", align_corners=True)
    rest = HEATMAP_STRIDE - 1  # of the last heatmap pixel
    return pad(fine, (0, rest, 0, rest), mode="replicate")


def flip_landmarks(landmarks: Tensor, width: int) -> Tensor:
    """Return the landmarks ...,68,2 (pixels) of the mirrored image: left and right change names, too."""
    mirrored = landmarks[..., _flip_index(landmarks.device), :]
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return mirrored


@functools.cache
def _flip_index(device: torch.device) -> Tensor:  # made once: a GPU has to wait for a copy from the host
    return torch.tensor(FLIP_INDEX, device=device)
