"""ResNets with normalisation inside."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model

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


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_it_is_torchvisions(arch: Any) -> None:
    """Weights load key by key, and give the same numbers."""
    theirs: Any = get_model(arch, num_classes=8).eval()
    ours: Any = resnet(arch, 8, 3).network.eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image))
    fresh: Any = resnet(arch, 8, 3).network
    for weight, other in ((fresh.conv1, theirs.conv1), (fresh.layer4[0].conv1, theirs.layer4[0].conv1)):
        assert weight.weight.std().item() == pytest.approx(other.weight.std().item(), rel=0.05), "initialised alike"


def test_width() -> None:
    """Half the width is a quarter of the convolutions' cost, but for the first one's."""
    image = torch.rand(1, 1, 96, 96)
    costs = {}
    for width in (32, 64):
        with FlopCounterMode(display=False) as counter:
            assert resnet("resnet18", 8, 1, width)(image).shape == (1, 8)
        costs[width] = counter.get_total_flops()
    assert 0.25 < costs[32] / costs[64] < 0.27
    with pytest.raises(ValueError, match="width is 4, expected 8 to 512"):
        resnet("resnet18", 8, 1, 4)


def test_input_is_normalised() -> None:
    network = resnet("resnet18", 8, 1).eval()
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(image), network.network((image - 0.508) / 0.255))
