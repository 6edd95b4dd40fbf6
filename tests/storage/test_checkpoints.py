"""Weights from files: every published layout loads, and everything else is refused with the reason."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from models.dic import DIC
from storage.checkpoints import DIGEST, CheckpointError, read_checkpoint, safetensors_bytes

SIZES = {"num_features": 4, "num_groups": 2, "num_fusion_blocks": 1, "hourglass_features": 8}
NARROW = {  # what tells the sizes of a DIC, and nothing else
    "conv_in.0.weight": torch.zeros(16, 3, 3, 3),
    "HG.compress_in.weight": torch.zeros(16, 16, 1, 1),
    "first_block.upBlocks.0.0.weight": torch.zeros(4, 4, 12, 12),
}
RECORDS = {"psnr": [np.float64(27.37), np.float32(26.9)], "epoch": np.int64(3), "best": [np.bool_(True)]}


@pytest.fixture(scope="module")
def net() -> DIC:
    torch.manual_seed(0)
    return DIC(**SIZES, num_steps=2)


def _assert_same(loaded: DIC, net: DIC) -> None:
    expected = net.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert all(value.requires_grad and value.device.type == "cpu" for value in loaded.parameters())


def _prefixed(net: DIC, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in net.state_dict().items()}


# --- what loads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", [None, "netG", "state_dict", "model"])
def test_published_layouts(net: DIC, tmp_path: Path, key: str | None, prefix: str, zipped: bool) -> None:
    weights = _prefixed(net, prefix)
    path = tmp_path / "DIC.pth"
    saved = weights if key is None else {key: weights, "records": RECORDS, "epoch": 5}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    random_state = torch.get_rng_state()
    loaded = DIC.from_official(path, num_steps=3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert loaded.config == SIZES | {"num_steps": 3, "num_landmarks": 68}
    _assert_same(loaded, net)


def test_records_written_by_numpy_1(net: DIC, tmp_path: Path) -> None:
    path = tmp_path / "DIC.pth"
    torch.save({"state_dict": net.state_dict(), "records": RECORDS}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in content
    path.write_bytes(content)
    _assert_same(DIC.from_official(str(path)), net)


def test_generator_of_this_project(net: DIC, tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    state = _prefixed(net, "net.") | {"perceptual.batches": torch.zeros(1, dtype=torch.int64)}
    torch.save({"state_dict": state, "dic_config": net.config, "epoch": 1}, path)
    loaded = DIC.from_checkpoint(path)
    assert loaded.config == net.config and not loaded.training
    _assert_same(loaded, net)


def test_generator_from_a_published_file(net: DIC, tmp_path: Path) -> None:
    torch.save({"netG": _prefixed(net, "module.")}, tmp_path / "DICGAN.pth")
    loaded = DIC.from_checkpoint(tmp_path / "DICGAN.pth")
    assert loaded.config["num_steps"] == 4 and not loaded.training
    _assert_same(loaded, net)


def test_half_precision_weights_become_float32(net: DIC, tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in net.state_dict().items()}, tmp_path / "half.pth")
    loaded = DIC.from_official(tmp_path / "half.pth")
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.out[0].weight, net.out[0].weight, atol=1e-3, rtol=0)


# --- what is refused ---------------------------------------------------------------------------------------------


class _Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("load", [DIC.from_official, DIC.from_checkpoint, read_checkpoint])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_malicious_pickle_is_refused_and_not_executed(
    net: DIC, tmp_path: Path, load: Callable[[Path], object], zipped: bool
) -> None:
    path, target = tmp_path / "evil.pth", tmp_path / "executed"
    saved = {"state_dict": net.state_dict(), "records": _Trap(target)}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil\.pth is refused: .*mkdir.*Nothing in it was executed") as refusal:
        load(path)
    assert not target.exists()
    assert "weights_only" not in str(refusal.value)
    torch.load(path, weights_only=False)  # the trap does work
    assert target.is_dir()


def test_plain_malicious_pickle_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(_Trap(tmp_path / "executed"), protocol=2))
    with pytest.raises(CheckpointError, match=r"evil\.pkl"):
        read_checkpoint(tmp_path / "evil.pkl")
    assert not (tmp_path / "executed").exists()


def test_numpy_arrays_and_other_numpy_functions_are_refused(tmp_path: Path) -> None:
    torch.save({"records": np.zeros(3)}, tmp_path / "array.pth")
    with pytest.raises(CheckpointError, match="_reconstruct"):
        read_checkpoint(tmp_path / "array.pth")


def test_missing_left_over_and_misshapen_keys_are_listed(net: DIC, tmp_path: Path) -> None:
    weights = net.state_dict()
    del weights["block.upBlocks.1.0.bias"]
    weights["discriminator.weight"] = torch.zeros(1)
    weights["out.0.bias"] = torch.zeros(5)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as refusal:
        DIC.from_official(tmp_path / "other.pth")
    message = str(refusal.value)
    assert message == (
        f"checkpoint {tmp_path / 'other.pth'} does not fit DIC: block.upBlocks.1.0.bias (missing, expected "
        "[4]), out.0.bias ([5], expected [4]), discriminator.weight ([1], expected nothing)"
    )


def test_partly_prefixed_keys_are_left_over(net: DIC, tmp_path: Path) -> None:
    weights = net.state_dict()
    weights["module.out.1.weight"] = weights.pop("out.1.weight")
    torch.save(weights, tmp_path / "mixed.pth")
    with pytest.raises(
        CheckpointError, match=r"DIC: out\.1\.weight \(missing.*, module\.out\.1\.weight \(\[1\], expected nothing"
    ):
        DIC.from_official(tmp_path / "mixed.pth")


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        ([1, 2], "holds a list, expected a dictionary"),
        ({"epoch": 3}, "holds epoch, expected weights by name, .*netG, state_dict, model"),
        (NARROW | {"b": 3}, "holds b, expected finite floating-point tensors that are stored in full"),
        ({"conv1.weight": torch.zeros(1)}, r"seems to hold conv1\.weight, expected a DIC generator"),
        (
            {"state_dict": NARROW, "dic_config": {"num_steps": 0}},
            "cannot build DIC: num_steps is 0, expected an integer from 1 to 16",
        ),
        (NARROW, r"does not fit DIC: conv_in\.0\.bias \(missing, expected \[16\]\), .* and \d+ more$"),
    ],
)
def test_foreign_content_is_described(tmp_path: Path, saved: object, reason: str) -> None:
    torch.save(saved, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=reason):
        DIC.from_checkpoint(tmp_path / "foreign.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files_are_refused(net: DIC, tmp_path: Path, part: float, zipped: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match=r"cut\.pth \(\d+ bytes\) cannot be read.*damaged or incomplete"):
        DIC.from_official(path)


def test_text_files_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>please log in to download</html>")
    with pytest.raises(CheckpointError, match=r"page\.html \(38 bytes\) cannot be read: it is no file of torch"):
        DIC.from_official(tmp_path / "page.html")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth: there is no such file"):
        DIC.from_official(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        DIC.from_official(tmp_path)


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(CheckpointError, match=r"bomb\.ckpt is refused: it would become 10,000,000 bytes"):
        read_checkpoint(tmp_path / "bomb.ckpt")


# --- safetensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["weights", "metadata"])
def test_one_bit_of_safetensors_that_changed_is_noticed(net: DIC, tmp_path: Path, part: str) -> None:
    content = safetensors_bytes(net.state_dict(), {"dic_config": net.config})
    (tmp_path / "dic.safetensors").write_bytes(content)
    _assert_same(DIC.from_checkpoint(tmp_path / "dic.safetensors"), net)
    if part == "weights":
        changed = bytearray(content)
        changed[-1000] ^= 0x40
    else:  # the number of steps, which leaves no trace in the weights
        changed = content.replace(rb"\"num_steps\": 2", rb"\"num_steps\": 3")
    assert changed != content
    (tmp_path / "dic.safetensors").write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"dic\.safetensors is damaged: its content has changed"):
        DIC.from_checkpoint(tmp_path / "dic.safetensors")


def test_safetensors_of_others_have_no_hash(net: DIC, tmp_path: Path) -> None:
    (tmp_path / "dic.safetensors").write_bytes(save(net.state_dict()))
    _assert_same(DIC.from_checkpoint(tmp_path / "dic.safetensors"), net)


def test_nested_metadata_is_refused(net: DIC, tmp_path: Path) -> None:
    (tmp_path / "deep.safetensors").write_bytes(save(net.state_dict(), {"dic_config": "[" * 100_000}))
    with pytest.raises(
        CheckpointError, match=r"deep\.safetensors .*cannot be read: .*damaged or incomplete.*RecursionError"
    ):
        DIC.from_checkpoint(tmp_path / "deep.safetensors")


def test_the_generator_that_comes_with_the_project_carries_its_hash() -> None:
    with safe_open(Path(__file__).parents[2] / "weights" / "dic_small.safetensors", framework="pt") as file:
        assert DIGEST in file.metadata()
