"""`superfer compare`: values and files."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from comparison.reading import read_runs
from comparison.statistics import difference, mean_of, wilson_interval
from datamodules.labels import CLASSES
from tests.comparison.runs import (
    BILINEAR,
    COUNTED,
    DIC,
    IN_TRAIN,
    LABELS,
    NO_MAJORITY,
    OUTPUTS,
    one,
    report_of,
    right_except,
    rows_of,
    run_compare,
    write_run,
)


def test_report_holds_the_values_that_the_predictions_give(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_compare(tmp_path / "out", *pair) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == OUTPUTS
    report = report_of(tmp_path / "out")
    assert (report["rule"], report["margin"]) == ("majority", 0.005)
    assert report["data"] == {"label": "FER+", "synthetic": False, "fingerprint": "d" * 16}

    accuracy = one(report["accuracies"], arm="bilinear", split="test")
    expected = wilson_interval(28, 35)  # 40 images, 5 without majority, of the 8 wrong ones one has none
    assert accuracy["n"] == 35
    assert accuracy["estimate"] == {"value": 0.8, "low": expected.low, "high": expected.high}

    found = one(report["differences"], split="test", measure="accuracy")
    assert (found["first"], found["second"]) == ("bilinear", "dic")
    assert (found["first_value"], found["second_value"]) == (28 / 35, 30 / 35)
    assert found["value"] == pytest.approx(2 / 35) and found["mean"]["covers"] == "images"
    counted = (BILINEAR[COUNTED], DIC[COUNTED])
    interval = difference(*(right[None] for right in counted), same_seeds=True).interval()
    assert found["interval"] == {"value": interval.value, "low": interval.low, "high": interval.high}


def test_what_hides_behind_accuracy_is_measured_from_the_same_predictions(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    assert run_compare(tmp_path / "out", *pair) == 0
    differences = [d for d in report_of(tmp_path / "out")["differences"] if d["split"] == "test"]
    measured = {d["measure"]: (d["n"], d["first_value"], d["second_value"]) for d in differences}
    new, unsure = COUNTED & ~IN_TRAIN, NO_MAJORITY
    groups = {
        "accuracy": COUNTED,
        "accuracy on images that are not in training": new,
        "accuracy by the argmax rule": COUNTED | unsure,
        "accuracy on images without a majority": unsure,
    } | {f"recall of {name}": COUNTED & (index == LABELS) for index, name in enumerate(CLASSES[:7])}
    for name, counted in groups.items():
        assert measured.pop(name) == (counted.sum(), BILINEAR[counted].mean(), DIC[counted].mean()), name
    truth = LABELS[COUNTED]
    answers = [np.where(right, LABELS, (LABELS + 1) % 8)[COUNTED] for right in (BILINEAR, DIC)]
    f1 = [f1_score(truth, given, average="macro", labels=np.unique([*truth, *given])) for given in answers]
    assert measured.pop("macro F1") == (35, pytest.approx(f1[0]), pytest.approx(f1[1]))
    recalls = [recall_score(truth, given, average="macro", labels=np.arange(7)) for given in answers]
    assert measured.pop("macro recall") == (35, pytest.approx(recalls[0]), pytest.approx(recalls[1]))
    ece = (28 / 35 - 0.65, 30 / 35 - 0.65)  # every answer has the probability 0.65
    assert measured.pop("calibration error (ECE)")[1:] == pytest.approx(ece, abs=1e-6)
    assert not measured, "no image has a label of contempt"


def test_the_final_epoch_stands_beside_the_chosen_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_compare(tmp_path / "out", *pair) == 0
    last = one(report_of(tmp_path / "out")["differences"], measure="accuracy after the final epoch")
    assert (last["split"], last["n"], last["mean"]) == ("val", 35, None)
    assert (last["first_value"], last["second_value"]) == (pytest.approx(0.77), pytest.approx(0.82))


def test_the_other_rule_counts_other_images(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_compare(tmp_path / "out", *pair, "--rule", "argmax") == 0
    report = report_of(tmp_path / "out")
    accuracy = one(report["accuracies"], arm="bilinear", split="val")
    assert (accuracy["n"], accuracy["estimate"]["value"]) == (40, 32 / 40)
    other = one(report["differences"], split="val", measure="accuracy by the majority rule")
    assert (other["n"], other["first_value"]) == (35, 28 / 35)


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


def test_the_verdict_is_the_first_thing_said_and_about_the_test_split(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_compare(tmp_path / "out", *pair) == 0
    (verdict,) = report_of(tmp_path / "out")["verdicts"]
    assert verdict["outcome"] == "cannot tell"
    assert verdict["sentence"].startswith("On the test split (35 images, 1 seed per arm), ")
    assert (tmp_path / "out" / "table.md").read_text().split("\n\n")[1] == f"**{verdict['sentence']}**"


def test_several_seeds_give_rows_means_and_one_interval_over_seeds_and_images(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    other = {"bilinear": right_except(3, 9, 11), "dic": right_except(3, 8)}
    more = [write_run(tmp_path / f"{arm}1", arm, 1, right) for arm, right in other.items()]
    assert run_compare(tmp_path / "out", *pair, *more) == 0
    report = report_of(tmp_path / "out")
    right = [np.array([first, other[arm]])[:, COUNTED] for arm, first in (("bilinear", BILINEAR), ("dic", DIC))]
    for arm, answers in zip(other, right, strict=True):
        mean = one(report["accuracies"], arm=arm, split="test", seeds=[0, 1])["estimate"]
        interval = mean_of(answers).interval()
        assert (mean["value"], mean["low"]) == (interval.value, max(interval.low, 0))
    found = one(report["differences"], split="test", measure="accuracy")
    expected = difference(*right, same_seeds=True)
    assert found["mean"] == asdict(expected) and expected.covers == "seeds and images"
    assert found["value"] == pytest.approx(1.5 / 35)
    assert found["first_seeds"] == found["second_seeds"] == [0, 1]
    (verdict,) = report["verdicts"]
    assert verdict["outcome"] == "no difference shown" and verdict["p_difference"] == expected.p_zero()
    assert "(2 seeds)" in (tmp_path / "out" / "table.md").read_text()


def test_the_margin_decides_what_is_equivalent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        write_run(tmp_path / f"{arm}{seed}", arm, seed, right_except(seed, 20 + seed, *([30] if arm == "dic" else [])))
        for arm in ("bilinear", "dic")
        for seed in range(3)
    ]
    for margin, outcome in (("0.5", "no difference shown"), ("20", "equivalent")):
        assert run_compare(tmp_path / margin, *runs, "--margin", margin) == 0
        assert [verdict["outcome"] for verdict in report_of(tmp_path / margin)["verdicts"]] == [outcome]
    assert run_compare(tmp_path / "bad", *runs, "--margin", "0") == 2
    assert capsys.readouterr().err == "error: --margin is 0.0, expected more than 0 and less than 100 points\n"


def test_synthetic_data_is_named_in_every_table(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / arm, arm, 0, BILINEAR, synthetic=True) for arm in ("bilinear", "dic")]
    assert run_compare(tmp_path / "out", *runs) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    headings = [line for line in table.splitlines() if line.startswith("#")]
    assert len(headings) == 3 and all("synthetic data" in heading for heading in headings)
    assert "in the paper" not in table  # its figures are of real faces
    assert report_of(tmp_path / "out")["data"]["label"] == "synthetic data"


def test_three_arms_are_compared_with_the_first(pair: tuple[Path, Path], tmp_path: Path) -> None:
    bad = write_run(tmp_path / "nearest", "nearest", 0, right_except(*range(10, 30)))
    assert run_compare(tmp_path / "out", *pair, bad) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "corrected for the number of arms by Holm's method" in table
    rows = rows_of(table)
    columns = ["split", "measure", "n", "bilinear", "dic", "nearest", "dic - bilinear", "nearest - bilinear"]
    first = rows[rows.index(columns) + 2]
    assert first[:6] == ["test", "accuracy", "35", "80.00", "85.71", "48.57"]
    assert first[6].startswith("+5.71 [-") and first[7].startswith("-31.43 [-")
    assert [verdict["second"] for verdict in report_of(tmp_path / "out")["verdicts"]] == ["dic", "nearest"]
    assert run_compare(tmp_path / "two", *pair) == 0
    assert "Holm" not in (tmp_path / "two" / "table.md").read_text()


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
