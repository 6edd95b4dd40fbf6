"""Weights into networks: where a checkpoint keeps them, which network they belong to, and whether they fit it.

Checkpoints of this project are Lightning's: the network lies in `state_dict` under `net.`. Published ones hold a plain
state dict, or one under `netG`, `state_dict` or `model`, with or without `module.` in front of the keys. The sizes of
a network are read off its weights; the number of steps, which leaves no trace in them, is in our `dic_config`.
"""

import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from storage.checkpoints import CheckpointError

WEIGHT_KEYS = ("netG", "state_dict", "model")  # where published checkpoints keep the network, first match wins
OWN_PREFIX = "net."  # what a LightningModule of this project calls its network
MODULE_PREFIX = "module."  # left by DataParallel
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_LISTED = 3  # of the keys in a message

DIC_KIND, HOURGLASS_KIND = "a DIC generator", "a feedback hourglass"
FEATURES_KIND, DISCRIMINATOR_KIND = "the features of LightCNN", "a LightCNN discriminator"
_TELLING_KEYS = (  # the first match wins
    (("conv_in.0.weight", "first_block.upBlocks.0.0.weight", "HG.compress_in.weight"), DIC_KIND),
    (("pre_conv_block.1.running_mean",), "a stacked hourglass with batch normalisation, which no stage here uses"),
    (("pre_conv_block.0.weight", "compress_in.weight"), HOURGLASS_KIND),
    (("features.0.filter.weight", "classifier.2.weight"), DISCRIMINATOR_KIND),
    (("features.0.filter.weight",), FEATURES_KIND),
    (("network.layer4.0.conv1.weight", "network.fc.weight"), "an emotion classifier of this project"),
)

Net = TypeVar("Net", bound=nn.Module)


def network_weights(checkpoint: Mapping[str, object], path: str | Path, *kinds: str) -> dict[str, Tensor]:
    """Return the weights of a network of one of these kinds by key, without prefix; they are finite, plain numbers."""
    weights = next((checkpoint[key] for key in WEIGHT_KEYS if key in checkpoint), checkpoint)
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        expected = f"weights by name, plain or under one of {', '.join(WEIGHT_KEYS)}"
        raise CheckpointError(f"checkpoint {path} holds {_listed(checkpoint)}, expected {expected}")
    own = {key: value for key, value in weights.items() if str(key).startswith(OWN_PREFIX)}
    weights = own or weights  # beside our network lie a discriminator, metrics and so on
    prefix = OWN_PREFIX if own else MODULE_PREFIX if all(str(k).startswith(MODULE_PREFIX) for k in weights) else ""
    named = {str(key).removeprefix(prefix): value for key, value in weights.items()}
    kind = kind_of(named)
    if kind not in kinds:
        found = kind or _listed(named)
        raise CheckpointError(f"checkpoint {path} seems to hold {found}, expected {' or '.join(kinds)}")
    strange = [key for key, value in named.items() if not _is_plain(value)]
    if strange:
        expected = "finite floating-point tensors that are stored in full"
        raise CheckpointError(f"checkpoint {path} holds {_listed(strange)}, expected {expected}")
    return named


def _is_plain(value: object) -> bool:
    """Return whether this is a tensor of finite numbers that are all there: not sparse, nor a huge view of a few."""
    if not isinstance(value, Tensor) or value.dtype not in DTYPES or value.layout is not torch.strided:
        return False
    if value.is_nested or value.is_meta or value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return False
    return bool(value.float().isfinite().all())


def kind_of(weights: Iterable[str]) -> str | None:
    """Return which network the keys seem to belong to; None if they tell nothing."""
    keys = set(weights)
    return next((kind for telling, kind in _TELLING_KEYS if keys.issuperset(telling)), None)


def check_size(name: str, value: object, least: int, most: int) -> None:
    """Refuse a size of a network that is no integer or out of bounds: files ask for it, too."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {reprlib.repr(value)}, expected an integer from {least} to {most}")


def build_strictly(network: type[Net], config: dict[str, Any], weights: Mapping[str, Tensor], path: str | Path) -> Net:
    """Build a network from its arguments and load weights that fit it: on the CPU, in float32, in eval mode.

    No random number is drawn. Weights that do not name all parameters and nothing else raise CheckpointError.
    """
    try:
        with torch.device("meta"):  # shapes only: initial values would be thrown away
            net = network(**config)
    except Exception as error:
        raise CheckpointError(f"checkpoint {path}: cannot build {network.__name__}: {error}") from error
    load_strictly(net, weights, path)
    return net.eval()


def load_strictly(net: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Load weights that must fit key by key and shape by shape, or raise CheckpointError; on the CPU if on meta."""
    wanted, found = ({key: list(value.shape) for key, value in one.items()} for one in (net.state_dict(), weights))
    problems = [
        f"{key} ({found.get(key, 'missing')}, expected {wanted.get(key, 'nothing')})"
        for key in wanted | found
        if wanted.get(key) != found.get(key)
    ]
    if problems:
        raise CheckpointError(f"checkpoint {path} does not fit {type(net).__name__}: {_listed(problems)}")
    if any(parameter.is_meta for parameter in net.parameters()):  # memory is taken for weights that fit
        net.to_empty(device="cpu")
    net.load_state_dict(weights)


def _listed(words: Iterable[object]) -> str:
    """Name the first few of many, each in at most 80 characters."""
    texts = [text if len(text) <= 80 else f"{text[:77]}..." for text in map(str, words)]
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + more or "nothing"
