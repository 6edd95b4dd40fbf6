"""``compare.py`` in-process on run folders written here: values, files, and refusals."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import comparison.figures
from commands.compare import compare
from comparison.reading import read_runs
from comparison.statistics import mcnemar_exact, mean_t_interval, welch_difference, wilson_interval
from datamodules.labels import CLASSES

OUTPUTS = ["comparison.json", "figure1.png", "figure2.png", "table.md"]
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
    described = {"experiment": arm, "arm": arm, "seed": seed, "data_fingerprint": "d" * 64, "synthetic": False}
    (folder / "run.json").write_text(json.dumps(described | {"git_commit": "abc", "status": "finished"} | info))
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
    rules = {}
    for rule, counted in (("majority", COUNTED), ("argmax", np.ones(SIZE, bool))):
        subsets = {"all": counted, "without_train_duplicates": counted & ~IN_TRAIN}
        rules[rule] = {k: {"n": int(m.sum()), "acc": float(np.float32(right[m].mean()))} for k, m in subsets.items()}
    content = {"split": split, "checkpoint": "best.ckpt", "rules": rules}
    (folder / f"metrics_{split}.json").write_text(json.dumps(content))


def right_except(*wrong: int) -> np.ndarray:
    right = np.ones(SIZE, bool)
    right[list(wrong)] = False
    return right


BILINEAR = right_except(0, 1, 2, 3, 4, 5, 6, 7)  # 7 of them count under the majority rule
DIC = right_except(0, 1, 2, 3, 8)


@pytest.fixture(autouse=True)
def faces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str, list[str]]]:
    """Replaces the data set by flat faces whose brightness tells the arm; records what was asked for."""
    asked: list[tuple[Path, str, list[str]]] = []

    def arm_images(config_path: Path, split: str, names: list[str]) -> np.ndarray:
        asked.append((config_path, split, names))
        shade = 60 if "bilinear" in config_path.read_text() else 200
        return np.full((len(names), 384, 384), shade, np.uint8)

    monkeypatch.setattr("comparison.faces.arm_images", arm_images)
    return asked


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write_run(tmp_path / "bilinear", "bilinear", 0, BILINEAR),
        write_run(tmp_path / "dic", "dic", 0, DIC),
    )


def run_compare(output: Path, *arguments: str | Path, faces: bool = False) -> int:
    """Figure 1 is drawn only where a test is about it: it takes a second."""
    return compare([*map(str, arguments), "--output", str(output), *([] if faces else ["--no-faces"])])


def report_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return content


def one(entries: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (found,) = [entry for entry in entries if all(entry[key] == value for key, value in wanted.items())]
    return found


def test_report_holds_the_values_that_the_predictions_give(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_compare(tmp_path / "out", *pair, faces=True) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == OUTPUTS
    report = report_of(tmp_path / "out")
    assert report["rule"] == "majority"
    assert report["data"] == {"label": "FER+", "synthetic": False, "fingerprint": "d" * 64}

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
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert rows[0] == ["arm", "seed", "train", "validation (n = 35)", "test (n = 35)"]
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
        "the interval over images contains 0, so no difference between bilinear and dic is shown; "
        "one seed cannot answer whether the upscaler makes a difference."
    )
    bad = write_run(tmp_path / "nearest", "nearest", 0, right_except(*range(10, 30)))
    assert run_compare(tmp_path / "apart", pair[1], bad) == 0
    clear = one(report_of(tmp_path / "apart")["differences"], split="test", images="all")["verdict"]
    # Of 35 images dic is right on 30, and nearest on 17: of the images 10 to 29 two (15, 23) do not count.
    assert clear == (
        "the interval excludes 0, so this dic run is better than nearest, by 37.14 points on these images; "
        "one seed cannot answer whether the upscaler makes a difference."
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
    single = one(report["differences"], split="test", images="all", first_seeds=[1], second_seeds=[1])
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
    assert "interval over seeds (2 / 2) contains 0" in whole["verdict"]
    assert "may be the chance of training" in whole["verdict"]


def test_order_of_rows_in_a_predictions_file_does_not_matter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_compare(tmp_path / "one", *pair) == 0
    path = pair[1] / "predictions_test.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows)]) + "\n")
    assert run_compare(tmp_path / "two", *pair) == 0
    assert (tmp_path / "one" / "comparison.json").read_bytes() == (tmp_path / "two" / "comparison.json").read_bytes()


def test_synthetic_data_is_named_in_every_table_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [write_run(tmp_path / arm, arm, 0, BILINEAR, synthetic=True) for arm in ("bilinear", "dic")]
    titles = []
    original = comparison.figures._png

    def keep_title(figure: Any) -> bytes:
        titles.append(figure.get_suptitle())
        return original(figure)

    monkeypatch.setattr(comparison.figures, "_png", keep_title)
    assert run_compare(tmp_path / "out", *runs, faces=True) == 0
    assert len(titles) == 2 and all("synthetic data" in title and "n = 35" in title for title in titles)
    table = (tmp_path / "out" / "table.md").read_text()
    headings = [line for line in table.splitlines() if line.startswith("#")]
    assert len(headings) == 4 and all("synthetic data" in heading for heading in headings)
    assert "in the paper" not in table  # its figures are of real faces
    assert report_of(tmp_path / "out")["data"]["label"] == "synthetic data"


def test_figure1_asks_every_arm_for_the_same_faces_and_shows_them(
    pair: tuple[Path, Path], tmp_path: Path, faces: list[tuple[Path, str, list[str]]]
) -> None:
    assert run_compare(tmp_path / "out", *pair, faces=True) == 0
    (config_a, split_a, names_a), (config_b, split_b, names_b) = faces
    assert [config_a, config_b] == [folder / "config.yaml" for folder in pair]
    assert split_a == split_b == "test"
    assert names_a == names_b and len(set(names_a)) == 9
    pixels = np.asarray(Image.open(tmp_path / "out" / "figure1.png").convert("L"))
    shown = [
        (abs(pixels.astype(int) - shade) <= 1).sum() / (9 * 300**2) for shade in (60, 200)
    ]  # 2 inches at 150 dpi, less the frame
    assert all(0.9 < share <= 1.0 for share in shown)
    assert run_compare(tmp_path / "again", *pair, faces=True) == 0
    assert (tmp_path / "out" / "figure1.png").read_bytes() == (tmp_path / "again" / "figure1.png").read_bytes()


def test_chosen_faces_cover_each_outcome_and_have_a_label(pair: tuple[Path, Path]) -> None:
    both = [run.tested["test"] for run in read_runs(pair)]
    rows = comparison.figures.choose_faces(both, "majority", 9)
    right = np.stack([p.right("majority") for p in both])[:, rows]
    assert (both[0].labels["majority"][rows] >= 0).all()
    outcomes = [tuple(column) for column in right.T.tolist()]
    assert {outcome: outcomes.count(outcome) for outcome in set(outcomes)} == {
        (True, False): 1,  # image 8 is the only one
        (False, True): 3,
        (True, True): 3,
        (False, False): 2,
    }
    assert len(set(both[0].labels["majority"][rows].tolist())) == 7  # every class that there is


def test_figure2_draws_the_logged_curves_in_percent(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []

    def keep(figure: Any) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr(comparison.figures, "_png", keep)
    runs = read_runs(pair)
    comparison.figures.draw_curves({run.arm: [run] for run in runs}, "FER+", {"val": 35})
    accuracy, loss = figures[0].axes
    lines = {line.get_label(): line for line in accuracy.get_lines()}
    assert sorted(lines) == [
        "bilinear, training (best accuracy 86.67)",
        "bilinear, validation (best accuracy 77.00)",
        "dic, training (best accuracy 86.67)",
        "dic, validation (best accuracy 82.00)",
    ]
    line = lines["dic, validation (best accuracy 82.00)"]
    assert list(line.get_xdata()) == list(range(8))
    assert line.get_ydata() == pytest.approx([47, 52, 57, 62, 67, 72, 77, 82])
    assert loss.get_lines()[1].get_ydata()[0] == pytest.approx(1.0)
    assert figures[0].get_suptitle().endswith("validation n = 35; seeds: bilinear 0; dic 0")


def test_settings_that_differ_between_the_arms_are_pointed_out(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = json.loads((pair[1] / "config.yaml").read_text())
    config["model"]["depth"] = 34
    (pair[1] / "config.yaml").write_text(json.dumps(config))
    assert run_compare(tmp_path / "out", *pair) == 0
    (warning,) = [note for note in report_of(tmp_path / "out")["notes"] if "WARNING" in note]
    assert f"model.depth is 18 in {pair[0]}, 34 in {pair[1]}" in warning


def test_a_run_that_was_killed_is_called_dead(pair: tuple[Path, Path], tmp_path: Path) -> None:
    record = json.loads((pair[1] / "run.json").read_text())
    (pair[1] / "run.json").write_text(json.dumps(record | {"status": "running"}))
    assert run_compare(tmp_path / "out", *pair) == 0
    (warning,) = [note for note in report_of(tmp_path / "out")["notes"] if "WARNING" in note]
    assert warning == f"WARNING: {pair[1]} has status 'died', expected 'finished'."


def test_no_faces_leaves_figure1_out_and_removes_an_older_one(
    pair: tuple[Path, Path], tmp_path: Path, faces: list[Any]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "figure1.png").write_bytes(b"of other runs")
    assert run_compare(tmp_path / "out", *pair) == 0
    assert faces == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(set(OUTPUTS) - {"figure1.png"})


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _change_answer(path: Path) -> None:
    """Makes the answer to image 14, which was right (neutral), happiness."""
    _edit(path, "fer0000014.png,neutral,neutral,0,0.65,0.05", "fer0000014.png,neutral,neutral,0,0.05,0.65")


def _swap_labels(path: Path) -> None:
    """Exchanges label and answer of two images that are both right: the accuracy stays, the truth does not."""
    rows = path.read_text().splitlines()
    (name_a, *rest_a), (name_b, *rest_b) = rows[13].split(","), rows[14].split(",")
    rows[13], rows[14] = ",".join([name_a, *rest_b]), ",".join([name_b, *rest_a])
    path.write_text("\n".join(rows) + "\n")


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "not a run": (lambda dic: (dic / "run.json").unlink(), "has no run.json"),
    "generator": (lambda dic: _edit(dic / "run.json", '"arm": "dic"', '"arm": null'), "is the run of a generator"),
    "no config": (lambda dic: (dic / "config.yaml").unlink(), "config.yaml is missing"),
    "no curves": (lambda dic: (dic / "metrics.csv").unlink(), "metrics.csv is missing"),
    "empty curves": (lambda dic: (dic / "metrics.csv").write_text(""), "metrics.csv is empty"),
    "only a header": (lambda dic: (dic / "metrics.csv").write_text("epoch,step\n"), "metrics.csv is empty"),
    "no accuracy": (lambda dic: _edit(dic / "metrics.csv", "val/acc", "val/other"), "no column val/acc"),
    "half a test": (lambda dic: (dic / "predictions_val.csv").unlink(), "predictions_val.csv is missing"),
    "empty predictions": (lambda dic: (dic / "predictions_val.csv").write_text(""), "predictions_val.csv is empty"),
    "damaged metrics": (lambda dic: (dic / "metrics_val.json").write_text("{"), "metrics_val.json is damaged"),
    "other accuracy": (
        lambda dic: _edit(dic / "metrics_test.json", '"n": 35', '"n": 34'),
        "metrics_test.json does not match predictions_test.csv",
    ),
    "changed prediction": (lambda dic: _change_answer(dic / "predictions_test.csv"), "does not match"),
    "unknown label": (
        lambda dic: _edit(dic / "predictions_test.csv", "png,happiness,", "png,joy,"),
        "predictions_test.csv, line 3: label is 'joy'",
    ),
    "no probability": (lambda dic: _edit(dic / "predictions_test.csv", "0.65", "nan"), "a probability is 'nan'"),
    "more than 1": (lambda dic: _edit(dic / "predictions_test.csv", "0.65", "0.95"), "sum to 1"),
    "short row": (lambda dic: _edit(dic / "predictions_test.csv", "0.65,", ""), "line 2: 11 values, expected 12"),
    "other data": (lambda dic: _edit(dic / "run.json", "d" * 64, "e" * 64), "made from different data"),
    "no seed": (lambda dic: _edit(dic / "run.json", '"seed": 0', '"seed": null'), "seed is None, expected int"),
    "seed twice": (lambda dic: _edit(dic / "run.json", '"arm": "dic"', '"arm": "bilinear"'), "not another seed"),
    "other image": (lambda dic: _edit(dic / "predictions_val.csv", "fer0000002", "fer0000999"), "different images"),
    "other truth": (lambda dic: _swap_labels(dic / "predictions_val.csv"), "disagree on label under the majority rule"),
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
    assert "is the same run as" in capsys.readouterr().err
    untested = write_run(tmp_path / "untested", "dic", 5, DIC, splits=())
    assert run_compare(tmp_path / "out", pair[0], untested) == 2
    assert f"superfer test --ckpt_path {untested} --split test" in capsys.readouterr().err
    assert run_compare(tmp_path / "out", tmp_path / "nowhere") == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unreachable_faces_or_output_end_in_one_message(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    assert run_compare(tmp_path / "file", *pair) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"

    def gone(*_: Any) -> np.ndarray:
        raise FileNotFoundError("no data in data/ferplus")

    monkeypatch.setattr("comparison.faces.arm_images", gone)
    assert run_compare(tmp_path / "out", *pair, faces=True) == 2
    assert "no data in data/ferplus; --no-faces leaves figure1.png out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["--rul", "argmax", "run"], ["run", "--rule", "plurality"]])
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare(arguments)
    assert stopped.value.code == 2
