"""DIC at its published size: outputs of the authors' code for weights that anybody can compute.

tests/fixtures/dic_published.npz was made with pseudo-random weights that are functions of a parameter's position and
of the place inside it, so that no file of 87 MB is needed. 48 x 48 takes most of the time.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.hash_weights import published_weights
from models.dic import DIC

FIXTURES = Path(__file__).parents[1] / "fixtures"
TOLERANCE = 2e-5  # absolute; outputs are of order 1


@pytest.fixture(scope="module")
def net() -> DIC:
    with torch.device("meta"):
        net = DIC()
    net.load_state_dict(published_weights(), assign=True)
    return net.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "dic_published.npz") as arrays:
        return dict(arrays)


def _error(actual: torch.Tensor, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual.numpy() - expected).max())


@torch.no_grad()
def test_every_step_at_16(net: DIC, golden: dict[str, np.ndarray]) -> None:
    images, heatmaps = net(torch.from_numpy(golden["x16"]))
    for step in range(4):
        assert _error(images[step], golden[f"x16_sr{step}"]) < TOLERANCE
        assert _error(heatmaps[step][:, :, 1::4, 2::4], golden[f"x16_heatmap{step}_sub"]) < TOLERANCE


@torch.no_grad()
def test_last_step_at_48(net: DIC, golden: dict[str, np.ndarray]) -> None:
    images, heatmaps = net(torch.from_numpy(golden["x48"]))
    assert _error(images[3][:, :, 3::6, 5::6], golden["x48_sr3_sub"]) < TOLERANCE
    assert _error(heatmaps[3][:, :, 3::8, 5::8], golden["x48_heatmap3_sub"]) < TOLERANCE
