"""Runs that cannot be compared are refused in one line, before anything is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from commands.compare import compare
from tests.comparison.runs import (
    DIC,
    edit,
    retrain,
    run_compare,
    seal,
    write_run,
)


def _change_answer(path: Path) -> None:
    """Makes the answer to image 14, which was right (neutral), happiness."""
    edit(path, "fer0000014.png,neutral,neutral,0,0.65,0.05", "fer0000014.png,neutral,neutral,0,0.05,0.65")


def _swap(path: Path, first: int, second: int) -> None:
    """Exchange all but the name of two images that are both right: the accuracy stays, the truth does not."""
    rows = path.read_text().splitlines()
    (name_a, *rest_a), (name_b, *rest_b) = rows[first + 1].split(","), rows[second + 1].split(",")
    rows[first + 1], rows[second + 1] = ",".join([name_a, *rest_b]), ",".join([name_b, *rest_a])
    path.write_text("\n".join(rows) + "\n")
    seal(path.parent, "val")


def _swap_in_train(path: Path) -> None:
    """Exchange `in_train` of images 10 and 11, which are both right: every accuracy stays."""
    edit(path, "fer0000010.png,sadness,sadness,1", "fer0000010.png,sadness,sadness,0")
    edit(path, "fer0000011.png,anger,anger,0", "fer0000011.png,anger,anger,1")
    seal(path.parent, "val")


def _rename_an_image(path: Path) -> None:
    edit(path, "fer0000002", "fer0000999")
    seal(path.parent, "val")


def _of_the_other_run(folder: Path, *names: str) -> None:
    for name in names:
        shutil.copy(folder.parent / "bilinear" / name, folder / name)


def _as_a_copy(folder: Path) -> None:
    """Make the run a copy of the other, with another seed."""
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "bilinear", folder)
    edit(folder / "run.json", '"seed": 0', '"seed": 1')


def _as_the_same_seed(folder: Path) -> None:
    """Make the run one of arm bilinear, too, but of another network."""
    edit(folder / "run.json", '"arm": "dic"', '"arm": "bilinear"')
    retrain(folder, '"depth": 18', '"depth": 34')


def _as_another_seed(folder: Path) -> None:
    """Make the run one of arm bilinear with seed 1, but of another generator."""
    edit(folder / "run.json", '"arm": "dic", "seed": 0', '"arm": "bilinear", "seed": 1, "generator_fingerprint": "x"')


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "not a run": (lambda dic: (dic / "run.json").unlink(), "has no run.json"),
    "generator": (lambda dic: edit(dic / "run.json", '"arm": "dic"', '"arm": null'), "trained a generator"),
    "no settings": (
        lambda dic: edit(dic / "metrics_val.json", '"settings"', '"other"'),
        "does not say which checkpoint, with which settings",
    ),
    "no curves": (lambda dic: (dic / "metrics.csv").unlink(), "metrics.csv is missing"),
    "empty curves": (lambda dic: (dic / "metrics.csv").write_text(""), "metrics.csv has no value of train/acc"),
    "no accuracy": (lambda dic: edit(dic / "metrics.csv", "val/acc", "val/other"), "no value of val/acc"),
    "no number": (lambda dic: edit(dic / "metrics.csv", "0.4,", "much,"), "metrics.csv is damaged"),
    "half a test": (lambda dic: (dic / "predictions_val.csv").unlink(), "predictions_val.csv is missing"),
    "empty predictions": (lambda dic: (dic / "predictions_val.csv").write_text(""), "metrics_val.json does not match"),
    "damaged metrics": (lambda dic: (dic / "metrics_val.json").write_text("{"), "metrics_val.json cannot be read"),
    "other accuracy": (
        lambda dic: edit(dic / "metrics_test.json", '"n": 35', '"n": 34'),
        "metrics_test.json does not match predictions_test.csv",
    ),
    "changed prediction": (lambda dic: _change_answer(dic / "predictions_test.csv"), "does not match"),
    "short row": (lambda dic: edit(dic / "predictions_test.csv", "0.65,", ""), "does not match predictions_test.csv"),
    "other data": (lambda dic: edit(dic / "run.json", "d" * 16, "e" * 16), "data_fingerprint is dddddddddddd"),
    "synthetic": (lambda dic: edit(dic / "run.json", '"synthetic": false', '"synthetic": true'), "synthetic is False"),
    "no seed": (
        lambda dic: edit(dic / "run.json", '"seed": 0', '"seed": null'),
        "seed is None, expected an integer from 0",
    ),
    "seed beyond reason": (lambda dic: edit(dic / "run.json", '"seed": 0', '"seed": -1'), "seed is -1, expected"),
    "no arm": (lambda dic: edit(dic / "run.json", '"arm": "dic"', '"arm": ""'), "arm is '', expected one plain word"),
    "earlier version": (lambda dic: edit(dic / "run.json", '"run_id"', '"id"'), "an earlier version wrote it"),
    "accuracy beyond 1": (lambda dic: edit(dic / "metrics.csv", "0.4,", "1e308,"), "train/acc is 1e+308 in epoch 0"),
    "epoch beyond reason": (lambda dic: edit(dic / "metrics.csv", "\n7,79,,,", "\n7000000,79,,,"), "epoch is 7000000"),
    "results of the other run": (
        lambda dic: _of_the_other_run(dic, "metrics_test.json", "predictions_test.csv"),
        "metrics_test.json does not match the run: run_id is",
    ),
    "predictions of the other run": (
        lambda dic: _of_the_other_run(dic, "predictions_test.csv"),
        "metrics_test.json does not match predictions_test.csv: predictions_sha256 is",
    ),
    "other split": (
        lambda dic: edit(dic / "metrics_test.json", '"split": "test"', '"split": "val"'),
        "split is 'val', expected 'test'",
    ),
    "checkpoint elsewhere": (
        lambda dic: edit(dic / "metrics_test.json", '"best.ckpt"', '"../best.ckpt"'),
        "metrics_test.json does not say which checkpoint",
    ),
    "other F1": (
        lambda dic: edit(dic / "metrics_test.json", '"macro_f1": 0.', '"macro_f1": 0.9'),
        "rules.majority.all.macro_f1 is 0.9",
    ),
    "other confusion": (
        lambda dic: edit(dic / "metrics_test.json", '"confusion": [[', '"confusion": [[9'),
        "rules.majority.all.confusion is",
    ),
    "copy with another seed": (_as_a_copy, "are one run, or copies of one"),
    "seed twice, other settings": (_as_the_same_seed, "but their settings differ (model.depth is 34, was 18)"),
    "seed twice": (lambda dic: edit(dic / "run.json", '"arm": "dic"', '"arm": "bilinear"'), "not another seed"),
    "other generator": (_as_another_seed, "their generators differ"),
    "other image": (
        lambda dic: _rename_an_image(dic / "predictions_val.csv"),
        "differ: fer0000002.png,",
    ),
    "other truth": (lambda dic: _swap(dic / "predictions_val.csv", 12, 13), "differ: fer0000012.png,"),
    "other in_train": (
        lambda dic: _swap_in_train(dic / "predictions_val.csv"),
        "differ: fer0000010.png,sadness,sadness,1 and ",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_bad_runs_are_refused_with_one_message_before_anything_is_written(
    what: str, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = REFUSALS[what]
    damage(pair[1])
    assert run_compare(tmp_path / "out", *pair) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err and str(pair[1]) in captured.err
    assert captured.out == "" and not (tmp_path / "out").exists()


def test_the_same_run_twice_and_an_untested_run_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_compare(tmp_path / "out", pair[0], pair[0] / ".." / "bilinear") == 2
    assert "are one run, or copies of one" in capsys.readouterr().err
    untested = write_run(tmp_path / "untested", "dic", 5, DIC, splits=())
    assert run_compare(tmp_path / "out", pair[0], untested) == 2
    assert f"superfer test --ckpt_path {untested} --split test" in capsys.readouterr().err
    assert run_compare(tmp_path / "out", tmp_path / "nowhere") == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unreachable_faces_or_output_end_in_one_message(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    assert run_compare(tmp_path / "file", *pair) == 2
    assert capsys.readouterr().err == f"error: [Errno 17] File exists: '{tmp_path / 'file'}'\n"
    assert (tmp_path / "file").read_text() == "kept"

    assert run_compare(tmp_path / "out", *pair, faces=True) == 2  # write_run names no data that exist
    error = capsys.readouterr().err
    assert error.startswith(f"error: could not load the upscaled faces of {pair[0]}: ") and error.count("\n") == 1
    assert error.endswith("; --no-faces leaves figure1.png out\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["--rul", "argmax", "run"], ["run", "--rule", "plurality"]])
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare(arguments)
    assert stopped.value.code == 2
