"""The losses of every training, and the features that the perceptual one compares."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss
from torchvision.models import VGG19_Weights, vgg19

from models.dic import denormalise
from models.hourglass import FeedbackHourglass
from models.resnet import IMAGENET_MEAN, IMAGENET_STD

VGG_LAYERS = 35  # up to conv5_4, without its activation


def soft_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean of -sum_k t_k log p_k, the targets mixed with the uniform distribution by `smoothing`.

    Args:
        logits: B,8.
        targets: B,8; rows are normalised to sum 1.
        smoothing: 0 to 1.
    """
    targets = targets / targets.sum(dim=1, keepdim=True)
    targets = (1 - smoothing) * targets + smoothing / targets.shape[1]
    return (-targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def multi_target_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log max_k t_k p_k: any one of the accepted classes will do (Barsoum et al., eq. 2).

    Args:
        logits: B,8.
        targets: B,8; 1 for accepted classes, 0.001 for others.
    """
    return -(targets.log() + F.log_softmax(logits, dim=1)).amax(dim=1).mean()


def heatmap_loss(heatmaps: list[Tensor], target: Tensor) -> Tensor:
    """MSE of T heatmaps B,K,S,S, summed over the steps; float32 scalar."""
    return torch.stack([mse_loss(maps.float(), target) for maps in heatmaps]).sum()


def dic_losses(
    images: list[Tensor], heatmaps: list[Tensor], target: Tensor, target_heatmaps: Tensor
) -> tuple[Tensor, Tensor]:
    """Pixel loss (L1) and heatmap loss (MSE), each summed over the steps (Ma et al., section 3.4).

    The authors' GAN stage adds the pixel loss of the last step T times instead. That is not followed: the paper's
    formula, and their own first stage, take every step once.

    Args:
        images: T images B,3,H,W, mean-subtracted.
        heatmaps: T heatmaps B,K,H/4,H/4.
        target: HR faces B,3,H,W, mean-subtracted.
        target_heatmaps: B,K,H/4,H/4.

    Returns:
        Two float32 scalars, without weights.
    """
    pixel = torch.stack([l1_loss(image.float(), target) for image in images]).sum()
    return pixel, heatmap_loss(heatmaps, target_heatmaps)


def adversarial_loss(logits: Tensor, real: bool) -> Tensor:
    """How far a discriminator's outputs are from `real`; float32 scalar.

    The discriminator minimises it for real and for generated images, the generator for its own images as real ones.
    """
    logits = logits.float()
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def perceptual_loss(features: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """L1 distance of the features of two batches of images, summed over the feature maps; float32 scalar."""
    with torch.no_grad():
        wanted = _as_list(features(target.detach()))
    pairs = zip(_as_list(features(image)), wanted, strict=True)
    return torch.stack([l1_loss(found.float(), true.float()) for found, true in pairs]).sum()


def _as_list(maps: Tensor | list[Tensor]) -> list[Tensor]:
    return maps if isinstance(maps, list) else [maps]


class HourglassFeatures(nn.Module):
    """What an hourglass sees in a face, on its H/4 x W/4 grid: edges and textures first, facial parts second."""

    def __init__(self, hourglass: FeedbackHourglass) -> None:
        super().__init__()
        self.hourglass = hourglass

    def forward(self, image: Tensor) -> list[Tensor]:
        feature = self.hourglass.pre_conv_block(image)  # B,C,H/4,W/4
        both = self.hourglass.hg(self.hourglass.compress_in(torch.cat((feature, feature), dim=1)))  # B,2C,H/4,W/4
        return [feature, both]


class VGG19Features(nn.Module):
    """conv5_4 of torchvision's VGG-19, before its activation; the weights are downloaded if they are not there yet."""

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.layers = vgg19(weights=VGG19_Weights.IMAGENET1K_V1 if pretrained else None).features[:VGG_LAYERS]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers((denormalise(image) - self.mean) / self.std)
