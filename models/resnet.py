"""torchvision's ResNets for small gray or RGB faces, with the normalisation inside."""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

# Gray level of FER+ training faces, and ImageNet's channels, which pretrained weights expect.
FER_MEAN, FER_STD = (0.508,), (0.255,)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalised(nn.Module):
    """A network behind the normalisation of its input, so that everyone hands over [0, 1]."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Float B,C,S,S in [0, 1] -> logits B,num_classes."""
        return self.network((image - self.mean) / self.std)


def resnet(
    arch: Literal["resnet18", "resnet34", "resnet50"],
    num_classes: int,
    in_channels: Literal[1, 3],
    pretrained: bool = False,
) -> Normalised:
    """Builds a ResNet with its own last layer.

    Args:
        arch: Which one.
        num_classes: Outputs.
        in_channels: 1 for gray: the first convolution then has one input channel; pretrained ones are summed over RGB,
            which gives the same response to a gray image.
        pretrained: Start from torchvision's default ImageNet weights, downloading them if need be.
    """
    network = get_model(arch, weights=get_model_weights(arch).DEFAULT if pretrained else None)
    network.fc = nn.Linear(network.fc.in_features, num_classes)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if pretrained else (FER_MEAN * in_channels, FER_STD * in_channels)
    if in_channels == 1:
        old = network.conv1
        network.conv1 = nn.Conv2d(1, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
        if pretrained:
            # Gray g gives conv(sum_c w_c (g - m_c) / s_c): one channel with weight sum_c w_c / s_c; the mean is shared.
            with torch.no_grad():
                network.conv1.weight.copy_(old.weight.sum(dim=1, keepdim=True))
            mean, std = (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)
    return Normalised(network, mean, std)
