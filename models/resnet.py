"""torchvision's ResNets for small gray or RGB faces, with the normalisation inside."""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

# Gray level of FER+ training faces, and ImageNet's channels, which pretrained weights expect.
FER_MEAN, FER_STD = (0.508,), (0.255,)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalised(nn.Module):
    """A network behind the normalisation of its input, so that all callers pass [0, 1]."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        # In the checkpoint, so that it can be loaded into a network that was built without pretrained weights.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Float B,C,S,S in [0, 1] -> what the network makes of it."""
        return self.network((image - self.mean) / self.std)


def resnet(
    arch: Literal["resnet18", "resnet34", "resnet50"],
    num_classes: int,
    in_channels: Literal[1, 3],
    pretrained: bool = False,
) -> Normalised:
    """Build a ResNet with its own last layer; `pretrained` starts it from torchvision's default ImageNet weights.

    With one input channel (gray), the pretrained first convolution is summed over RGB such that it responds to a gray
    image as before (but for the padding at the border).
    """
    network = get_model(arch, weights=get_model_weights(arch).DEFAULT if pretrained else None)
    network.fc = nn.Linear(network.fc.in_features, num_classes)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if pretrained else (FER_MEAN * in_channels, FER_STD * in_channels)
    if in_channels == 1:
        old = network.conv1
        network.conv1 = nn.Conv2d(1, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
        if pretrained:
            mean, std = (sum(IMAGENET_MEAN) / 3,), (1.0,)
            scaled = old.weight / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
            distance = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) - mean[0]
            with torch.no_grad():
                # Gray g gives conv(sum_c w_c (g - m_c) / s_c): one channel, minus what the channels' means differ by.
                network.conv1.weight.copy_(scaled.sum(dim=1, keepdim=True))
                network.bn1.running_mean.add_((scaled * distance).sum(dim=(1, 2, 3)))
    return Normalised(network, mean, std)
