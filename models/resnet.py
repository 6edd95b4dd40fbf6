"""torchvision's ResNets for small gray or RGB faces, with the normalisation inside."""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import get_model

FER_MEAN, FER_STD = (0.508,), (0.255,)  # of the gray levels of FER+ training faces


class Normalised(nn.Module):
    """A network behind the normalisation of its input: float B,C,S,S in [0, 1]."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.network((image - self.mean) / self.std)


def resnet(
    arch: Literal["resnet18", "resnet34", "resnet50"], num_classes: int, in_channels: Literal[1, 3]
) -> Normalised:
    """Build an untrained ResNet whose first and last layers have as many channels and classes as given here."""
    network = get_model(arch)
    network.fc = nn.Linear(network.fc.in_features, num_classes)
    if in_channels == 1:
        old = network.conv1
        network.conv1 = nn.Conv2d(1, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
    return Normalised(network, FER_MEAN * in_channels, FER_STD * in_channels)
