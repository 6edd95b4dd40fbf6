"""PSNR and SSIM as the face super-resolution literature reports them: on luma, without the border, one value per image.

Luma is Y of BT.601 YCbCr (16 ... 235), rounded to 8 bits as Matlab's `rgb2ycbcr` does, and 8 pixels at each border are
left out. The figure of a data set is the mean over its images; pooling the squared error over the set instead, as
`torchmetrics.image.PeakSignalNoiseRatio` does, gives another number (several dB lower on mixed faces).

The published DIC computes SSIM on 8-bit luma that wraps around when it is multiplied by 255, hence on inverted images
(+0.002); that slip is not followed.

Shapes: B batch; images are uint8 B,3,H,W, RGB: the metrics are defined on 8-bit images.

Sources: Rec. ITU-R BT.601; Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity,
IEEE TIP 2004.
"""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

_LUMA_WEIGHTS, _LUMA_OFFSET = (65.481, 128.553, 24.966), 16.0  # of R, G, B in [0, 1]
_WINDOW_RADIUS = 5  # of SSIM's Gaussian window, which torchmetrics cuts off at 3.5 standard deviations
BORDER = 8
SMALLEST = 2 * (BORDER + _WINDOW_RADIUS) + 1  # pixels


def luma(images: Tensor) -> Tensor:
    """Return Y of BT.601 YCbCr, whole levels 16 ... 235, of RGB images: uint8 B,3,H,W -> float64 B,1,H,W."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images are {images.dtype}, expected uint8: round them first")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}, expected RGB, (batch, 3, height, width)")
    # In float64 and divided last, or luma that lies halfway between two levels rounds to the wrong one.
    weights = torch.tensor(_LUMA_WEIGHTS, device=images.device, dtype=torch.float64).view(1, 3, 1, 1)
    return ((images * weights).sum(1, keepdim=True) / 255 + _LUMA_OFFSET).round()


def psnr_y(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB, on luma (peak 255): float32 B, infinite if they are equal.

    Raises:
        TypeError: the images are not uint8.
        ValueError: they are not B,3,H,W, their shapes differ, or they have fewer than `SMALLEST` pixels along a side.
    """
    ours, theirs = _inner_luma(prediction, target)
    return peak_signal_noise_ratio(ours, theirs, data_range=255, reduction="none", dim=(1, 2, 3)).float()


def ssim_y(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image on luma: 11 x 11 Gaussian window of sigma 1.5, population covariance.

    Equals `skimage.metrics.structural_similarity(..., gaussian_weights=True, sigma=1.5, data_range=255,
    use_sample_covariance=False)`, and Wang's Matlab code without its down-sampling. float32 B, at most 1. Raises what
    `psnr_y` does.
    """
    ours, theirs = _inner_luma(prediction, target)
    _, ssim = structural_similarity_index_measure(ours, theirs, sigma=1.5, data_range=255.0, return_full_image=True)
    inside = slice(_WINDOW_RADIUS, -_WINDOW_RADIUS)  # only where the window fits: torchmetrics continues the image
    return ssim[..., inside, inside].mean(dim=(1, 2, 3)).float()


def _inner_luma(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Check both images; return their luma without the border."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}, expected the target's, {tuple(target.shape)}"
        )
    height, width = target.shape[-2:]
    if min(height, width) < SMALLEST:
        raise ValueError(f"images are {height} x {width} pixels, expected {SMALLEST} x {SMALLEST} or more")
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    return luma(prediction)[inner], luma(target)[inner]
