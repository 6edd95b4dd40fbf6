"""Feedback hourglass: 68 landmark heatmaps from a face image, with a hidden state handed from one call to the next.

References:
    Ma et al., "Deep Face Super-Resolution with Iterative Collaboration between Attentive Recovery and Landmark
    Estimation", CVPR 2020 (arXiv 2003.13063), section 3.3.
    Newell et al., "Stacked Hourglass Networks for Human Pose Estimation", ECCV 2016 (arXiv 1603.06937).

Shapes: B batch, H x W image (multiples of 64), C num_features, K num_landmarks; heatmaps lie on the H/4 x W/4 grid.

Attribute names and indices inside the Sequentials are those of the authors' checkpoints, which load key by key.
"""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.loading import HOURGLASS_KIND, build_strictly, check_size, network_weights
from storage.checkpoints import read_checkpoint

HOURGLASS_DEPTH = 4  # halvings inside the hourglass: its grid must be divisible by 2**4


class Residual(nn.Module):
    """Bottleneck residual block without normalisation; nothing follows the sum."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        middle = out_channels // 2
        self.conv_block = nn.Sequential(
            nn.Conv2d(in_channels, middle, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, middle, 3, padding=1),  # the published block has no activation after this one
            nn.Conv2d(middle, out_channels, 1),
        )
        self.skip_layer = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_block(x) + self.skip_layer(x)


class Hourglass(nn.ModuleDict):
    """One hourglass: halve four times, then double four times, with a residual block on every skip.

    The blocks are the entries of this dictionary (`res{level}_1` skip, `_2` before and `_3` after the inner level;
    level 4 is the outermost), in the order of the published parameters.
    """

    def __init__(self, channels: int) -> None:
        inwards = range(HOURGLASS_DEPTH, 0, -1)
        names = [f"res{level}_{place}" for level in inwards for place in (1, 2)]
        names += ["res_center", *(f"res{level}_3" for level in reversed(inwards))]
        super().__init__({name: Residual(channels, channels) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in range(HOURGLASS_DEPTH, 0, -1):
            skips.append(self[f"res{level}_1"](x))
            x = self[f"res{level}_2"](F.max_pool2d(x, 2))
        x = self["res_center"](x)
        for level in range(1, HOURGLASS_DEPTH + 1):
            x = self[f"res{level}_3"](x)
            x = skips.pop() + F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return x


class ConvReLU(nn.Module):
    """1x1 convolution and ReLU; a module of its own because the published keys have its level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_block(x)


class FeedbackHourglass(nn.Module):
    """Landmark estimator of DIC: an hourglass that also sees its own hidden features of the previous step.

    Args:
        num_features: C, up to 2048, width of the features and of the hidden state; a multiple of 4.
        num_landmarks: K, 68: the only set of points that the faces have.
    """

    def __init__(self, num_features: int = 256, num_landmarks: int = 68) -> None:
        super().__init__()
        self.config = dict(num_features=num_features, num_landmarks=num_landmarks)
        check_size("num_features", num_features, 4, 2048)
        if num_features % 4:
            raise ValueError(f"num_features is {num_features}, expected a multiple of 4")
        if num_landmarks != 68:
            raise ValueError(f"num_landmarks is {num_landmarks}, expected 68")
        quarter, half, full = num_features // 4, num_features // 2, num_features
        self.pre_conv_block = nn.Sequential(
            nn.Conv2d(3, quarter, 7, stride=2, padding=3),
            nn.ReLU(inplace=True),
            Residual(quarter, half),
            nn.MaxPool2d(2),
            Residual(half, half),
            Residual(half, full),
        )
        self.compress_in = nn.Conv2d(2 * full, 2 * full, 1)
        self.hg = Hourglass(2 * full)
        self.hg_conv_out = nn.Sequential(Residual(full, full), ConvReLU(full), nn.Conv2d(full, num_landmarks, 1))

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Self:
        """Load a trained hourglass, ours or the authors' (`FB_HG_68_CelebA.pth`), as `DIC.from_checkpoint` does."""
        weights = network_weights(read_checkpoint(path), path, HOURGLASS_KIND)
        num_features = weights["compress_in.weight"].shape[:1].numel() // 2
        return build_strictly(cls, {"num_features": num_features}, weights, path)

    def forward(self, image: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Estimate heatmaps; the state goes in and comes out, none is kept on the module.

        Image B,3,H,W, `models.dic.normalise`d RGB, and hidden B,C,H/4,W/4 of the previous call -> heatmaps B,K,H/4,W/4
        (about 1 at a landmark, 0 elsewhere) and the next hidden.
        """
        feature = self.pre_conv_block(image)  # B,C,H/4,W/4
        if hidden is None:
            hidden = feature
        both = self.hg(self.compress_in(torch.cat((feature, hidden), dim=1)))  # B,2C,H/4,W/4
        for_heatmaps, hidden = both.chunk(2, dim=1)
        return self.hg_conv_out(for_heatmaps), hidden
