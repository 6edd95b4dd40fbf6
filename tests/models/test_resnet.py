"""ResNets with normalisation inside."""

from typing import Any

import pytest
import torch
from torchvision import models

from models import resnet as module
from models.resnet import IMAGENET_MEAN, IMAGENET_STD, Normalised, resnet


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


def test_pretrained_gray_equals_pretrained_rgb_on_gray_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for ImageNet's weights, since tests download nothing."""
    torch.manual_seed(0)
    pretrained = models.resnet18()
    monkeypatch.setattr(
        module, "get_model", lambda arch, weights: models.resnet18() if weights is None else copy_of(pretrained)
    )
    gray, rgb = resnet("resnet18", 8, 1, pretrained=True).eval(), resnet("resnet18", 8, 3, pretrained=True).eval()
    rgb.network.fc.load_state_dict(gray.network.fc.state_dict())
    image = torch.rand(4, 1, 64, 64)
    torch.testing.assert_close(rgb.mean.flatten(), torch.tensor(IMAGENET_MEAN))
    torch.testing.assert_close(rgb.std.flatten(), torch.tensor(IMAGENET_STD))
    with torch.no_grad():
        first = [first_layer(net, image.expand(-1, channels, -1, -1)) for net, channels in ((gray, 1), (rgb, 3))]
    inner = [response[:, :, 4:-4, 4:-4] for response in first]  # the padding's zeros are another gray level
    torch.testing.assert_close(inner[0], inner[1], atol=1e-5, rtol=1e-4)


def first_layer(net: Normalised, image: torch.Tensor) -> torch.Tensor:
    return net.network.bn1(net.network.conv1((image - net.mean) / net.std))


def copy_of(network: torch.nn.Module) -> torch.nn.Module:
    twin = models.resnet18()
    twin.load_state_dict(network.state_dict())
    return twin
