"""Weights that a file claims to hold: built only if they are plain, finite, of a sane size, and fit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.dic import DIC
from models.hourglass import FeedbackHourglass
from storage.checkpoints import CheckpointError

State = dict[str, Tensor]


def _refusal(path: Path, change: Callable[[State], object], **more: object) -> str:
    """What is said of a generator's checkpoint whose weights `change` has altered."""
    net = DIC(4, 2, 2, 1, 8)
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    change(state)
    torch.save({"state_dict": state, "dic_config": net.config} | more, path)
    with pytest.raises(CheckpointError) as refusal:
        DIC.from_checkpoint(path)
    return str(refusal.value)


@pytest.mark.parametrize("steps", [0, 17, 10**12, True, 2.0, "2", None, torch.tensor(2), [2]])
def test_a_file_says_a_sane_number_of_steps(tmp_path: Path, steps: object) -> None:
    message = _refusal(tmp_path / "dic.ckpt", lambda state: None, dic_config={"num_steps": steps})
    assert message.endswith(f"cannot build DIC: num_steps is {steps!r}, expected an integer from 1 to 16")


@pytest.mark.parametrize("config", [None, 3, "x", {}, torch.zeros(2)])
def test_a_description_that_is_none(tmp_path: Path, config: object) -> None:
    assert "num_steps is None, expected" in _refusal(tmp_path / "dic.ckpt", lambda state: None, dic_config=config)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_features": 1025}, "num_features is 1025, expected an integer from 1 to 1024"),
        ({"num_groups": 33}, "num_groups is 33, expected an integer from 1 to 32"),
        ({"num_fusion_blocks": 65}, "num_fusion_blocks is 65, expected an integer from 0 to 64"),
        ({"hourglass_features": 2052}, "num_features is 2052, expected an integer from 4 to 2048"),
        ({"hourglass_features": 256.0}, r"num_features is 256\.0, expected an integer"),
    ],
)
def test_sizes_have_bounds(sizes: dict[str, int], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        DIC(**sizes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("out.0.bias", torch.zeros(4).to_sparse()),
        ("out.0.bias", torch.zeros(4, device="meta")),
        ("out.0.bias", torch.zeros(4, dtype=torch.complex64)),
        ("out.0.bias", torch.zeros(4, dtype=torch.int64)),
        ("conv_in.0.weight", torch.zeros(1).expand(2**34, 3, 3, 3)),
        ("HG.compress_in.weight", torch.zeros(1).expand(2**30, 16, 1, 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype} {value.layout} {value.device}",
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_tensors_are_plain(tmp_path: Path, key: str, value: Tensor) -> None:
    message = _refusal(tmp_path / "dic.ckpt", lambda state: state.update({f"net.{key}": value}))
    assert message.endswith(f"holds {key}, expected finite floating-point tensors that are stored in full")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_are_finite(tmp_path: Path, value: float) -> None:
    message = _refusal(tmp_path / "dic.ckpt", lambda state: state["net.out.0.bias"].__setitem__(1, value))
    assert message.endswith("holds out.0.bias, expected finite floating-point tensors that are stored in full")


@pytest.mark.parametrize("network", [DIC, FeedbackHourglass])
def test_a_telling_weight_without_a_size(tmp_path: Path, network: type[DIC | FeedbackHourglass]) -> None:
    state = (DIC(4, 2, 2, 1, 8) if network is DIC else FeedbackHourglass(8)).state_dict()
    state["conv_in.0.weight" if network is DIC else "compress_in.weight"] = torch.tensor(1.0)
    torch.save(state, tmp_path / "scalar.pth")
    with pytest.raises(CheckpointError, match=r"scalar\.pth: cannot build .*: num_features is 0, expected an integer"):
        network.from_checkpoint(tmp_path / "scalar.pth")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [state.pop(key) for key in list(state)[50:150]],
        lambda state: state.update({f"net.left.{'k' * 1000}.{n}": torch.zeros(1) for n in range(100)}),
        lambda state: state.update({f"net.{'k' * 1000}.{n}": None for n in range(100)}),
        lambda state: state.update({key: torch.zeros([1] * 60) for key in state if key.endswith("bias")}),
        lambda state: [value.fill_(torch.nan) for value in state.values()],
        lambda state: state.clear(),
    ],
    ids=["missing", "left over", "no tensors", "shapes", "not finite", "empty"],
)
def test_messages_name_a_few_keys(tmp_path: Path, change: Callable[[State], object]) -> None:
    message = _refusal(tmp_path / "dic.ckpt", change)
    assert len(message) - len(str(tmp_path)) <= 400
    assert " more" in message or "holds state_dict, dic_config, expected weights by name" in message
