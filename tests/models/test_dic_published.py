"""DIC at its published size: outputs of the authors' code for weights that anybody can compute.

tests/fixtures/dic_published.npz was made with pseudo-random weights that are functions of a parameter's position and
of the place inside it, so that no file of 87 MB is needed. 48 x 48 takes most of the time.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.dic import DIC
from tests.models.hash_weights import hash_uniform

FIXTURES = Path(__file__).parents[1] / "fixtures"
TOLERANCE = 2e-5  # absolute; outputs are of order 1


def _deviation(key: str, shape: list[int]) -> float:
    """Return the standard deviation of a convolution's weights: He's, times the gain that keeps DIC in range."""
    if ".upBlocks." in key:
        fan_in = shape[0] * (12 / 8) ** 2
    elif key == "out.0.weight":
        fan_in = shape[0] * (8 / 4) ** 2
    else:
        fan_in = shape[1] * shape[2] * shape[3]
    gains = {
        "HG.compress_in.weight": 0.3 * 0.7,
        "conv_out.0.weight": 0.35 * 0.5,
        "HG.hg_conv_out.2.weight": 0.02 * 1.5,
        "block.compress_in.0.weight": 0.7,
    }
    gain = gains.get(key, 1.0)
    if key.startswith("HG.") and ".conv_block.3." in key:
        gain = 0.35 * 0.5
    if key.startswith("block.fusion_block.resnet") and key.endswith("res.2.weight"):
        gain = 0.5 * 0.3
    return (2.0 / fan_in) ** 0.5 * gain


def _weights() -> dict[str, torch.Tensor]:
    shapes = json.loads((FIXTURES / "dic_shapes.json").read_text())["DIC"]["state"]
    weights = {}
    for stream, (key, shape) in enumerate(shapes.items()):
        values = hash_uniform(int(np.prod(shape)), stream)
        if len(shape) == 4:
            values = values * _deviation(key, shape) * 3**0.5
        elif shape == [1]:  # slope of a PReLU
            values = (values + 1) / 2 * 0.35 + 0.05
        elif key == "HG.hg_conv_out.2.bias":
            values = values * 0.05 + 0.015
        else:
            values = values * 0.08
        weights[key] = torch.from_numpy(values.reshape(shape).astype(np.float32))
    return weights


@pytest.fixture(scope="module")
def net() -> DIC:
    with torch.device("meta"):
        net = DIC()
    net.load_state_dict(_weights(), assign=True)
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
