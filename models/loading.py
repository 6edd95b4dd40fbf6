"""Weights into networks: where a checkpoint keeps them, which network they belong to, and whether they fit it.

Checkpoints of this project are Lightning's: the network lies in `state_dict` under `net.`, and its arguments in
`dic_config` or `hourglass_config`. Published ones hold a plain state dict, or one under `netG`, `state_dict` or
`model`, with or without `module.` in front of the keys; the sizes are read off the weights.
"""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from storage.checkpoints import CheckpointError

WEIGHT_KEYS = ("netG", "state_dict", "model")  # where published checkpoints keep the network, first match wins
OWN_PREFIX = "net."  # what a LightningModule of this project calls its network
MODULE_PREFIX = "module."  # left by DataParallel
MAX_LISTED = 500  # characters

DIC_KIND, HOURGLASS_KIND = "a DIC generator", "a feedback hourglass"
FEATURES_KIND, DISCRIMINATOR_KIND = "the features of LightCNN", "a LightCNN discriminator"
_TELLING_KEYS = (  # the first match wins
    (("first_block.upBlocks.0.0.weight",), DIC_KIND),
    (("pre_conv_block.1.running_mean",), "a stacked hourglass with batch normalisation, which no stage here uses"),
    (("pre_conv_block.0.weight", "hg.res_center.conv_block.0.weight"), HOURGLASS_KIND),
    (("features.0.filter.weight", "classifier.2.weight"), DISCRIMINATOR_KIND),
    (("features.0.filter.weight",), FEATURES_KIND),
    (("network.layer4.0.conv1.weight", "network.fc.weight"), "an emotion classifier of this project"),
)

Net = TypeVar("Net", bound=nn.Module)


def network_weights(checkpoint: Mapping[str, object], path: str | Path, *kinds: str) -> dict[str, Tensor]:
    """Find a network's weights in a checkpoint.

    Args:
        checkpoint: from `storage.checkpoints.read_checkpoint`.
        path: where it came from, for errors.
        kinds: the networks that will do.

    Returns:
        Tensors by key, without prefix.

    Raises:
        CheckpointError: the file seems to hold another network, nothing of the kind, or tensors of whole numbers.
    """
    weights = next((checkpoint[key] for key in WEIGHT_KEYS if key in checkpoint), checkpoint)
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"checkpoint {path} holds {listed(checkpoint)}, expected weights by name, plain or under one of "
            f"{', '.join(WEIGHT_KEYS)}"
        )
    own = {key: value for key, value in weights.items() if str(key).startswith(OWN_PREFIX)}
    weights = own or weights  # beside our network lie a discriminator, metrics and so on
    prefix = OWN_PREFIX if own else MODULE_PREFIX if all(str(k).startswith(MODULE_PREFIX) for k in weights) else ""
    named = {str(key).removeprefix(prefix): value for key, value in weights.items()}
    kind = kind_of(named)
    if kind is not None and kind not in kinds:
        raise CheckpointError(f"checkpoint {path} seems to hold {kind}, expected {' or '.join(kinds)}")
    strange = [key for key, value in named.items() if not (isinstance(value, Tensor) and value.is_floating_point())]
    if strange:
        raise CheckpointError(f"checkpoint {path} holds {listed(strange)}, expected floating-point tensors only")
    return named


def kind_of(weights: Iterable[str]) -> str | None:
    """Return which network the keys seem to belong to; None if they tell nothing."""
    keys = set(weights)
    return next((kind for telling, kind in _TELLING_KEYS if keys.issuperset(telling)), None)


def shapes_of(weights: Mapping[str, Tensor], path: str | Path, kind: str, *keys: str) -> list[torch.Size]:
    """Return the shapes of the convolutions that tell a network's sizes.

    Raises:
        CheckpointError: one is missing or is no convolution.
    """
    absent = [key for key in keys if key not in weights or weights[key].ndim != 4]
    if absent:
        raise CheckpointError(f"checkpoint {path} is not {kind}; missing: {listed(absent)}; found: {listed(weights)}")
    return [weights[key].shape for key in keys]


def build_strictly(network: type[Net], config: Any, weights: Mapping[str, Tensor], path: str | Path) -> Net:
    """Build a network and load weights that must name its every parameter, with the right shape, and nothing else.

    Args:
        network: the class.
        config: its arguments, by name; from a file, so they may be anything.
        weights: tensors by key; copied, whatever their floating-point type, to float32.
        path: where they came from, for errors.

    Returns:
        The network on the CPU, in eval mode. No random number is drawn.

    Raises:
        CheckpointError: the network cannot be built, or the weights do not fit it.
    """
    try:
        with torch.device("meta"):  # shapes only: memory and initial values would be thrown away
            net = network(**config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot build {network.__name__} from {config}: {error}") from error
    copies = {key: value.detach().to(torch.float32, copy=True) for key, value in weights.items()}
    load_strictly(net, copies, path, assign=True)
    return net.eval()


def load_strictly(net: nn.Module, weights: Mapping[str, Tensor], path: str | Path, assign: bool = False) -> None:
    """Load weights that must fit a network key by key and shape by shape.

    Args:
        net: the network.
        weights: tensors by key.
        path: where they came from, for errors.
        assign: take the tensors themselves, for a network without memory of its own.

    Raises:
        CheckpointError: keys are missing or left over, or shapes differ.
    """
    try:
        net.load_state_dict(weights, assign=assign)
    except RuntimeError as error:
        problems = textwrap.shorten(str(error).partition("\n")[2], MAX_LISTED, placeholder=" ...")
        raise CheckpointError(f"checkpoint {path} does not fit {type(net).__name__}: {problems}") from error


def listed(keys: Iterable[object]) -> str:
    """Return names for a message, cut where they are many."""
    return textwrap.shorten(", ".join(map(str, keys)), MAX_LISTED, placeholder=" ...") or "nothing"
