"""The losses of every training, and the features that the perceptual one compares."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss, relu
from torchvision.models import VGG19_Weights, vgg19

from models.dic import denormalise
from models.hourglass import FeedbackHourglass


def soft_cross_entropy(logits: Tensor, targets: Tensor, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Mean of -sum_k w_k t_k log p_k, the targets mixed with the uniform distribution by ``smoothing``.

    Args:
        logits: B,8.
        targets: B,8; rows are normalised to sum 1.
        weight: 8 class weights, or None.
        smoothing: 0 to 1.
    """
    targets = targets / targets.sum(dim=1, keepdim=True)
    targets = (1 - smoothing) * targets + smoothing / targets.shape[1]
    terms = -targets * F.log_softmax(logits, dim=1)
    return (terms if weight is None else terms * weight).sum(dim=1).mean()


def multi_target_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log max_k t_k p_k: any one of the accepted classes will do (Barsoum et al., eq. 2).

    Args:
        logits: B,8.
        targets: B,8; 1 for accepted classes, 0.001 for others.
    """
    return -(targets.log() + F.log_softmax(logits, dim=1)).amax(dim=1).mean()


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
    heatmap = torch.stack([mse_loss(maps.float(), target_heatmaps) for maps in heatmaps]).sum()
    return pixel, heatmap


GANLoss = Literal["vanilla", "least_squares", "hinge"]


def discriminator_loss(kind: GANLoss, logits: Tensor, real: bool) -> Tensor:
    """How wrong the discriminator is about images that are all real or all generated; float32 scalar."""
    logits = logits.float()
    if kind == "hinge":
        return relu(1 - logits if real else 1 + logits).mean()
    return _distance(kind, logits, real)


def generator_loss(kind: GANLoss, logits: Tensor) -> Tensor:
    """How far generated images are from passing for real; float32 scalar."""
    logits = logits.float()
    if kind == "hinge":
        return -logits.mean()
    return _distance(kind, logits, real=True)


def _distance(kind: GANLoss, logits: Tensor, real: bool) -> Tensor:
    wanted = torch.full_like(logits, float(real))
    if kind == "vanilla":
        return binary_cross_entropy_with_logits(logits, wanted)
    return (logits - wanted).square().mean()


VGG_LAYERS = 35  # up to conv5_4, without its activation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class HourglassFeatures(nn.Module):
    """What a hourglass sees in a face, on its H/4 x W/4 grid: edges and textures first, facial parts second.

    Args:
        hourglass: usually that of the generator itself, which knows faces and needs no file.
    """

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

    def forward(self, image: Tensor) -> list[Tensor]:
        mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return [self.layers((denormalise(image) - mean) / std)]


def perceptual_loss(features: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """L1 distance of the features of two batches of images, summed over the feature maps; float32 scalar."""
    with torch.no_grad():
        wanted = _as_list(features(target.detach()))
    pairs = zip(_as_list(features(image)), wanted, strict=True)
    return torch.stack([l1_loss(found.float(), true.float()) for found, true in pairs]).sum()


def _as_list(found: Tensor | list[Tensor]) -> list[Tensor]:
    return found if isinstance(found, list) else [found]
