"""Perceptual features: whose they are, and what their distance is."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vgg19

from models.dic import normalise
from models.hourglass import FeedbackHourglass
from models.losses import HourglassFeatures, VGG19Features, perceptual_loss


class Halves(nn.Module):
    """Two feature maps, the second twice the first."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, 2 * image]


def test_loss_is_the_sum_of_the_mean_distances_and_reaches_the_image_alone() -> None:
    image, target = torch.zeros(1, 3, 8, 8, requires_grad=True), torch.ones(1, 3, 8, 8, requires_grad=True)
    loss = perceptual_loss(Halves(), image, target)
    assert loss.item() == 3.0
    loss.backward()
    assert image.grad is not None and target.grad is None
    assert image.grad.sum().item() == pytest.approx(-3.0)


def test_hourglass_features_are_those_of_its_first_call() -> None:
    torch.manual_seed(0)
    hourglass, image = FeedbackHourglass(8), torch.randn(2, 3, 64, 64)
    shallow, deep = HourglassFeatures(hourglass)(image)
    heatmaps, hidden = hourglass(image)
    assert torch.equal(shallow, hourglass.pre_conv_block(image))
    assert torch.equal(deep[:, 8:], hidden) and torch.equal(hourglass.hg_conv_out(deep[:, :8]), heatmaps)


def test_vgg_sees_what_torchvision_prescribes() -> None:
    torch.manual_seed(0)
    features = VGG19Features(pretrained=False)
    reference = vgg19(weights=None)
    reference.features[:35].load_state_dict(features.layers.state_dict())
    image = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = reference.features[:35]((image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    (found,) = features(normalise(image))
    assert isinstance(features.layers[-1], nn.Conv2d) and found.shape == (1, 512, 4, 4)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
