"""`superfer compare` on run folders written here: values, files, and refusals."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands.compare import compare
from comparison.reading import read_runs
from comparison.statistics import mcnemar_exact, mean_t_interval, welch_difference, wilson_interval
from datamodules.labels import CLASSES
from metrics.classification import classification_report
from tests.tiny_runs import read_csv, run_record

OUTPUTS = ["comparison.json", "figure2.png", "table.md"]
SIZE = 40
IN_TRAIN = np.arange(SIZE) % 10 == 0  # 4 of 40
NO_MAJORITY = np.arange(SIZE) % 8 == 7  # 5 of 40, none of them in training
COUNTED = ~NO_MAJORITY
LABELS = np.arange(SIZE) % 7


def write_run(
    folder: Path, arm: str, seed: int, right: np.ndarray, splits: tuple[str, ...] = ("val", "test"), **info: Any
) -> Path:
    """A finished run whose answer to image i of every split is right where ``right[i]``."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run_record(folder, seed, experiment=arm, arm=arm, **info)))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    upscaler = {"class_path": f"upscalers.{arm}", "init_args": {}}
    data = {"class_path": "FERPlusDataModule", "init_args": {"root": "data", "upscaler": upscaler, "batch_size": 64}}
    (folder / "config.yaml").write_text(json.dumps({"seed_everything": seed, "data": data, "model": {"depth": 18}}))
    lines = ["epoch,step,train/loss,train/acc,val/loss,val/acc,lr"]
    for epoch in range(8):
        lines += [
            f"{epoch},{10 * epoch},,,,,0.1",
            f"{epoch},{10 * epoch + 9},,,{2 / (epoch + 2)},{0.5 + epoch / 20 - len(arm) / 100},",
        ]
        lines += [f"{epoch},{10 * epoch + 9},{2 / (epoch + 1.5) + seed / 50},{0.4 + epoch / 15},,,"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    for split in splits:
        _write_split(folder, split, right)
    return folder


def _write_split(folder: Path, split: str, right: np.ndarray) -> None:
    answers = np.where(right, LABELS, (LABELS + 1) % 8)
    with (folder / f"predictions_{split}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "label", "label_argmax", "in_train", *CLASSES])
        for i in range(SIZE):
            probabilities = np.full(8, 0.05)
            probabilities[answers[i]] = 0.65
            label = CLASSES[LABELS[i]]
            row = [f"fer{i:07d}.png", "" if NO_MAJORITY[i] else label, label, int(IN_TRAIN[i]), *probabilities]
            writer.writerow(row)
    seal(folder, split)


def seal(folder: Path, split: str) -> None:
    """Write the figures that belong to the predictions, as a test does."""
    path, record = folder / f"predictions_{split}.csv", json.loads((folder / "run.json").read_text())
    rows = read_csv(path)
    probabilities = torch.tensor([[float(row[name]) for name in CLASSES] for row in rows])
    rules: dict[str, dict[str, Any]] = {}
    for rule, column in (("majority", "label"), ("argmax", "label_argmax")):
        labels = torch.tensor([CLASSES.index(row[column]) if row[column] else -1 for row in rows])
        new = torch.tensor([row["in_train"] == "0" for row in rows])
        subsets = {"all": labels, "without_train_duplicates": labels.where(new, -1)}
        rules[rule] = {name: classification_report(probabilities, kept, CLASSES) for name, kept in subsets.items()}
    content = {
        "split": split,
        "run_id": record["run_id"],
        "checkpoint": {
            "name": "best.ckpt",
            "sha256": hashlib.sha256(b"weights").hexdigest(),
            "global_step": 80,
            "epoch": 7,
        },
        "predictions_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **{name: record["starts"][0][name] for name in ("git_commit", "git_dirty", "versions", "precision", "device")},
        "rules": rules,
    }
    (folder / f"metrics_{split}.json").write_text(json.dumps(content))


def right_except(*wrong: int) -> np.ndarray:
    right = np.ones(SIZE, bool)
    right[list(wrong)] = False
    return right


BILINEAR = right_except(0, 1, 2, 3, 4, 5, 6, 7)  # 7 of them count under the majority rule
DIC = right_except(0, 1, 2, 3, 8)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write_run(tmp_path / "bilinear", "bilinear", 0, BILINEAR),
        write_run(tmp_path / "dic", "dic", 0, DIC),
    )


def run_compare(output: Path, *arguments: str | Path, faces: bool = False) -> int:
    """Run the command; only with `faces` does it need the data that the runs name."""
    try:
        compare([*map(str, arguments), "--output", str(output), *([] if faces else ["--no-faces"])])
    except SystemExit as end:
        return int(str(end.code))
    return 0


def report_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return content


def rows_of(table: str) -> list[list[str]]:
    """Cells of every line of every table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]


def one(entries: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (found,) = [entry for entry in entries if all(entry[key] == value for key, value in wanted.items())]
    return found


def test_report_holds_the_values_that_the_predictions_give(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_compare(tmp_path / "out", *pair) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == OUTPUTS
    report = report_of(tmp_path / "out")
    assert report["rule"] == "majority"
    assert report["data"] == {"label": "FER+", "synthetic": False, "fingerprint": "d" * 16}

    accuracy = one(report["accuracies"], arm="bilinear", split="test", images="all")
    expected = wilson_interval(28, 35)  # 40 images, 5 without majority, of the 8 wrong ones one has none
    assert accuracy["n"] == 35
    assert accuracy["estimate"] == {"value": 0.8, "low": expected.low, "high": expected.high}
    kept = one(report["accuracies"], arm="dic", split="test", images="without_train_duplicates")
    assert (kept["n"], kept["estimate"]["value"]) == (31, 27 / 31)

    difference = one(report["differences"], split="test", images="all")
    assert (difference["first"], difference["second"]) == ("bilinear", "dic")
    assert (difference["only_first"], difference["only_second"]) == (1, 3)  # image 8; images 4, 5, 6 (7 does not count)
    assert difference["mcnemar_p"] == mcnemar_exact(1, 3) == 0.625
    assert difference["over_images"]["value"] == pytest.approx(2 / 35)
    assert difference["over_images"]["low"] < 0 < difference["over_images"]["high"]


def test_the_other_rule_counts_other_images(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_compare(tmp_path / "out", *pair, "--rule", "argmax") == 0
    accuracies = report_of(tmp_path / "out")["accuracies"]
    accuracy = one(accuracies, arm="bilinear", split="val", images="all")
    assert (accuracy["n"], accuracy["estimate"]["value"]) == (40, 32 / 40)


def test_table_has_the_papers_layout_and_says_how_to_fill_a_dash(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_compare(tmp_path / "out", *pair) == 0
    printed = capsys.readouterr().out
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in printed
    rows = rows_of(table)
    assert rows[0] == ["arm", "seed", "training", "validation (n = 35)", "test (n = 35)"]
    assert rows[2] == ["bilinear", "0", "-", "80.00 [64.11, 89.96]", "80.00 [64.11, 89.96]"]
    assert rows[3][:4] == ["dic", "0", "-", "85.71 [70.62, 93.74]"]
    assert rows[5] == ["dic, in the paper", "?", "88.99", "83.24", "83.52"]
    assert f"superfer test --ckpt_path {pair[1]} --split train" in table
    assert "--split test" not in table
    assert "only the test split is untouched" in table


def test_verdict_of_one_seed_never_claims_more_than_it_can(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_compare(tmp_path / "same", *pair) == 0
    unsure = one(report_of(tmp_path / "same")["differences"], split="test", images="all")["verdict"]
    assert unsure == (
        "no difference between bilinear and dic is shown (the interval over images contains 0); "
        "one seed cannot show whether the upscaler makes a difference."
    )
    bad = write_run(tmp_path / "nearest", "nearest", 0, right_except(*range(10, 30)))
    assert run_compare(tmp_path / "apart", pair[1], bad) == 0
    clear = one(report_of(tmp_path / "apart")["differences"], split="test", images="all")["verdict"]
    # Of 35 images dic is right on 30, and nearest on 17: of the images 10 to 29 two (15, 23) do not count.
    assert clear == (
        "this dic run is better than this nearest run by 37.14 points on these images (the interval over images "
        "excludes 0); one seed cannot show whether the upscaler makes a difference."
    )


def test_several_seeds_give_rows_means_and_an_interval_over_seeds(pair: tuple[Path, Path], tmp_path: Path) -> None:
    more = [
        write_run(tmp_path / "bilinear1", "bilinear", 1, right_except(3, 9, 11)),
        write_run(tmp_path / "dic1", "dic", 1, right_except(3, 8)),
    ]
    assert run_compare(tmp_path / "out", *pair, *more) == 0
    report = report_of(tmp_path / "out")
    of_seeds = {"bilinear": [28 / 35, 32 / 35], "dic": [30 / 35, 33 / 35]}
    for arm, values in of_seeds.items():
        mean = one(report["accuracies"], arm=arm, split="test", images="all", seeds=[0, 1])["estimate"]
        interval = mean_t_interval(values)
        assert (mean["value"], mean["low"]) == pytest.approx((interval.value, interval.low))
    whole = one(report["differences"], split="test", images="all", decides=True)
    welch = welch_difference(of_seeds["bilinear"], of_seeds["dic"])
    assert whole["over_seeds"]["high"] == pytest.approx(welch.high)
    assert whole["over_images"]["value"] == pytest.approx(welch.value) == pytest.approx(1.5 / 35)
    assert whole["mcnemar_p"] is None
    assert "one seed" not in whole["verdict"]
    compared = [d for d in report["differences"] if (d["split"], d["images"]) == ("test", "all")]
    assert [(d["first_seeds"], d["second_seeds"]) for d in compared] == [([0], [0]), ([1], [1]), ([0, 1], [0, 1])]
    single = compared[1]
    assert (single["only_first"], single["only_second"]) == (1, 2)
    assert "(2 seeds)" in (tmp_path / "out" / "table.md").read_text()


def test_an_interval_over_seeds_that_contains_zero_withholds_the_claim(tmp_path: Path) -> None:
    wrong: dict[str, tuple[list[int], list[int]]] = {"bilinear": ([*range(16)], []), "dic": ([*range(10)], [])}
    runs = [
        write_run(tmp_path / f"{arm}{seed}", arm, seed, right_except(*lists[seed]))
        for arm, lists in wrong.items()
        for seed in (0, 1)
    ]
    assert run_compare(tmp_path / "out", *runs) == 0
    whole = one(report_of(tmp_path / "out")["differences"], split="test", images="all", decides=True)
    assert whole["over_images"]["low"] > 0 > whole["over_seeds"]["low"]
    assert whole["verdict"] == (
        "dic is 7.14 points ahead of bilinear, but the interval over seeds (2 and 2) contains 0: seeds alone could "
        "explain a difference this large."
    )


def test_synthetic_data_is_named_in_every_table(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / arm, arm, 0, BILINEAR, synthetic=True) for arm in ("bilinear", "dic")]
    assert run_compare(tmp_path / "out", *runs) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    headings = [line for line in table.splitlines() if line.startswith("#")]
    assert len(headings) == 4 and all("synthetic data" in heading for heading in headings)
    assert "in the paper" not in table  # its figures are of real faces
    assert report_of(tmp_path / "out")["data"]["label"] == "synthetic data"


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
    assert run_compare(tmp_path / "out", *pair) == 0
    (warning,) = report_of(tmp_path / "out")["warnings"]
    assert warning.startswith(f"the arms should differ only in the upscaler, but {setting} is ")
    assert f"34 in {pair[1]}" in warning and str(pair[0]) in warning
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.split("\n\n")[1] == f"**WARNING:** {warning}"
    assert f"no verdict: the arms differ in {setting}." in table and "is shown" not in table
    for difference in report_of(tmp_path / "out")["differences"]:
        assert (difference["verdict"], difference["reason"]) == (None, f"the arms differ in {setting}")


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
        "has another checkpoint since it was tested on val, test; test again.",
    ),
    "splits of different checkpoints": (
        lambda dic: _edit(dic / "metrics_val.json", '"global_step": 80', '"global_step": 40'),
        "checkpoint",
        "were not tested with one checkpoint: val at step 40, test at step 80; test again.",
    ),
    "tested in another precision": (
        lambda dic: _edit(dic / "metrics_test.json", '"32-true"', '"bf16-mixed"'),
        "precision of the test",
        "32-true and bf16-mixed in ",
    ),
    "tested on another device": (
        lambda dic: [_edit(dic / f"metrics_{split}.json", '"cpu"', '"NVIDIA H100"') for split in ("val", "test")],
        "device of the test",
        "device of the test is cpu in ",
    ),
    "trained with other code": (
        lambda dic: _edit(dic / "run.json", '"git_commit": "abc"', '"git_commit": "def"'),
        "git_commit of the training",
        "def in ",
    ),
    "files that differ from the commit": (
        lambda dic: _edit(dic / "run.json", '"git_dirty": false', '"git_dirty": true'),
        "git_dirty of the training",
        "True in ",
    ),
    "other torch": (
        lambda dic: _edit(dic / "run.json", '"torch": "2.9"', '"torch": "2.10"'),
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
        lambda dic: _edit(dic / "config.yaml", '"model"', '"trainer": {"callbacks": ["WeightAverage"]}, "model"'),
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
    assert {d["verdict"] for d in report["differences"]} == {None}
    assert {d["reason"] for d in report["differences"]} == {f"the arms differ in {subject}"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.split("\n\n")[1] == f"**WARNING:** {warning}"
    assert f"bilinear: no verdict: the arms differ in {subject}." in table


def test_a_start_that_reached_no_checkpoint_counts_for_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _started_again(pair[1], git_commit="def", checkpoint=None)  # begun again, with the code mended
    for path in (pair[1] / "metrics_val.json", pair[1] / "metrics_test.json"):
        _edit(path, '"git_commit": "abc"', '"git_commit": "def"')
    other = write_run(tmp_path / "nearest", "nearest", 0, DIC)
    for name in ("run.json", "metrics_val.json", "metrics_test.json"):
        _edit(other / name, '"git_commit": "abc"', '"git_commit": "def"')
    assert run_compare(tmp_path / "out", pair[1], other) == 0
    assert report_of(tmp_path / "out")["warnings"] == []


def test_a_doubt_about_one_arm_leaves_the_verdict_on_the_others(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "nearest", "nearest", 0, DIC, status="preempted")
    assert run_compare(tmp_path / "out", *pair, other) == 0
    reasons = {d["second"]: d["reason"] for d in report_of(tmp_path / "out")["differences"]}
    assert reasons == {"dic": None, "nearest": "the arms differ in status"}


def test_unfinished_runs_and_mixed_checkpoints_give_a_warning(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _edit(pair[1] / "run.json", '"finished"', '"preempted"')
    _edit(pair[0] / "metrics_test.json", "best.ckpt", "latest.ckpt")  # which is gone now: nothing is said of that
    assert run_compare(tmp_path / "out", *pair) == 0
    assert report_of(tmp_path / "out")["warnings"] == [
        "different checkpoints were tested: best.ckpt, latest.ckpt.",
        f"{pair[1]} is not finished: its status is preempted.",
    ]


def test_a_run_that_was_killed_is_called_dead(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _edit(pair[1] / "run.json", '"finished"', '"running"')
    assert run_compare(tmp_path / "out", *pair) == 0
    assert report_of(tmp_path / "out")["warnings"] == [f"{pair[1]} is not finished: its status is died."]


def test_three_arms_are_compared_with_the_first_and_the_table_gives_signs_and_counts(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = write_run(tmp_path / "nearest", "nearest", 0, right_except(*range(10, 30)))
    assert run_compare(tmp_path / "out", *pair, bad) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "intervals and p-values are not corrected for multiple comparisons" in table
    rows = rows_of(table)
    heading = next(row for row in rows if row[0] == "split")
    cells = {row[2]: dict(zip(heading, row, strict=True)) for row in rows if row[:2] == ["test", "all"]}
    assert sorted(cells) == ["dic - bilinear", "nearest - bilinear"]
    assert cells["dic - bilinear"]["difference"].startswith("+5.71 [-")
    assert cells["nearest - bilinear"]["difference"].startswith("-31.43 [-")
    assert cells["dic - bilinear"]["only one correct"] == "3 / 1"  # dic alone, bilinear alone
    assert cells["dic - bilinear"]["McNemar p"] == "0.625"
    two_arms = tmp_path / "two"
    assert run_compare(two_arms, *pair) == 0
    assert "not corrected" not in (two_arms / "table.md").read_text()


def test_no_faces_leaves_figure1_out_and_removes_an_older_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "figure1.png").write_bytes(b"of other runs")
    assert run_compare(tmp_path / "out", *pair) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == OUTPUTS


def test_without_a_split_that_every_arm_was_tested_on_there_are_no_faces(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "bilinear", "bilinear", 0, BILINEAR, splits=("val",)),
        write_run(tmp_path / "dic", "dic", 0, DIC, splits=("test",)),
    ]
    assert run_compare(tmp_path / "out", *runs, faces=True) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == OUTPUTS
    assert report_of(tmp_path / "out")["notes"][-1].startswith("figure1.png was not drawn: no split was tested")


def test_the_last_value_of_an_epoch_counts(pair: tuple[Path, Path]) -> None:
    with (pair[0] / "metrics.csv").open("a") as file:
        file.write("7,79,,,0.2,0.9,\n")  # a resumed run logs an epoch again
    (run,) = read_runs(pair[:1])
    assert run.curves["val/acc"][7] == 0.9 and list(run.curves["val/acc"]) == list(range(8))


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _change_answer(path: Path) -> None:
    """Makes the answer to image 14, which was right (neutral), happiness."""
    _edit(path, "fer0000014.png,neutral,neutral,0,0.65,0.05", "fer0000014.png,neutral,neutral,0,0.05,0.65")


def _swap(path: Path, first: int, second: int) -> None:
    """Exchange all but the name of two images that are both right: the accuracy stays, the truth does not."""
    rows = path.read_text().splitlines()
    (name_a, *rest_a), (name_b, *rest_b) = rows[first + 1].split(","), rows[second + 1].split(",")
    rows[first + 1], rows[second + 1] = ",".join([name_a, *rest_b]), ",".join([name_b, *rest_a])
    path.write_text("\n".join(rows) + "\n")
    seal(path.parent, "val")


def _swap_in_train(path: Path) -> None:
    """Exchange `in_train` of images 10 and 11, which are both right: every accuracy stays."""
    _edit(path, "fer0000010.png,sadness,sadness,1", "fer0000010.png,sadness,sadness,0")
    _edit(path, "fer0000011.png,anger,anger,0", "fer0000011.png,anger,anger,1")
    seal(path.parent, "val")


def _rename_an_image(path: Path) -> None:
    _edit(path, "fer0000002", "fer0000999")
    seal(path.parent, "val")


def _of_the_other_run(folder: Path, *names: str) -> None:
    for name in names:
        shutil.copy(folder.parent / "bilinear" / name, folder / name)


def _as_a_copy(folder: Path) -> None:
    """Make the run a copy of the other, with another seed."""
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "bilinear", folder)
    _edit(folder / "run.json", '"seed": 0', '"seed": 1')


def _as_the_same_seed(folder: Path) -> None:
    """Make the run one of arm bilinear, too, but of another network."""
    _edit(folder / "run.json", '"arm": "dic"', '"arm": "bilinear"')
    _edit(folder / "config.yaml", '"depth": 18', '"depth": 34')


def _as_another_seed(folder: Path) -> None:
    """Make the run one of arm bilinear with seed 1, but of another generator."""
    _edit(folder / "run.json", '"arm": "dic", "seed": 0', '"arm": "bilinear", "seed": 1, "generator_fingerprint": "x"')


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "not a run": (lambda dic: (dic / "run.json").unlink(), "has no run.json"),
    "generator": (lambda dic: _edit(dic / "run.json", '"arm": "dic"', '"arm": null'), "trained a generator"),
    "no config": (lambda dic: (dic / "config.yaml").unlink(), "config.yaml is missing"),
    "no curves": (lambda dic: (dic / "metrics.csv").unlink(), "metrics.csv is missing"),
    "empty curves": (lambda dic: (dic / "metrics.csv").write_text(""), "metrics.csv has no value of train/acc"),
    "no accuracy": (lambda dic: _edit(dic / "metrics.csv", "val/acc", "val/other"), "no value of val/acc"),
    "no number": (lambda dic: _edit(dic / "metrics.csv", "0.4,", "much,"), "metrics.csv is damaged"),
    "half a test": (lambda dic: (dic / "predictions_val.csv").unlink(), "predictions_val.csv is missing"),
    "empty predictions": (lambda dic: (dic / "predictions_val.csv").write_text(""), "metrics_val.json does not match"),
    "damaged metrics": (lambda dic: (dic / "metrics_val.json").write_text("{"), "metrics_val.json cannot be read"),
    "other accuracy": (
        lambda dic: _edit(dic / "metrics_test.json", '"n": 35', '"n": 34'),
        "metrics_test.json does not match predictions_test.csv",
    ),
    "changed prediction": (lambda dic: _change_answer(dic / "predictions_test.csv"), "does not match"),
    "short row": (lambda dic: _edit(dic / "predictions_test.csv", "0.65,", ""), "does not match predictions_test.csv"),
    "other data": (lambda dic: _edit(dic / "run.json", "d" * 16, "e" * 16), "data_fingerprint is dddddddddddd"),
    "synthetic": (lambda dic: _edit(dic / "run.json", '"synthetic": false', '"synthetic": true'), "synthetic is False"),
    "no seed": (
        lambda dic: _edit(dic / "run.json", '"seed": 0', '"seed": null'),
        "seed is None, expected an integer from 0",
    ),
    "seed beyond reason": (lambda dic: _edit(dic / "run.json", '"seed": 0', '"seed": -1'), "seed is -1, expected"),
    "no arm": (lambda dic: _edit(dic / "run.json", '"arm": "dic"', '"arm": ""'), "arm is '', expected one plain word"),
    "earlier version": (lambda dic: _edit(dic / "run.json", '"run_id"', '"id"'), "an earlier version wrote it"),
    "accuracy beyond 1": (lambda dic: _edit(dic / "metrics.csv", "0.4,", "1e308,"), "train/acc is 1e+308 in epoch 0"),
    "epoch beyond reason": (lambda dic: _edit(dic / "metrics.csv", "\n7,79,,,", "\n7000000,79,,,"), "epoch is 7000000"),
    "results of the other run": (
        lambda dic: _of_the_other_run(dic, "metrics_test.json", "predictions_test.csv"),
        "metrics_test.json does not match the run: run_id is",
    ),
    "predictions of the other run": (
        lambda dic: _of_the_other_run(dic, "predictions_test.csv"),
        "metrics_test.json does not match predictions_test.csv: predictions_sha256 is",
    ),
    "other split": (
        lambda dic: _edit(dic / "metrics_test.json", '"split": "test"', '"split": "val"'),
        "split is 'val', expected 'test'",
    ),
    "checkpoint elsewhere": (
        lambda dic: _edit(dic / "metrics_test.json", '"best.ckpt"', '"../best.ckpt"'),
        "metrics_test.json does not say which checkpoint was tested",
    ),
    "other F1": (
        lambda dic: _edit(dic / "metrics_test.json", '"macro_f1": 0.', '"macro_f1": 0.9'),
        "rules.majority.all.macro_f1 is 0.9",
    ),
    "other confusion": (
        lambda dic: _edit(dic / "metrics_test.json", '"confusion": [[', '"confusion": [[9'),
        "rules.majority.all.confusion is",
    ),
    "copy with another seed": (_as_a_copy, "are one run, or copies of one"),
    "seed twice, other settings": (_as_the_same_seed, "but their settings differ (model.depth is 34, was 18)"),
    "seed twice": (lambda dic: _edit(dic / "run.json", '"arm": "dic"', '"arm": "bilinear"'), "not another seed"),
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
