"""What the data module says about its data when it opens them, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from datamodules.ferplus.augmentation import FaceAugmentation
from datamodules.ferplus.datamodule import FERPlusDataModule
from datamodules.ferplus.table import describe, open_table
from datamodules.upscalers import InterpolationUpscaler
from tests.datamodules.ferplus.ferplus_writers import MIXED, write_folders


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return write_folders(tmp_path, MIXED)


def test_opening_says_what_there_is(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FERPlusDataModule(str(few), label_mode="crossentropy").prepare_data()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][1:] == ["images", "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear",
                            "contempt", "unknown", "NF"]  # fmt: skip
    rows = {" ".join(line[:3]): [int(cell) for cell in line[3:]] for line in lines[1:7]}
    assert rows == {
        "train, crossentropy, kept": [3, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0],
        "train, crossentropy, dropped": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        "val, majority, kept": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0],
        "val, majority, dropped": [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        "test, majority, kept": [2, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0],
        "test, majority, dropped": [3, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0],
    }
    assert " ".join(lines[7]) == "pixel-identical to a training image: 1 of val, 3 of test"


def test_one_split_alone(tmp_path: Path) -> None:
    text = describe(open_table(write_folders(tmp_path, MIXED[:3])), "majority")
    assert "val: no images\ntest: no images" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 385}, "input_size is 385, expected 8 to 384"),
        ({"early_size": 4}, "early_size is 4, expected 8 to 384"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"num_workers": -1}, "num_workers is -1, expected at least 0"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str, few: Path) -> None:
    with pytest.raises(ValueError, match=message):
        FERPlusDataModule(str(few), **arguments)


def test_data_that_a_command_cannot_use_is_refused_at_once(few: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match="batch_size is 4, expected at most the 3 training images"):
        FERPlusDataModule(str(few), batch_size=4).check("train")
    FERPlusDataModule(str(few), batch_size=4).check("test")
    root = write_folders(tmp_path_factory.mktemp("train only"), MIXED[:3])
    with pytest.raises(ValueError, match="the split 'val' has no images; splits with images: train"):
        FERPlusDataModule(str(root), batch_size=1).check("train")
    with pytest.raises(ValueError, match="the split 'test' has no images"):
        FERPlusDataModule(str(root)).check("test")
    FERPlusDataModule(str(root)).check("upscale")


def test_command_line_builds_the_module(few: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FERPlusDataModule, "data")
    arguments = [f"--data.root={few}", "--data.upscaler=bicubic", "--data.augmentation=FaceAugmentation",
                 "--data.augmentation.rotation=5"]  # fmt: skip
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert data.upscaler.name == "bicubic"
    assert isinstance(data.augmentation, FaceAugmentation)
    assert not data.synthetic


def test_built_in_data_are_known_as_synthetic(tiny_ferplus: Path) -> None:
    assert FERPlusDataModule(str(tiny_ferplus)).synthetic


class Wrong(InterpolationUpscaler):
    """Breaks one rule of upscalers."""

    def __init__(self, name: str = "wrong", kind: str = "float") -> None:
        super().__init__()
        self.name, self.kind = name, kind

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        large = super().__call__(images)
        return large.float() if self.kind == "float" else large[..., ::2]


@pytest.mark.parametrize(
    ("upscaler", "message"),
    [
        (Wrong(), r"Wrong returned torch\.float32 \(1, 1, 384, 384\), expected torch\.uint8"),
        (Wrong(kind="small"), r"Wrong returned torch\.uint8 \(1, 1, 384, 192\), expected"),
        (Wrong(name=""), "Wrong has no name"),
    ],
)
def test_an_upscaler_that_breaks_the_rules_is_refused(few: Path, upscaler: Wrong, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FERPlusDataModule(str(few), upscaler, batch_size=2).check("train")
