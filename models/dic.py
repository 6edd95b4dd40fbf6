"""DIC, Deep Iterative Collaboration: upscales a face eightfold while finding its landmarks, each step helping the next.

Reference:
    Ma et al., "Deep Face Super-Resolution with Iterative Collaboration between Attentive Recovery and Landmark
    Estimation", CVPR 2020 (arXiv 2003.13063); code Maclory/Deep-Iterative-Collaboration (MIT).

Shapes: B batch, h x w low resolution (multiples of 8), H = 8h and W = 8w high resolution, K = 68 landmarks, T steps,
F num_features, G num_groups. Recurrent features and heatmaps lie on the 2h x 2w grid, "high" features inside a block on
16h x 16w.

Attribute names and indices inside the Sequentials are those of the authors' checkpoints, which load key by key.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.hourglass import FeedbackHourglass
from models.loading import DIC_KIND, build_strictly, check_size, network_weights
from storage.checkpoints import read_checkpoint

SCALE = 8
SIDE_MULTIPLE = 8  # the hourglass halves the 2h x 2w grid four times
RGB_MEAN = (0.509, 0.424, 0.378)  # of the authors' training faces, RGB in [0, 1]

# Facial parts that the fusion attends to, in the published order, as ranges of the 68 iBUG points (0-based).
PARTS_68 = {"left_eye": (36, 42), "right_eye": (42, 48), "nose": (27, 36), "mouth": (48, 68), "outline": (0, 27)}
NUM_PARTS = len(PARTS_68)
MIN_PEAK = 0.05  # weaker heatmaps are not amplified to full strength


def normalise(image: Tensor) -> Tensor:
    """Subtract the training mean: B,3,H,W float RGB in [0, 1] -> what DIC and its hourglass take."""
    if not image.is_floating_point():
        raise TypeError(f"image is {image.dtype}, expected floating-point numbers in [0, 1]")
    return image - _rgb_mean(image)


def denormalise(image: Tensor) -> Tensor:
    """Add the training mean back: B,3,H,W as DIC gives it -> RGB, about [0, 1], not clamped."""
    return image + _rgb_mean(image)


def _rgb_mean(image: Tensor) -> Tensor:
    # Filled on the device: a GPU would have to wait for a copy from the host.
    return torch.cat([image.new_full((1, 1, 1, 1), value) for value in RGB_MEAN], dim=1)


def attention_maps(heatmaps: Tensor) -> Tensor:
    """Merge landmark heatmaps into one map per facial part (before the softmax over parts).

    Every heatmap is scaled to a peak of 1 (less if its peak is below MIN_PEAK), then the points of a part are summed:
    B,68,2h,2w -> B,5,2h,2w, not clamped; differentiable, so that the image loss also trains the landmarks.
    """
    peaks = heatmaps.amax(dim=(2, 3), keepdim=True).clamp(min=MIN_PEAK)  # B,K,1,1
    scaled = heatmaps / peaks
    return torch.stack([scaled[:, start:stop].sum(dim=1) for start, stop in PARTS_68.values()], dim=1)


class PReLU(nn.PReLU):
    """PReLU that, on a CPU, overwrites its input unless a gradient needs it; this halves the memory of an upscaling.

    A few rows at a time stay in the cache: PyTorch's own PReLU cannot work in place.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        for rows in x.split(8, dim=2):
            rows.copy_(super().forward(rows))
        return x


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel, stride, padding), PReLU())


def _deconv(channels: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(channels, channels, kernel, stride, padding), PReLU())


class Merge(nn.Sequential):
    """1x1 convolution and PReLU of several feature maps, as if they had been concatenated along their channels.

    The convolution of a concatenation is the sum of the convolutions of its parts. Summing them in place is faster than
    copying the parts together, and a training keeps no copies.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 1), PReLU())

    def forward(self, parts: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """Feature maps B,C,y,x, whose C add up to in_channels -> B,out_channels,y,x."""
        weight, bias, _ = self.parameters()
        batch, _, height, width = parts[0].shape
        pixels = [part.movedim(1, -1).flatten(0, -2) for part in parts]  # Byx,C: views if memory is channels_last
        dtype = parts[0].dtype  # autocast skips operations in place
        matrices = weight.flatten(1).t().to(dtype).split([part.shape[1] for part in parts])  # C,out_channels
        total = torch.addmm(bias.to(dtype), pixels[0], matrices[0])
        for values, matrix in zip(pixels[1:], matrices[1:], strict=True):
            total.addmm_(values, matrix)
        return self[1](total.view(batch, height, width, -1).movedim(-1, 1))


class GroupedResidual(nn.Module):
    """Two 3x3 convolutions that keep the facial parts apart (one group each), plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=NUM_PARTS),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, groups=NUM_PARTS),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res(x)


class AttentiveFusion(nn.Module):
    """One expert per facial part; at every pixel the landmarks decide how much each contributes (paper, eq. 5)."""

    def __init__(self, num_features: int, num_blocks: int) -> None:
        super().__init__()
        channels = NUM_PARTS * num_features
        self.conv_in = nn.Sequential(nn.Conv2d(num_features, channels, 1), nn.LeakyReLU(0.2, inplace=True))
        self.resnet = nn.Sequential(*(GroupedResidual(channels) for _ in range(num_blocks)))

    def forward(self, x: Tensor, attention: Tensor) -> Tensor:
        """Fuse x (B,F,2h,2w) under attention (B,5,2h,2w, before the softmax) into B,F,2h,2w."""
        experts = self.resnet(self.conv_in(x)).chunk(NUM_PARTS, dim=1)  # 5 x B,F,2h,2w
        weights = attention.softmax(dim=1).to(x.dtype).split(1, dim=1)  # 5 x B,1,2h,2w
        return sum(weight * expert for weight, expert in zip(weights, experts, strict=True))


class FeedbackBlock(nn.Module):
    """G densely connected pairs of up- and down-projection (SRFBN's feedback block, Li et al., CVPR 2019)."""

    def __init__(self, in_channels: int, num_features: int, num_groups: int) -> None:
        super().__init__()
        widths = [num_features * count for count in range(2, num_groups + 1)]
        self.compress_in = Merge(in_channels, num_features)
        self.upBlocks = nn.ModuleList(_deconv(num_features, 12, 8, padding=2) for _ in range(num_groups))
        self.downBlocks = nn.ModuleList(_conv(num_features, num_features, 12, 8, padding=2) for _ in range(num_groups))
        self.uptranBlocks = nn.ModuleList(Merge(width, num_features) for width in widths)
        self.downtranBlocks = nn.ModuleList(Merge(width, num_features) for width in widths)
        self.compress_out = Merge(num_groups * num_features, num_features)

    def forward(self, x: Tensor) -> Tensor:
        """B,in_channels,2h,2w -> B,F,2h,2w."""
        return self.project(self.compress_in((x,)))

    def project(self, x: Tensor) -> Tensor:
        """Everything after `compress_in`: B,F,2h,2w -> B,F,2h,2w.

        A training repeats the up-projections on its way back: they are cheap beside what they would have to keep.
        """
        low = [x]  # on 2h x 2w
        high: list[Tensor] = []  # on 16h x 16w: most of the cost of the network
        for group, (up, down) in enumerate(zip(self.upBlocks, self.downBlocks, strict=True)):
            dense = x if group == 0 else self.uptranBlocks[group - 1](low)
            high.append(checkpoint(up, dense, use_reentrant=False, preserve_rng_state=False))
            dense = high[0] if group == 0 else self.downtranBlocks[group - 1](high)
            low.append(down(dense))
        return self.compress_out(low[1:])


class GuidedFeedbackBlock(FeedbackBlock):
    """Feedback block of the later steps: takes the hidden state in and is guided by the landmarks."""

    def __init__(self, num_features: int, num_groups: int, num_fusion_blocks: int) -> None:
        super().__init__(2 * num_features, num_features, num_groups)
        self.fusion_block = AttentiveFusion(num_features, num_fusion_blocks)

    def forward(self, x: Tensor, hidden: Tensor, attention: Tensor) -> Tensor:  # type: ignore[override]
        """Features and hidden state B,F,2h,2w, attention B,5,2h,2w -> next hidden state B,F,2h,2w."""
        fused = self.fusion_block(self.compress_in((x, hidden)), attention)
        return self.project(fused)


class DIC(nn.Module):
    """Iterative face super-resolution x8 with landmark feedback.

    No state is kept between calls. Weights start from PyTorch's default initialisation: with the authors' Kaiming
    initialisation the heatmaps grow several hundredfold per step.

    Args:
        num_features: F, up to 1024.
        num_steps: T, up to 16, collaborations between recovery and landmarks; the parameters are shared, so it may
            differ between training and use.
        num_groups: G, up to 32, projection pairs in a feedback block.
        num_fusion_blocks: up to 64, residual blocks of the attentive fusion.
        hourglass_features: width of the hourglass.
        num_landmarks: K, 68: the attention maps are defined by the iBUG points.
    """

    def __init__(
        self,
        num_features: int = 48,
        num_steps: int = 4,
        num_groups: int = 6,
        num_fusion_blocks: int = 7,
        hourglass_features: int = 256,
        num_landmarks: int = 68,
    ) -> None:
        super().__init__()
        self.config = dict(num_features=num_features, num_steps=num_steps, num_groups=num_groups)
        self.config |= dict(num_fusion_blocks=num_fusion_blocks, hourglass_features=hourglass_features)
        self.config |= dict(num_landmarks=num_landmarks)
        check_size("num_features", num_features, 1, 1024)
        check_size("num_steps", num_steps, 1, 16)
        check_size("num_groups", num_groups, 1, 32)
        check_size("num_fusion_blocks", num_fusion_blocks, 0, 64)
        self.num_steps = num_steps
        self.conv_in = nn.Sequential(nn.Conv2d(3, 4 * num_features, 3, padding=1), PReLU(), nn.PixelShuffle(2))
        self.first_block = FeedbackBlock(num_features, num_features, num_groups)
        self.block = GuidedFeedbackBlock(num_features, num_groups, num_fusion_blocks)
        self.out = _deconv(num_features, 8, stride=4, padding=2)
        self.conv_out = nn.Sequential(nn.Conv2d(num_features, 3, 3, padding=1))
        self.HG = FeedbackHourglass(hourglass_features, num_landmarks)

    @classmethod
    def from_checkpoint(cls, path: str | Path, num_steps: int | None = None) -> Self:
        """Load a trained generator strictly, of this project or published by the authors; nothing is executed.

        Args:
            path: a checkpoint (see `models.loading`); its averaged weights if the training kept them.
            num_steps: T; None takes that of the training, or the authors' 4 where the file does not record it.

        Returns:
            The network on the CPU, float32, in eval mode.

        Raises:
            FileNotFoundError: there is no such file.
            storage.checkpoints.CheckpointError: the file is unsafe or damaged, or does not hold a DIC.
        """
        checkpoint = read_checkpoint(path)
        weights = network_weights(checkpoint, path, DIC_KIND)
        if num_steps is None:
            recorded = checkpoint.get("dic_config", {"num_steps": 4})
            num_steps = recorded.get("num_steps") if isinstance(recorded, dict) else None  # which `DIC` refuses
        return build_strictly(cls, _sizes(weights) | {"num_steps": num_steps}, weights, path)

    @classmethod
    def from_official(cls, path: str | Path, num_steps: int = 4) -> Self:
        """Load a published checkpoint as `from_checkpoint` does, in training mode like any new module."""
        return cls.from_checkpoint(path, num_steps).train()

    def forward(self, lr: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the images and heatmaps of all steps.

        B,3,h,w float, `normalise`d RGB -> T images B,3,H,W (mean-subtracted, like the input), T heatmaps B,K,2h,2w.
        """
        _check_shape(lr)
        return self._iterate(lr, last_heatmaps=True)

    def upscale(self, image: Tensor) -> Tensor:
        """Upscale eightfold: the last step only, without the hourglass pass that no longer reaches the image.

        B,3,h,w float RGB in [0, 1] -> B,3,H,W float RGB, clamped to [0, 1].
        """
        _check_shape(image)  # first: subtracting the mean would turn a gray image into three channels
        images, _ = self._iterate(normalise(image), last_heatmaps=False)
        return denormalise(images[-1]).clamp(0, 1)

    def _iterate(self, lr: Tensor, last_heatmaps: bool) -> tuple[list[Tensor], list[Tensor]]:
        base = F.interpolate(lr, scale_factor=SCALE, mode="bilinear", align_corners=False)  # B,3,H,W
        features = self.conv_in(lr)  # B,F,2h,2w
        hidden = self.first_block(features)  # B,F,2h,2w
        hourglass_hidden = None
        images: list[Tensor] = []
        heatmaps: list[Tensor] = []
        for step in range(self.num_steps):
            if step > 0:
                hidden = self.block(features, hidden, attention_maps(heatmaps[-1]))
            images.append(base + self.conv_out(self.out(hidden)))
            if step < self.num_steps - 1 or last_heatmaps:
                step_heatmaps, hourglass_hidden = self.HG(images[-1], hourglass_hidden)
                heatmaps.append(step_heatmaps)
        return images, heatmaps


def _check_shape(lr: Tensor) -> None:
    if lr.ndim != 4 or lr.shape[1] != 3:
        raise ValueError(f"image has shape {tuple(lr.shape)}, expected a batch of RGB images, B,3,h,w")
    height, width = lr.shape[2:]
    if height % SIDE_MULTIPLE or width % SIDE_MULTIPLE or 0 in (height, width):
        raise ValueError(f"image is {height}x{width}, expected sides that are multiples of {SIDE_MULTIPLE}")


def _sizes(weights: dict[str, Tensor]) -> dict[str, int]:
    """Read the arguments of `DIC` off its weights: all but `num_steps`, which leaves no trace in them."""

    def count(prefix: str) -> int:  # distinct indices after the prefix; a gap among them shows in the strict loading
        return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})

    return {
        "num_features": weights["conv_in.0.weight"].shape[:1].numel() // 4,
        "num_groups": count("first_block.upBlocks."),
        "num_fusion_blocks": count("block.fusion_block.resnet."),
        "hourglass_features": weights["HG.compress_in.weight"].shape[:1].numel() // 2,
    }
