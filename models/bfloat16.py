"""Whether this processor's library computes a network right in bfloat16.

oneDNN's AMX kernels compute some strided convolutions of few channels (seen: 8 to 24, stride 4 and more) wrongly by
100 %, and say nothing (PyTorch 2.15); its other kernels are right.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

TOLERANCE = 0.05  # of the relative error: rounding alone gives less than 0.01


@torch.no_grad()
def check_bfloat16(network: nn.Module) -> None:
    """Refuse with a ValueError a network some layer of which the CPU computes wrongly in bfloat16.

    Compares every distinct strided convolution and its transpose, each of which is the other's gradient, with float32
    on random numbers, in some hundredths of a second. The global random state is left alone.
    """
    generator, seen = torch.Generator().manual_seed(0), set()
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or max(layer.stride) == 1:
            continue
        shape, settings = layer.weight.shape, (layer.stride, layer.padding, layer.groups)
        if (shape, settings) in seen:
            continue
        seen.add((shape, settings))
        weight = torch.randn(shape, generator=generator).bfloat16()
        side = 4 * max(layer.kernel_size)
        for convolve, channels in ((F.conv2d, shape[1] * layer.groups), (F.conv_transpose2d, shape[0])):
            image = torch.randn(2, channels, side, side, generator=generator).bfloat16()
            options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
            exact = convolve(image.float(), weight.float(), **options)
            error = (convolve(image, weight, **options).float() - exact).norm() / exact.norm()
            if not error <= TOLERANCE:  # which a NaN is not, either
                raise ValueError(
                    f"this processor's library computes {name} ({layer}) wrongly in bfloat16: start with "
                    "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16, or use float32"
                )
