"""ResNets with normalisation inside."""

from typing import Any

import pytest
import torch

from models.resnet import resnet


@pytest.mark.parametrize(
    ("arch", "parameters"), [("resnet18", 11_180_616), ("resnet34", 21_288_776), ("resnet50", 23_524_424)]
)
def test_sizes(arch: Any, parameters: int) -> None:
    """torchvision's counts with 8 outputs instead of 1000; gray saves two thirds of the first layer."""
    with torch.device("meta"):
        count = {channels: sum(p.numel() for p in resnet(arch, 8, channels).parameters()) for channels in (1, 3)}
    assert count[3] == parameters
    assert count[3] - count[1] == 2 * 64 * 7 * 7


def test_input_is_normalised() -> None:
    network = resnet("resnet18", 8, 1).eval()
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(image), network.network((image - 0.508) / 0.255))
