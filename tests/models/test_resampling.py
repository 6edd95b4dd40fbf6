"""Bicubic resizing and luma against PIL."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.resampling import luma_bt601, resize_bicubic, to_uint8

REAL_GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "dic_lr.npz"  # real faces: not in the project


def _noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("before", "after"), [(128, 16), (384, 48), (16, 128), (48, 384), (100, 37)])
def test_equals_pil(before: int, after: int) -> None:
    """Noise is the hardest case: without rounding between the passes it is several levels off."""
    image = _noise(before)
    expected = np.asarray(Image.fromarray(image).resize((after, after), Image.Resampling.BICUBIC)).astype(int)
    ours = resize_bicubic(torch.from_numpy(image).permute(2, 0, 1)[None], after)
    assert ours.dtype == torch.uint8
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - expected).max() <= 1


@pytest.mark.skipif(not REAL_GOLDEN.exists(), reason="golden data of real faces is not here")
def test_lr_equals_golden() -> None:
    golden = np.load(REAL_GOLDEN)
    ours = resize_bicubic(torch.from_numpy(golden["hr"]).permute(0, 3, 1, 2), 16).permute(0, 2, 3, 1).numpy()
    difference = np.abs(ours.astype(int) - golden["lr"])
    assert difference.max() <= 1
    assert difference.mean() < 0.001


def test_luma_is_that_of_pil() -> None:
    image = _noise(32)
    ours = luma_bt601(torch.from_numpy(image).permute(2, 0, 1)[None].float())[0, 0]
    assert np.abs(ours.numpy() - np.asarray(Image.fromarray(image).convert("L"))).max() < 0.51


def test_float_images_are_refused_and_rounding_is_to_nearest() -> None:
    with pytest.raises(TypeError, match=r"float32, expected uint8"):
        resize_bicubic(torch.zeros(1, 3, 8, 8), 4)
    values = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.3])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255]
