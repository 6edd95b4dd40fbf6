"""ResNets for small gray or RGB faces, with the normalisation inside.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; blocks and names are torchvision's.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

Arch = Literal["resnet18", "resnet34", "resnet50"]
_ARCHITECTURES: dict[Arch, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
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


class ResNet(nn.Module):
    """torchvision's ResNet, whose first stage may be narrower than 64 channels; names and weights are the same.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks in each of the four stages.
        width: channels of the first stage (before a bottleneck's expansion); every further one has twice as many.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], depths: list[int], num_classes: int, in_channels: int, width: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = [width, *(width * 2**number * block.expansion for number in range(4))]
        self.layer1 = _stage(block, inputs[0], width, depths[0], stride=1)
        self.layer2 = _stage(block, inputs[1], 2 * width, depths[1], stride=2)
        self.layer3 = _stage(block, inputs[2], 4 * width, depths[2], stride=2)
        self.layer4 = _stage(block, inputs[3], 8 * width, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs[4], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Float B,in_channels,S,S -> logits B,num_classes."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(image))))  # B,width,S/4,S/4
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))  # B,8 width,S/32,S/32
        return self.fc(self.avgpool(features).flatten(1))


def _stage(block: type[BasicBlock | Bottleneck], channels: int, planes: int, depth: int, stride: int) -> nn.Sequential:
    outputs = planes * block.expansion
    shortcut = None
    if stride > 1 or channels != outputs:
        shortcut = nn.Sequential(nn.Conv2d(channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = block(channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(outputs, planes) for _ in range(depth - 1)))


def resnet(arch: Arch, num_classes: int, in_channels: Literal[1, 3], width: int = 64) -> Normalised:
    """Build an untrained ResNet for that many classes; a ResNet-18 of width 32 costs a quarter of one of width 64."""
    if not 8 <= width <= 512:
        raise ValueError(f"width is {width}, expected 8 to 512")
    network = ResNet(*_ARCHITECTURES[arch], num_classes, in_channels, width)
    return Normalised(network, FER_MEAN * in_channels, FER_STD * in_channels)
