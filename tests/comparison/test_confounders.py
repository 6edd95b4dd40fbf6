"""What else than the upscaler differs between arms comes first, and withholds the verdict."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.runs import (
    DIC,
    edit,
    report_of,
    retrain,
    run_compare,
    seal,
    write_run,
)


@pytest.mark.parametrize(
    "setting",
    ["model.depth", "trainer.max_epochs", "trainer.precision", "best.monitor"]
    + [f"data.init_args.{name}" for name in ("batch_size", "input_size", "augmentation", "label_mode")],
)
def test_settings_that_differ_between_the_arms_are_the_first_thing_said(
    setting: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    config = json.loads((pair[1] / "config.yaml").read_text())
    *sections, name = setting.split(".")
    part = config
    for section in sections:
        part = part.setdefault(section, {})
    part[name] = 34
    (pair[1] / "config.yaml").write_text(json.dumps(config))
    for split in ("val", "test"):
        seal(pair[1], split)
    assert run_compare(tmp_path / "out", *pair) == 0
    (warning,) = report_of(tmp_path / "out")["warnings"]
    assert warning.startswith(f"the arms should differ only in the upscaler, but {setting} is ")
    assert f"34 in {pair[1]}" in warning and str(pair[0]) in warning
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.split("\n\n")[1] == f"**WARNING:** {warning}"
    (verdict,) = report_of(tmp_path / "out")["verdicts"]
    assert verdict["outcome"] == "not comparable"
    assert verdict["sentence"] == f"dic and bilinear are not comparable: the arms differ in {setting}."
    assert table.split("\n\n")[2] == f"**{verdict['sentence']}**"


def test_runs_that_differ_in_the_upscaler_alone_give_no_warning(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_compare(tmp_path / "out", *pair) == 0
    assert report_of(tmp_path / "out")["warnings"] == []


def _started_again(dic: Path, **facts: Any) -> None:
    record = json.loads((dic / "run.json").read_text())
    again = record["starts"][0] | {"checkpoint": {"name": "latest.ckpt", "global_step": 40}} | facts
    (dic / "run.json").write_text(json.dumps(record | {"starts": [*record["starts"], again]}))


DOUBTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "checkpoint replaced since": (
        lambda dic: (dic / "checkpoints" / "best.ckpt").write_bytes(b"later weights"),
        "checkpoint",
        "has changed since its test on val, test; test again.",
    ),
    "splits of different checkpoints": (
        lambda dic: edit(dic / "metrics_val.json", '"global_step": 80', '"global_step": 40'),
        "checkpoint",
        "were not tested with one checkpoint: val at step 40, test at step 80; test again.",
    ),
    "tested in another precision": (
        lambda dic: edit(dic / "metrics_test.json", '"32-true"', '"bf16-mixed"'),
        "precision of the test",
        "32-true and bf16-mixed in ",
    ),
    "tested on another device": (
        lambda dic: [edit(dic / f"metrics_{split}.json", '"cpu"', '"NVIDIA H100"') for split in ("val", "test")],
        "device of the test",
        "device of the test is cpu in ",
    ),
    "trained with other code": (
        lambda dic: edit(dic / "run.json", '"git_commit": "abc"', '"git_commit": "def"'),
        "git_commit of the training",
        "def in ",
    ),
    "files that differ from the commit": (
        lambda dic: edit(dic / "run.json", '"git_dirty": false', '"git_dirty": true'),
        "git_dirty of the training",
        "True in ",
    ),
    "other torch": (
        lambda dic: edit(dic / "run.json", '"torch": "2.9"', '"torch": "2.10"'),
        "versions.torch of the training",
        "2.10 in ",
    ),
    "resumed with other code": (
        lambda dic: _started_again(dic, git_commit="def"),
        "git_commit of the training",
        "abc and def in ",
    ),
    "prolonged": (lambda dic: _started_again(dic, max_epochs=16), "max_epochs of the training", "8 and 16 in "),
    "averaged weights": (
        lambda dic: retrain(dic, '"model"', '"trainer": {"callbacks": ["WeightAverage"]}, "model"'),
        "trainer.callbacks",
        "['WeightAverage'] in ",
    ),
}


@pytest.mark.parametrize("what", DOUBTS)
def test_arms_that_differ_in_more_than_the_upscaler_get_no_verdict(
    what: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    change, subject, words = DOUBTS[what]
    change(pair[1])
    assert run_compare(tmp_path / "out", *pair) == 0
    report = report_of(tmp_path / "out")
    (warning,) = report["warnings"]
    assert words in warning and str(pair[1]) in warning
    (verdict,) = report["verdicts"]
    assert verdict["outcome"] == "not comparable" and verdict["p_difference"] is None
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.split("\n\n")[1] == f"**WARNING:** {warning}"
    assert table.split("\n\n")[2] == f"**dic and bilinear are not comparable: the arms differ in {subject}.**"


def test_a_start_that_reached_no_checkpoint_counts_for_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _started_again(pair[1], git_commit="def", checkpoint=None)  # begun again, with the code mended
    for path in (pair[1] / "metrics_val.json", pair[1] / "metrics_test.json"):
        edit(path, '"git_commit": "abc"', '"git_commit": "def"')
    other = write_run(tmp_path / "nearest", "nearest", 0, DIC)
    for name in ("run.json", "metrics_val.json", "metrics_test.json"):
        edit(other / name, '"git_commit": "abc"', '"git_commit": "def"')
    assert run_compare(tmp_path / "out", pair[1], other) == 0
    assert report_of(tmp_path / "out")["warnings"] == []


def test_a_doubt_about_one_arm_leaves_the_verdict_on_the_others(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "nearest", "nearest", 0, DIC, status="preempted")
    assert run_compare(tmp_path / "out", *pair, other) == 0
    outcomes = {verdict["second"]: verdict["outcome"] for verdict in report_of(tmp_path / "out")["verdicts"]}
    assert outcomes == {"dic": "cannot tell", "nearest": "not comparable"}


def test_unfinished_runs_and_mixed_checkpoints_give_a_warning(pair: tuple[Path, Path], tmp_path: Path) -> None:
    edit(pair[1] / "run.json", '"finished"', '"preempted"')
    edit(pair[0] / "metrics_test.json", "best.ckpt", "latest.ckpt")  # which is gone now: nothing is said of that
    assert run_compare(tmp_path / "out", *pair) == 0
    assert report_of(tmp_path / "out")["warnings"] == [
        "different checkpoints were tested: best.ckpt, latest.ckpt.",
        f"{pair[1]} is not finished: its status is preempted.",
    ]


def test_a_run_that_was_killed_is_called_dead(pair: tuple[Path, Path], tmp_path: Path) -> None:
    edit(pair[1] / "run.json", '"finished"', '"running"')
    assert run_compare(tmp_path / "out", *pair) == 0
    assert report_of(tmp_path / "out")["warnings"] == [f"{pair[1]} is not finished: its status is died."]


def test_a_configuration_that_was_edited_after_the_test_changes_nothing(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The results say what their checkpoint was trained with."""
    retrain(pair[1], '"depth": 18', '"depth": 34')
    edit(pair[1] / "config.yaml", '"depth": 34', '"depth": 18')
    assert run_compare(tmp_path / "out", *pair) == 0
    (verdict,) = report_of(tmp_path / "out")["verdicts"]
    assert verdict["sentence"] == "dic and bilinear are not comparable: the arms differ in model.depth."
