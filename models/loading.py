"""Weights into networks: where a checkpoint keeps them, whose they are, and whether they fit, key by key.

Checkpoints of this project are Lightning's: the network lies in `state_dict` under `net.`, and its arguments in
`dic_config` or `hourglass_config`. Published ones hold a plain state dict, or one under `netG`, `state_dict` or
`model`, with or without `module.` in front of the keys; the sizes are read off the weights.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from storage.checkpoints import CheckpointError

WEIGHT_KEYS = ("netG", "state_dict", "model")  # where published checkpoints keep the network, first match wins
OWN_PREFIX = "net."  # what a LightningModule of this project calls its network
MODULE_PREFIX = "module."  # left by DataParallel
MAX_LISTED_KEYS = 20

DIC_KIND, HOURGLASS_KIND = "a DIC generator", "a feedback hourglass"
FEATURES_KIND, DISCRIMINATOR_KIND = "the features of LightCNN", "a LightCNN discriminator"
_TELLING_KEYS = (  # the first match wins
    (("first_block.upBlocks.0.0.weight",), DIC_KIND),
    (("pre_conv_block.1.running_mean",), "a stacked hourglass with batch normalisation, which no stage here uses"),
    (("pre_conv_block.0.weight", "hg.res_center.conv_block.0.weight"), HOURGLASS_KIND),
    (("features.0.filter.weight", "classifier.2.weight"), DISCRIMINATOR_KIND),
    (("features.0.filter.weight",), FEATURES_KIND),
    (("features.0.weight", "classifier.6.weight"), "a VGG network of torchvision"),
    (("layer4.0.conv1.weight", "fc.weight"), "a ResNet classifier"),
    (("network.layer4.0.conv1.weight", "network.fc.weight"), "an emotion classifier of this project"),
)

Net = TypeVar("Net", bound=nn.Module)


def network_weights(checkpoint: Mapping[str, object], path: str | Path, *kinds: str) -> dict[str, Tensor]:
    """Find a network's weights in a checkpoint.

    Args:
        checkpoint: from `storage.checkpoints.read_checkpoint`.
        path: where it came from, for errors.
        kinds: what network is needed; any of these.

    Returns:
        Tensors by key, without prefix.

    Raises:
        CheckpointError: the file seems to hold another network, nothing of the kind, or tensors of whole numbers.
    """
    weights = next((checkpoint[key] for key in WEIGHT_KEYS if key in checkpoint), checkpoint)
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"checkpoint {path} holds no weights: expected tensors by name, plain or under one of "
            f"{', '.join(WEIGHT_KEYS)}; found {listed(checkpoint)}"
        )
    own = {key: value for key, value in weights.items() if str(key).startswith(OWN_PREFIX)}
    weights = own or weights  # beside our network lie a discriminator, metrics and so on
    prefix = OWN_PREFIX if own else MODULE_PREFIX if all(str(k).startswith(MODULE_PREFIX) for k in weights) else ""
    found = {str(key).removeprefix(prefix): value for key, value in weights.items()}
    seems = kind_of(found)
    if seems is not None and seems not in kinds:
        raise CheckpointError(f"checkpoint {path} seems to hold {seems}; needed is {' or '.join(kinds)}")
    strange = [key for key, value in found.items() if not (isinstance(value, Tensor) and value.is_floating_point())]
    if strange:
        raise CheckpointError(f"checkpoint {path}: not floating-point tensors by name: {listed(strange)}")
    return found


def kind_of(weights: Iterable[str]) -> str | None:
    """What network the keys seem to belong to; None if they tell nothing."""
    keys = set(weights)
    return next((kind for telling, kind in _TELLING_KEYS if keys.issuperset(telling)), None)


def _shapes(weights: Mapping[str, Tensor], path: str | Path, kind: str, telling: dict[str, int]) -> list[torch.Size]:
    """Shapes of the tensors that tell a network's sizes: ``telling`` gives their numbers of dimensions."""
    absent = [key for key, ndim in telling.items() if key not in weights or weights[key].ndim != ndim]
    if absent:
        raise CheckpointError(f"checkpoint {path} is not {kind}; missing: {listed(absent)}; found: {listed(weights)}")
    return [weights[key].shape for key in telling]


def dic_sizes(weights: Mapping[str, Tensor], path: str | Path) -> dict[str, int]:
    """Arguments of `models.dic.DIC`, read off its weights: all but `num_steps`, which leaves no trace in them.

    Raises:
        CheckpointError: if a tensor that tells a size is missing or is no convolution.
    """
    telling = (
        "conv_in.0.weight",
        "first_block.upBlocks.0.0.weight",
        "HG.compress_in.weight",
        "HG.hg_conv_out.2.weight",
    )
    conv_in, _, compress_in, heatmaps = _shapes(weights, path, DIC_KIND, dict.fromkeys(telling, 4))

    def count(prefix: str) -> int:  # distinct indices after the prefix; a gap among them shows in the strict loading
        return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})

    return {
        "num_features": conv_in[0] // 4,
        "num_groups": count("first_block.upBlocks."),
        "num_fusion_blocks": count("block.fusion_block.resnet."),
        "hourglass_features": compress_in[0] // 2,
        "num_landmarks": heatmaps[0],
    }


def hourglass_sizes(weights: Mapping[str, Tensor], path: str | Path) -> dict[str, int]:
    """Arguments of `models.hourglass.FeedbackHourglass`, read off its weights.

    Raises:
        CheckpointError: if a tensor that tells a size is missing or is no convolution.
    """
    telling = dict.fromkeys(("compress_in.weight", "hg_conv_out.2.weight"), 4)
    compress_in, heatmaps = _shapes(weights, path, HOURGLASS_KIND, telling)
    return {"num_features": compress_in[0] // 2, "num_landmarks": heatmaps[0]}


def build_strictly(network: type[Net], config: Any, weights: Mapping[str, Tensor], path: str | Path) -> Net:
    """Build a network and load weights that must name its every parameter, with the right shape, and nothing else.

    Args:
        network: the class.
        config: its arguments, by name; from a file, so they may be anything.
        weights: tensors by key; copied, whatever their floating-point type, to float32.
        path: where they came from, for errors.

    Returns:
        The network on the CPU. No random number is drawn.

    Raises:
        CheckpointError: if the network cannot be built, or keys are missing or left over or shapes differ.
    """
    try:
        with torch.device("meta"):  # shapes only: memory and initial values would be thrown away
            net = network(**config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot build {network.__name__} from {config}: {error}") from error
    check_fit(net, weights, path)
    net.to_empty(device="cpu")
    net.load_state_dict(weights)
    return net


def load_strictly(net: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Load weights into an existing network; they must fit it exactly.

    Raises:
        CheckpointError: if keys are missing or left over or shapes differ; the network is then as before.
    """
    check_fit(net, weights, path)
    net.load_state_dict(weights)


def check_fit(net: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that do not fit a network key by key and shape by shape."""
    expected = net.state_dict()
    problems = {
        "missing": [key for key in expected if key not in weights],
        "left over": [key for key in weights if key not in expected],
        "of another shape": [
            f"{key} {list(weights[key].shape)} instead of {list(expected[key].shape)}"
            for key in expected
            if key in weights and weights[key].shape != expected[key].shape
        ],
    }
    found = [f"{len(keys)} {what}: {listed(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"checkpoint {path} does not fit {type(net).__name__}; {'; '.join(found)}")


def listed(keys: Iterable[object]) -> str:
    """Names for a message, cut where they are many."""
    names = [str(key) for key in keys]
    more = f" and {len(names) - MAX_LISTED_KEYS} more" if len(names) > MAX_LISTED_KEYS else ""
    return ", ".join(names[:MAX_LISTED_KEYS]) + more if names else "nothing"
