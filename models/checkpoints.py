"""Reading foreign weights safely: what is in a file, whose network it is, and whether it fits, key by key.

Pickle can run code, so every file is read by PyTorch's restricted reader (`weights_only=True`), which admits tensors
and plain containers. The authors' DIC files also hold training records made of numpy scalars. Their two constructors
are admitted under numpy's names, but resolve to the inert stand-ins below: the records are dropped, not rebuilt.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

WEIGHT_KEYS = ("netG", "state_dict", "model")  # where published checkpoints keep the network, first match wins
MODULE_PREFIX = "module."  # left by DataParallel
MAX_LISTED_KEYS = 20

Net = TypeVar("Net", bound=nn.Module)


class CheckpointError(ValueError):
    """A weights file that is unsafe, damaged or not of the network that was asked for."""


class _IgnoredDtype:
    """Stands in for `numpy.dtype` and its subclasses while a checkpoint is read."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _ignored_scalar(*args: object) -> None:
    """Stands in for the constructor of numpy scalars: every scalar is read as None."""


_STAND_INS = [
    (_ignored_scalar, "numpy.core.multiarray.scalar"),  # as written by numpy 1
    (_ignored_scalar, "numpy._core.multiarray.scalar"),  # as written by numpy 2
    (_IgnoredDtype, "numpy.dtype"),
]


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Read a file written by `torch.save` (either format) without executing anything in it.

    Args:
        path: the file; tensors are put on the CPU.

    Returns:
        The dictionary that was saved; numpy scalars in it are replaced by None.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file asks for anything but tensors, plain containers and numpy scalars, cannot be
            read, or does not hold a dictionary.
    """
    path = Path(path)
    if not path.is_file():
        kind = "it is a folder" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"checkpoint {path}: {kind}")
    try:
        with torch.serialization.safe_globals(list(_STAND_INS)):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the reader raise almost anything
        raise CheckpointError(_why_unreadable(path, error)) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(checkpoint).__name__}; a dictionary is needed")
    return checkpoint


def _why_unreadable(path: Path, error: Exception) -> str:
    # PyTorch's own message advises weights_only=False, the one thing not to do with a file that fails here.
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return (
            f"checkpoint {path} is refused: loading it would call {refused.group(1)}, and only tensors, plain "
            "containers and numpy scalars are allowed. Nothing in it was executed"
        )
    size = path.stat().st_size
    return (
        f"checkpoint {path} ({size} bytes) cannot be read: it is not a file of torch.save, is damaged or incomplete, "
        f"or holds more than tensors, plain containers and numpy scalars ({type(error).__name__})"
    )


def network_weights(checkpoint: Mapping[str, object], path: str | Path, prefix: str | None = None) -> dict[str, Tensor]:
    """Find the network's weights in one of the published layouts.

    Args:
        checkpoint: a state dict, or a dictionary that holds one under one of WEIGHT_KEYS.
        path: where it came from, for errors.
        prefix: take the entries whose names start with this, and no others. By default all are taken, with or
            without `module.` in front.

    Returns:
        Tensors by key, without prefix.

    Raises:
        CheckpointError: if nothing of the kind is found, or anything taken is not a floating-point tensor.
    """
    weights = next((checkpoint[key] for key in WEIGHT_KEYS if key in checkpoint), checkpoint)
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"checkpoint {path} holds no weights: expected tensors by name, plain or under one of "
            f"{', '.join(WEIGHT_KEYS)}; found {_listed(checkpoint)}"
        )
    if prefix is not None:
        weights = {key: value for key, value in weights.items() if str(key).startswith(prefix)}
    strange = [key for key, value in weights.items() if not (isinstance(key, str) and _is_weight(value))]
    if strange:
        raise CheckpointError(f"checkpoint {path}: not floating-point tensors by name: {_listed(strange)}")
    if prefix is None:
        prefix = MODULE_PREFIX if all(key.startswith(MODULE_PREFIX) for key in weights) else ""
    return {key.removeprefix(prefix): value for key, value in weights.items()}


def dic_sizes(weights: Mapping[str, Tensor], path: str | Path) -> dict[str, int]:
    """Read the sizes of a DIC off its weights.

    Args:
        weights: tensors by key, from `network_weights`.
        path: where they came from, for errors.

    Returns:
        Arguments of `models.dic.DIC`, all but `num_steps`, which leaves no trace in the weights.

    Raises:
        CheckpointError: if a tensor that tells a size is missing or is no convolution.
    """
    telling = (
        "conv_in.0.weight",
        "first_block.upBlocks.0.0.weight",
        "HG.compress_in.weight",
        "HG.hg_conv_out.2.weight",
    )
    absent = [key for key in telling if key not in weights or weights[key].ndim != 4]
    if absent:
        raise CheckpointError(f"checkpoint {path} is not a DIC; missing: {_listed(absent)}; found: {_listed(weights)}")

    def count(prefix: str) -> int:  # distinct indices after the prefix; a gap among them shows in the strict loading
        return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})

    return {
        "num_features": weights["conv_in.0.weight"].shape[0] // 4,
        "num_groups": count("first_block.upBlocks."),
        "num_fusion_blocks": count("block.fusion_block.resnet."),
        "hourglass_features": weights["HG.compress_in.weight"].shape[0] // 2,
        "num_landmarks": weights["HG.hg_conv_out.2.weight"].shape[0],
    }


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
        CheckpointError: if the network cannot be built, or keys are missing or left over or shapes differ (all listed).
    """
    try:
        with torch.device("meta"):  # shapes only: memory and initial values would be thrown away
            net = network(**config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot build {network.__name__} from {config}: {error}") from error
    expected = net.state_dict()
    shared = [key for key in expected if key in weights]
    problems = {
        "missing": [key for key in expected if key not in weights],
        "left over": [key for key in weights if key not in expected],
        "of another shape": [
            f"{key} {list(weights[key].shape)} instead of {list(expected[key].shape)}"
            for key in shared
            if weights[key].shape != expected[key].shape
        ],
    }
    found = [f"{len(keys)} {what}: {_listed(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"checkpoint {path} does not fit {network.__name__}; {'; '.join(found)}")
    net.to_empty(device="cpu")
    net.load_state_dict(weights)
    return net


def _is_weight(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _listed(keys: list[str] | Mapping[str, object]) -> str:
    names = [str(key) for key in keys]
    more = f" and {len(names) - MAX_LISTED_KEYS} more" if len(names) > MAX_LISTED_KEYS else ""
    return ", ".join(names[:MAX_LISTED_KEYS]) + more if names else "nothing"
