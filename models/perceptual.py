"""Frozen networks whose features say how alike two faces look to them.

All take `models.dic.normalise`d RGB, B,3,H,W, and return feature maps.

References:
    Ma et al., CVPR 2020 (arXiv 2003.13063), section 3.4: L1 distance of LightCNN features.
    Wang et al., "ESRGAN", ECCVW 2018 (arXiv 1809.00219), section 3.2: VGG-19 before the last activation.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torchvision.models import VGG19_Weights, vgg19

from models.dic import denormalise
from models.hourglass import FeedbackHourglass

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
