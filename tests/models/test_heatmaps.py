"""Heatmaps, their decoder and the mirror map, against golden data and against their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.heatmaps import FLIP_INDEX, HEATMAP_STRIDE, flip_landmarks, heatmaps_to_landmarks, landmarks_to_heatmaps

GOLDEN = Path(__file__).parents[1] / "fixtures" / "face_goldens.npz"  # synthetic points, some outside the image
REAL_GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "dic_data.npz"  # real faces: not in the project


def _random_points(low: float, high: float) -> torch.Tensor:
    return torch.rand(4, 68, 2, generator=torch.Generator().manual_seed(0)) * (high - low) + low


def test_heatmaps_equal_golden() -> None:
    golden = np.load(GOLDEN)
    landmarks = torch.from_numpy(golden["landmarks"]).float()[None]
    heatmaps = landmarks_to_heatmaps(landmarks / HEATMAP_STRIDE, 32)[0].numpy()
    assert np.abs(heatmaps - golden["heatmaps"]).max() < 1e-6
    peaks = heatmaps_to_landmarks(torch.from_numpy(golden["heatmaps"])[None], subpixel=False)[0].numpy()
    clear = ~golden["tie"]
    assert clear.sum() > 50
    np.testing.assert_array_equal(peaks[clear], golden["peak_points"][clear])


@pytest.mark.skipif(not REAL_GOLDEN.exists(), reason="golden data of real faces is not here")
def test_heatmaps_equal_golden_of_real_faces() -> None:
    golden = np.load(REAL_GOLDEN)
    heatmaps = landmarks_to_heatmaps(torch.from_numpy(golden["landmarks"]).float() / 4, 32)
    assert np.abs(heatmaps.numpy() - golden["heatmaps"]).max() < 1e-6


def test_heatmap_is_the_two_dimensional_gaussian() -> None:
    point = torch.tensor([[[10.3, 4.75]]])
    heatmap = landmarks_to_heatmaps(point, 16, sigma=1.5)[0, 0]
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    expected = torch.exp(-((x - 10.3) ** 2 + (y - 4.75) ** 2) / (2 * 1.5**2))
    torch.testing.assert_close(heatmap, expected, atol=1e-6, rtol=0)


def test_flip_index_equals_golden_and_is_an_involution() -> None:
    assert list(FLIP_INDEX) == np.load(GOLDEN)["flip_index"].tolist()
    assert [FLIP_INDEX[FLIP_INDEX[k]] for k in range(68)] == list(range(68))


def test_subpixel_decoder_is_exact_inside_the_heatmap() -> None:
    points = _random_points(0.6, 30.4)
    found = heatmaps_to_landmarks(landmarks_to_heatmaps(points, 32), subpixel=True)
    assert (found - points).abs().max() < 1e-3
    plain = heatmaps_to_landmarks(landmarks_to_heatmaps(points, 32), subpixel=False)
    torch.testing.assert_close(plain, points.round())


def test_decoder_stays_within_half_a_pixel_of_any_peak() -> None:
    noise = torch.randn(3, 68, 8, 8, generator=torch.Generator().manual_seed(1))
    found = heatmaps_to_landmarks(noise, subpixel=True)
    assert (found - heatmaps_to_landmarks(noise, subpixel=False)).abs().max() <= 0.5
    flat = heatmaps_to_landmarks(torch.zeros(1, 68, 8, 8), subpixel=True)
    assert flat.isfinite().all()


def test_decoder_does_not_mix_rows_at_the_border() -> None:
    heatmap = torch.zeros(1, 1, 4, 4)
    heatmap[0, 0, 1, 3], heatmap[0, 0, 2, 0] = 1.0, 0.9  # neighbours in memory, not in the picture
    assert heatmaps_to_landmarks(heatmap, subpixel=True)[0, 0].tolist() == [3.0, 1.0]


def test_mirroring_moves_points_and_exchanges_sides() -> None:
    points = _random_points(0, 127)
    mirrored = flip_landmarks(points, width=128)
    assert mirrored[0, 36, 0].item() == pytest.approx(127 - points[0, 45, 0].item())  # outer eye corners
    assert mirrored[0, 36, 1].item() == points[0, 45, 1].item()
    torch.testing.assert_close(flip_landmarks(mirrored, width=128), points)
