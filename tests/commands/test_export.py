"""export.py: files that the authors' code would load, and safetensors; both load here again."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from commands import export
from models.dic import DIC
from models.hourglass import FeedbackHourglass
from models.light_cnn import LightCNN
from storage.checkpoints import CheckpointError, read_checkpoint

SHAPES = json.loads((Path(__file__).parents[1] / "fixtures" / "dic_shapes.json").read_text())


def _own(net: torch.nn.Module, **more: object) -> dict[str, object]:
    """A checkpoint as this project's trainings write it."""
    return {"state_dict": {f"net.{key}": value for key, value in net.state_dict().items()}} | more


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def net() -> DIC:
    torch.manual_seed(0)
    return DIC(4, 2, 2, 1, 8)


def test_published_size_has_the_official_layout_key_by_key(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = DIC().state_dict()
    saved = {f"net.{key}": torch.zeros(value.shape, dtype=torch.float16) for key, value in shapes.items()}
    torch.save({"state_dict": saved, "dic_config": DIC(4).config}, tmp_path / "own.ckpt")
    export.export(["--ckpt_path", str(tmp_path / "own.ckpt"), "--out", str(tmp_path / "DIC.pth")])
    written = torch.load(tmp_path / "DIC.pth", weights_only=True)
    assert list(written) == ["state_dict"]
    assert {key: list(value.shape) for key, value in written["state_dict"].items()} == SHAPES["DIC"]["state"]


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_generator_loads_again(net: DIC, tmp_path: Path, ending: str) -> None:
    faces = {"hr_size": 128, "crop_margin": 1.3}
    torch.save(_own(net, dic_config=net.config, faces=faces), tmp_path / "own.ckpt")
    out = tmp_path / f"dic.{ending}"
    export.export(["--ckpt_path", str(tmp_path / "own.ckpt"), "--out", str(out)])
    assert _same(DIC.from_checkpoint(out).state_dict(), net.state_dict())
    if ending == "safetensors":
        saved = read_checkpoint(out)
        assert saved["dic_config"] == net.config and saved["faces"] == faces


def test_discriminator_goes_along(net: DIC, tmp_path: Path) -> None:
    opponent = LightCNN(16)
    checkpoint = _own(net, dic_config=net.config)
    checkpoint["state_dict"] |= {f"discriminator.{key}": value for key, value in opponent.state_dict().items()}  # type: ignore[operator]
    torch.save(checkpoint, tmp_path / "own.ckpt")
    export.export(["--ckpt_path", str(tmp_path / "own.ckpt"), "--out", str(tmp_path / "DICGAN.pth")])
    written = torch.load(tmp_path / "DICGAN.pth", weights_only=True)
    assert _same(written["netG"], net.state_dict()) and _same(written["netD"], opponent.state_dict())
    assert _same(DIC.from_official(tmp_path / "DICGAN.pth").state_dict(), net.state_dict())


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_hourglass_loads_again(tmp_path: Path, ending: str) -> None:
    torch.manual_seed(0)
    hourglass = FeedbackHourglass(8)
    torch.save(_own(hourglass, hourglass_config=hourglass.config), tmp_path / "own.ckpt")
    export.export(["--ckpt_path", str(tmp_path / "own.ckpt"), "--out", str(tmp_path / f"hourglass.{ending}")])
    assert _same(
        FeedbackHourglass.from_checkpoint(tmp_path / f"hourglass.{ending}").state_dict(), hourglass.state_dict()
    )
    if ending == "pth":  # the authors' code passes the file's content to load_state_dict as it is
        assert _same(torch.load(tmp_path / "hourglass.pth", weights_only=True), hourglass.state_dict())


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    net: DIC, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(_own(net, dic_config=net.config), tmp_path / "own.ckpt")
    torch.save(LightCNN(16).state_dict(), tmp_path / "other.pth")
    torch.save({"strange.weight": torch.zeros(2)}, tmp_path / "strange.pth")
    torch.save(_own(net, dic_config=net.config | {"num_steps": -1}), tmp_path / "steps.ckpt")
    for name, key in (("nan", "net.out.0.bias"), ("opponent", "discriminator.classifier.2.weight"), ("short", "")):
        checkpoint = _own(net, dic_config=net.config)
        state: dict[str, Tensor] = checkpoint["state_dict"]  # type: ignore[assignment]
        state |= {f"discriminator.{name}": value for name, value in LightCNN(16).state_dict().items()}
        if key:
            state[key] = torch.full_like(state[key], torch.nan)
        else:
            del state["net.out.0.bias"]
        torch.save(checkpoint, tmp_path / f"{name}.ckpt")
    cases = [
        ("nan.ckpt", "out.safetensors", "holds out.0.bias, expected finite"),
        ("short.ckpt", "out.pth", "does not fit DIC: out.0.bias (missing"),
        ("steps.ckpt", "out.safetensors", "num_steps is -1, expected an integer from 1 to 16"),
        ("opponent.ckpt", "out.pth", "holds classifier.2.weight, expected finite"),
        ("strange.pth", "out.pth", "seems to hold strange.weight, expected a DIC generator or a feedback hourglass"),
        ("own.ckpt", "out.onnx", "expected a name that ends in .pth or .safetensors"),
        ("none.ckpt", "out.pth", "no checkpoint: looked for"),
        ("other.pth", "out.pth", "seems to hold a LightCNN discriminator, expected a DIC generator or a feedback"),
    ]
    for source, out, message in cases:
        with pytest.raises(SystemExit, match="2"):
            export.export(["--ckpt_path", str(tmp_path / source), "--out", str(tmp_path / out)])
        assert message in capsys.readouterr().err
        assert not (tmp_path / out).exists()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.99])
def test_damaged_safetensors_are_refused(net: DIC, tmp_path: Path, part: float) -> None:
    torch.save(_own(net, dic_config=net.config), tmp_path / "own.ckpt")
    export.export(["--ckpt_path", str(tmp_path / "own.ckpt"), "--out", str(tmp_path / "dic.safetensors")])
    content = (tmp_path / "dic.safetensors").read_bytes()
    (tmp_path / "dic.safetensors").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(
        CheckpointError, match=r"dic\.safetensors \(\d+ bytes\) cannot be read: .*damaged or incomplete"
    ):
        DIC.from_checkpoint(tmp_path / "dic.safetensors")
