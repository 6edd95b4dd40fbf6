"""Wrong bfloat16 kernels are noticed, wherever they are, and right ones are not suspected."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.bfloat16 import check_bfloat16
from models.dic import DIC
from models.hourglass import FeedbackHourglass
from models.resnet import resnet

NETWORKS = {
    "demo": lambda: DIC(num_features=8, num_steps=2, num_groups=1, num_fusion_blocks=1, hourglass_features=8),
    "hourglass": lambda: FeedbackHourglass(8),
    "resnet": lambda: resnet("resnet18", 8, 3),
}


def break_in_bfloat16(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Has a convolution return zeros where it is asked for bfloat16."""
    convolve = getattr(F, name)

    def wrong(image: Tensor, *args: object, **settings: object) -> Tensor:
        result = convolve(image, *args, **settings)
        return result * 0 if image.dtype == torch.bfloat16 else result

    monkeypatch.setattr(F, name, wrong)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_wrong_convolutions_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is the gradient of the other: a network needs both to be right."""
    break_in_bfloat16(monkeypatch, name)
    with torch.backends.mkldnn.flags(enabled=False):
        for layer in (nn.Conv2d(4, 6, 8, stride=4, padding=2), nn.ConvTranspose2d(4, 6, 8, stride=4, padding=2)):
            with pytest.raises(ValueError, match=r"computes 0 \(Conv.*wrongly in bfloat16: start with ONEDNN_MAX_CPU"):
                check_bfloat16(nn.Sequential(layer))
        check_bfloat16(nn.Conv2d(4, 6, 3, padding=1))  # no stride: known to be right everywhere


@pytest.mark.parametrize("name", NETWORKS)
def test_right_convolutions_are_not_suspected(name: str) -> None:
    networks = NETWORKS[name](), nn.Conv2d(4, 6, (3, 5), stride=(2, 1), groups=2)
    before = torch.get_rng_state()
    with torch.backends.mkldnn.flags(enabled=False):
        for network in networks:
            check_bfloat16(network)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_processor_computes_right_or_is_refused() -> None:
    """Gradients included; the library is that of this machine."""
    torch.manual_seed(0)
    for channels, kernel, stride, padding in ((8, 12, 8, 2), (8, 8, 4, 2), (16, 4, 4, 0), (32, 8, 4, 2)):
        layer = nn.Conv2d(channels, channels, kernel, stride, padding, bias=False)
        try:
            check_bfloat16(layer)
        except ValueError:
            continue
        weight = layer.weight.detach().bfloat16()
        image = torch.randn(2, channels, 48, 48).bfloat16()
        results = []
        for dtype in (torch.bfloat16, torch.float32):
            given = image.to(dtype, copy=True).requires_grad_()
            output = F.conv2d(given, weight.to(dtype), None, stride, padding)
            output.backward(torch.ones_like(output))
            results.append((output.detach().float(), given.grad.float()))  # type: ignore[union-attr]
        for rounded, exact in zip(*results, strict=True):
            assert (rounded - exact).norm() < 0.05 * exact.norm(), layer
