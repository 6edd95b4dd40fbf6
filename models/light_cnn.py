"""LightCNN-9: DIC's discriminator, and its first part the published perceptual features.

References:
    Wu et al., "A Light CNN for Deep Face Representation with Noisy Labels", IEEE TIFS 2018 (arXiv 1511.02683).
    Ma et al., CVPR 2020 (arXiv 2003.13063), section 3.4: its use with DIC.

Shapes: B batch, S side of the image.

Attribute names and indices inside the Sequentials are those of the authors' checkpoints, which load key by key.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from models.loading import DISCRIMINATOR_KIND, FEATURES_KIND, build_strictly, network_weights
from storage.checkpoints import read_checkpoint

NUM_POOLS = 4  # halvings in the features, each rounded up
FEATURE_CHANNELS = 128


class MaxFeatureMap(nn.Module):
    """A convolution or linear layer to twice the channels, then the larger of every pair of halves."""

    def __init__(self, filter: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.filter = filter

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(*self.filter(x).chunk(2, dim=1))


def _mfm(in_channels: int, out_channels: int, kernel: int) -> MaxFeatureMap:
    return MaxFeatureMap(nn.Conv2d(in_channels, 2 * out_channels, kernel, padding=kernel // 2))


class Group(nn.Module):
    """1x1 convolution without a change of width, then a 3x3 convolution, both with max-feature-map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_a = _mfm(in_channels, in_channels, 1)
        self.conv = _mfm(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv_a(x))


class LightCNNFeatures(nn.Module):
    """The convolutions of LightCNN-9."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2, ceil_mode=True)
        self.features = nn.Sequential(
            _mfm(3, 48, 5),
            pool,
            Group(48, 96),
            pool,
            Group(96, 192),
            pool,
            Group(192, 128),
            Group(128, FEATURE_CHANNELS),
            pool,
        )

    @staticmethod
    def from_checkpoint(path: str | Path) -> "LightCNNFeatures":
        """Load the published features (`LightCNN_feature.pth`), or a discriminator's, strictly; float32, eval mode."""
        weights = network_weights(read_checkpoint(path), path, FEATURES_KIND, DISCRIMINATOR_KIND)
        features = {key: value for key, value in weights.items() if key.startswith("features.")}
        return build_strictly(LightCNNFeatures, {}, features, path)

    def forward(self, image: Tensor) -> Tensor:
        """B,3,S,S float, `models.dic.normalise`d RGB -> B,128,S/16,S/16 (sides rounded up)."""
        return self.features(image)


class LightCNN(LightCNNFeatures):
    """The discriminator: one number per image, positive for real.

    Args:
        size: S, the side of the images; a multiple of 16. 128 as published.
    """

    def __init__(self, size: int = 128) -> None:
        super().__init__()
        if size < 16 or size % 16:
            raise ValueError(f"size is {size}, expected a positive multiple of 16")
        self.size = size
        inputs = FEATURE_CHANNELS * (size // 2**NUM_POOLS) ** 2
        self.classifier = nn.Sequential(MaxFeatureMap(nn.Linear(inputs, 512)), nn.LeakyReLU(0.2), nn.Linear(256, 1))

    def forward(self, image: Tensor) -> Tensor:
        """B,3,S,S float, `models.dic.normalise`d RGB -> logits B,1."""
        return self.classifier(super().forward(image).flatten(1))
