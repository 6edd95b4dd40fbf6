"""PSNR and SSIM on luma against golden values and scikit-image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics import MeanMetric

from metrics.image_quality import luma, psnr_y, ssim_y

GOLDEN = Path(__file__).parents[1] / "fixtures" / "face_goldens.npz"
REAL_GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "dic_data.npz"  # real faces: not in the project


def _nchw(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _smooth_images(seed: int, count: int = 3, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Waves, and the same with noise of a strength that differs from image to image."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 6, side)
    waves = np.sin(grid[:, None, None] * rng.uniform(0.5, 2, (count, 1, 1, 3)) + grid[:, None])
    clean = (127 + 100 * waves).astype(np.uint8)
    noise = rng.normal(0, 1, clean.shape) * np.array([2.0, 10.0, 30.0])[:count, None, None, None]
    return clean, np.clip(clean + noise, 0, 255).astype(np.uint8)


def test_equals_golden() -> None:
    golden = np.load(GOLDEN)
    a, b = _nchw(golden["image_a"][None]), _nchw(golden["image_b"][None])
    psnr, ssim = golden["psnr_ssim_rounded"]
    assert psnr_y(a, b).item() == pytest.approx(psnr, abs=1e-5)
    assert ssim_y(a, b).item() == pytest.approx(ssim, abs=1e-6)


@pytest.mark.skipif(not REAL_GOLDEN.exists(), reason="golden data of real faces is not here")
def test_equals_golden_of_a_real_face() -> None:
    golden = np.load(REAL_GOLDEN)
    a, b = _nchw(golden["img_a"]), _nchw(golden["img_b"])
    np.testing.assert_allclose(psnr_y(a, b), golden["psnr_ssim_uint8Y_correct"][:, 0], atol=1e-5)
    np.testing.assert_allclose(ssim_y(a, b), golden["psnr_ssim_uint8Y_correct"][:, 1], atol=1e-6)


def test_equals_scikit_image() -> None:
    clean, noisy = _smooth_images(0)
    ours_psnr, ours_ssim = psnr_y(_nchw(noisy), _nchw(clean)), ssim_y(_nchw(noisy), _nchw(clean))
    for row in range(len(clean)):
        x, y = (rgb2ycbcr(image[row])[..., 0].round()[8:-8, 8:-8] for image in (noisy, clean))
        assert ours_psnr[row].item() == pytest.approx(peak_signal_noise_ratio(y, x, data_range=255), abs=1e-4)
        expected = structural_similarity(
            x, y, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ours_ssim[row].item() == pytest.approx(expected, abs=1e-6)


def test_luma_of_black_white_and_red() -> None:
    pixels = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0]], dtype=torch.uint8).view(3, 3, 1, 1)
    assert luma(pixels).flatten().tolist() == [16, 235, 81]


def test_border_does_not_count() -> None:
    clean, _ = _smooth_images(1)
    spoiled = clean.copy()
    spoiled[:, :8], spoiled[:, :, -8:] = 0, 255
    assert psnr_y(_nchw(spoiled), _nchw(clean)).isinf().all()
    assert (ssim_y(_nchw(spoiled), _nchw(clean)) == 1).all()


@pytest.mark.parametrize("function", [psnr_y, ssim_y])
def test_metric_is_the_mean_over_images_however_they_are_batched(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    clean, noisy = (_nchw(images) for images in _smooth_images(2))
    accumulated = MeanMetric(nan_strategy="disable")
    accumulated.update(function(noisy[:1], clean[:1]))
    accumulated.update(function(noisy[1:], clean[1:]))
    assert accumulated.compute().item() == pytest.approx(function(noisy, clean).mean().item(), abs=1e-5)


def test_pooling_the_error_would_give_another_psnr() -> None:
    clean, noisy = (_nchw(images) for images in _smooth_images(2))
    pooled_error = (luma(noisy) - luma(clean))[..., 8:-8, 8:-8].square().mean()
    assert psnr_y(noisy, clean).mean() > 3 + 10 * torch.log10(255**2 / pooled_error)


def test_metrics_refuse_what_they_are_not_defined_on() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(TypeError, match="float32, expected uint8"):
        psnr_y(image.float(), image.float())
    with pytest.raises(ValueError, match=r"32, 32\), expected .*32, 16\)"):
        psnr_y(image, image[..., :16])
    with pytest.raises(ValueError, match=r"\(1, 1, 32, 32\), expected RGB"):
        ssim_y(image[:, :1], image[:, :1])
    with pytest.raises(ValueError, match="26 x 26 pixels, expected 27 x 27 or more"):
        ssim_y(image[..., :26, :26], image[..., :26, :26])
