"""`superfer compare`: values and files."""

from pathlib import Path

import pytest

from comparison.reading import read_runs
from comparison.statistics import mcnemar_exact, mean_t_interval, welch_difference, wilson_interval
from tests.comparison.runs import (
    BILINEAR,
    DIC,
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
    whole = one(report["differences"], split="test", images="all")
    welch = welch_difference(of_seeds["bilinear"], of_seeds["dic"])
    assert whole["over_seeds"]["high"] == pytest.approx(welch.high)
    assert whole["over_images"]["value"] == pytest.approx(welch.value) == pytest.approx(1.5 / 35)
    assert whole["mcnemar_p"] is None
    assert "one seed" not in whole["verdict"]
    assert whole["first_seeds"] == whole["second_seeds"] == [0, 1]
    assert "(2 seeds)" in (tmp_path / "out" / "table.md").read_text()


def test_an_interval_over_seeds_that_contains_zero_withholds_the_claim(tmp_path: Path) -> None:
    wrong: dict[str, tuple[list[int], list[int]]] = {"bilinear": ([*range(16)], []), "dic": ([*range(10)], [])}
    runs = [
        write_run(tmp_path / f"{arm}{seed}", arm, seed, right_except(*lists[seed]))
        for arm, lists in wrong.items()
        for seed in (0, 1)
    ]
    assert run_compare(tmp_path / "out", *runs) == 0
    whole = one(report_of(tmp_path / "out")["differences"], split="test", images="all")
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
