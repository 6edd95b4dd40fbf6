"""PSNR and SSIM as the face super-resolution literature reports them: on luma, without the border, one value per image.

Luma is Y of BT.601 YCbCr (16 ... 235), rounded to 8 bits as Matlab's `rgb2ycbcr` does, and 8 pixels at each border are
left out. The figure of a data set is the mean over its images; pooling the squared error over the set instead, as
`torchmetrics.image.PeakSignalNoiseRatio` does, gives another number (several dB lower on mixed faces).
The same on RGB serves for comparison with work that reports it.

The published DIC computes SSIM on 8-bit luma that wraps around when it is multiplied by 255, hence on inverted images
(+0.002); that slip is not followed.

Shapes: B batch; images are uint8 B,3,H,W, RGB: the metrics are defined on 8-bit images.

Sources: Rec. ITU-R BT.601; Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity,
IEEE TIP 2004.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

_LUMA_WEIGHTS, _LUMA_OFFSET = (65.481, 128.553, 24.966), 16.0  # of R, G, B in [0, 1]
_WINDOW_SIZE, _WINDOW_SIGMA = 11, 1.5
BORDER = 8
SMALLEST = 2 * BORDER + _WINDOW_SIZE  # pixels


def luma(images: Tensor) -> Tensor:
    """Return Y of BT.601 YCbCr, whole levels 16 ... 235, of RGB images: uint8 B,3,H,W -> float64 B,1,H,W."""
    # In float64 and divided last, or luma that lies halfway between two levels rounds to the wrong one.
    weights = torch.tensor(_LUMA_WEIGHTS, device=images.device, dtype=torch.float64).view(1, 3, 1, 1)
    return ((_channels(images) * weights).sum(1, keepdim=True) / 255 + _LUMA_OFFSET).round()


def psnr_y(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB, on luma (peak 255): float32 B, infinite if they are equal.

    Raises:
        TypeError: the images are not uint8.
        ValueError: they are not B,3,H,W, their shapes differ, or they have fewer than `SMALLEST` pixels along a side.
    """
    return _psnr(*_inner(luma(prediction), luma(target)))


def psnr_rgb(prediction: Tensor, target: Tensor) -> Tensor:
    """As `psnr_y`, the error taken over the three channels of RGB together."""
    return _psnr(*_inner(_channels(prediction), _channels(target)))


def ssim_y(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image on luma: 11 x 11 Gaussian window of sigma 1.5, population covariance.

    Equals `skimage.metrics.structural_similarity(..., gaussian_weights=True, sigma=1.5, data_range=255,
    use_sample_covariance=False)`, and Wang's Matlab code without its down-sampling. float32 B, at most 1.
    """
    return _ssim(*_inner(luma(prediction), luma(target)))


def ssim_rgb(prediction: Tensor, target: Tensor) -> Tensor:
    """As `ssim_y`, the mean of the values of the three channels of RGB."""
    return _ssim(*_inner(_channels(prediction), _channels(target)))


def _channels(images: Tensor) -> Tensor:
    """Checked RGB images as float64 B,3,H,W."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images are {images.dtype}, expected uint8: round them first")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}, expected RGB, (batch, 3, height, width)")
    return images.double()


def _inner(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Check the shapes and cut off the border."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}, expected the target's, {tuple(target.shape)}"
        )
    height, width = target.shape[-2:]
    if min(height, width) < SMALLEST:
        raise ValueError(f"images are {height} x {width} pixels, expected {SMALLEST} x {SMALLEST} or more")
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    return prediction[inner], target[inner]


def _psnr(prediction: Tensor, target: Tensor) -> Tensor:
    error = (prediction - target).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(255.0**2 / error)).float()


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    # Variances are differences of large squares, which float32 would not resolve in flat regions; these are float64.
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (_blur(image) for image in (x, y, x * x, y * y, x * y))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = mean_xy - mean_x * mean_y
    variances = mean_xx - mean_x.square() + mean_yy - mean_y.square()
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x.square() + mean_y.square() + c1) * (variances + c2)
    return (numerator / denominator).mean(dim=(1, 2, 3)).float()


def _blur(images: Tensor) -> Tensor:
    """Filter with a Gaussian window, only where it fits: B,C,H,W -> B,C,H-10,W-10."""
    offsets = torch.arange(_WINDOW_SIZE, device=images.device, dtype=images.dtype) - _WINDOW_SIZE // 2
    window = torch.softmax(-offsets.square() / (2 * _WINDOW_SIGMA**2), dim=0)
    planes = images.flatten(0, 1)[:, None]
    blurred = conv2d(conv2d(planes, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    return blurred.unflatten(0, images.shape[:2])[:, :, 0]
