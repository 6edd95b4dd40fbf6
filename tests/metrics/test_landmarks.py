"""NME against values worked out by hand, and against golden data where it is at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.landmarks import nme_interocular

REAL_GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "dic_data.npz"  # real faces: not in the project


def _faces() -> torch.Tensor:
    """Two faces whose outer eye corners are 50 and 20 pixels apart; the next pair (37, 46) is 10 apart."""
    faces = torch.zeros(2, 68, 2)
    faces[0, 36], faces[0, 45] = torch.tensor([10.0, 20.0]), torch.tensor([40.0, 60.0])
    faces[1, 36], faces[1, 45] = torch.tensor([5.0, 5.0]), torch.tensor([25.0, 5.0])
    faces[:, 46, 0] = 10.0
    return faces


def test_nme_divides_by_the_outer_eye_corners() -> None:
    true = _faces()
    found = true.clone()
    found[:, :, 0] += 3.0
    found[:, :, 1] -= 4.0  # every point 5 pixels off
    torch.testing.assert_close(nme_interocular(found, true), torch.tensor([0.1, 0.25]))


def test_nme_averages_distances_over_points_and_faces() -> None:
    true = _faces()
    found = true.clone()
    found[0, 0, 0] += 68.0  # one point of 68, by 68 pixels: mean 1
    assert nme_interocular(found, true).tolist() == pytest.approx([1 / 50, 0])


@pytest.mark.skipif(not REAL_GOLDEN.exists(), reason="golden data of real faces is not here")
def test_nme_equals_golden() -> None:
    golden = np.load(REAL_GOLDEN)
    found, true = (torch.from_numpy(golden[key]) for key in ("noisy", "landmarks"))
    expected = golden["nme_noisy_36_45"]
    assert nme_interocular(found, true).mean().item() == pytest.approx(float(expected), rel=1e-9)


def test_undefined_nme_is_refused() -> None:
    true = _faces()
    true[1, 45] = true[1, 36]
    with pytest.raises(ValueError, match=r"face 1 of the batch.*coincide"):
        nme_interocular(true, true)
    with pytest.raises(ValueError, match=r"\(2, 68, 2\) and \(2, 5, 2\)"):
        nme_interocular(_faces(), _faces()[:, :5])
