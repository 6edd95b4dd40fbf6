"""The losses of every training, and the features that the perceptual one compares."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss

from models.hourglass import FeedbackHourglass

HEATMAP_WEIGHT = 0.1  # as published; the pixel loss has weight 1


def soft_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean of -sum_k t_k log p_k, the targets mixed with the uniform distribution by `smoothing`, 0 to 1.

    Logits B,8; targets B,8, whose rows are normalised to sum 1.
    """
    targets = targets / targets.sum(dim=1, keepdim=True)
    targets = (1 - smoothing) * targets + smoothing / targets.shape[1]
    return (-targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def multi_target_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log max_k t_k p_k: any one of the accepted classes will do (Barsoum et al., eq. 2).

    Logits B,8; targets B,8, 1 for accepted classes, 0.001 for others.
    """
    return -(targets.log() + F.log_softmax(logits, dim=1)).amax(dim=1).mean()


def heatmap_loss(heatmaps: list[Tensor], target: Tensor) -> Tensor:
    """Landmark loss: MSE of T heatmaps B,K,S,S, summed over the steps; float32 scalar."""
    return torch.stack([mse_loss(maps.float(), target) for maps in heatmaps]).sum()


def dic_losses(
    images: list[Tensor], heatmaps: list[Tensor], target: Tensor, target_heatmaps: Tensor
) -> tuple[Tensor, Tensor]:
    """Pixel loss (L1) and heatmap loss (MSE), each summed over the T steps (Ma et al., section 3.4), not yet weighted.

    Images B,3,H,W, mean-subtracted, and heatmaps B,K,H/4,H/4; float32 scalars. The authors' GAN stage adds the pixel
    loss of the last step T times instead, against the paper and their own first stage; that is not followed.
    """
    pixel = torch.stack([l1_loss(image.float(), target) for image in images]).sum()
    return pixel, heatmap_loss(heatmaps, target_heatmaps)


def adversarial_loss(logits: Tensor, real: bool) -> Tensor:
    """Cross-entropy of a discriminator's logits with `real`; the generator takes its own images for real ones."""
    logits = logits.float()
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def perceptual_loss(features: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """L1 distance of the features of two batches of images, summed over the feature maps; float32 scalar."""
    with torch.no_grad():
        wanted = features(target.detach())
    maps = features(image)
    pairs = zip(maps, wanted, strict=True) if isinstance(maps, list) else [(maps, wanted)]
    return torch.stack([l1_loss(ours.float(), theirs.float()) for ours, theirs in pairs]).sum()


class HourglassFeatures(nn.Module):
    """What an hourglass sees in a face, on its H/4 x W/4 grid: edges and textures first, facial parts second."""

    def __init__(self, hourglass: FeedbackHourglass) -> None:
        super().__init__()
        self.hourglass = hourglass

    def forward(self, image: Tensor) -> list[Tensor]:
        feature = self.hourglass.pre_conv_block(image)  # B,C,H/4,W/4
        both = self.hourglass.hg(self.hourglass.compress_in(torch.cat((feature, feature), dim=1)))  # B,2C,H/4,W/4
        return [feature, both]
