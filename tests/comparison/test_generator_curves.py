"""`superfer compare` of generator runs: what is read from `metrics.csv`, printed and drawn."""

import json
from pathlib import Path

import numpy as np
import pytest

from comparison.generator_curves import PANELS, best_and_last, draw_generators, read_generators, smooth
from tests.comparison.runs import DIC, run_compare, write_run
from tests.tiny_runs import run_record

METRICS = """epoch,step,time,train/g/heatmap,val/psnr_y,val/psnr_y_bicubic,val/nme_interocular
0,49,09:00:00,0.5,,,
0,99,09:00:01,0.25,,,
0,99,09:00:02,,27.0,25.5,0.2
1,199,09:00:03,,26.5,25.5,0.1
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_generator(tmp_path / "generator" / "one_s0", "generator")


def write_generator(folder: Path, experiment: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run_record(folder, experiment=experiment, arm=None)))
    (folder / "metrics.csv").write_text(METRICS)
    return folder


def test_values_are_read_by_batch(run: Path) -> None:
    curves = read_generators([run])["generator"]
    assert {name: [array.tolist() for array in curve] for name, curve in curves.items()} == {
        "train/g/heatmap": [[50, 100], [0.5, 0.25]],
        "val/psnr_y": [[100, 200], [27.0, 26.5]],
        "val/psnr_y_bicubic": [[100, 200], [25.5, 25.5]],
        "val/nme_interocular": [[100, 200], [0.2, 0.1]],
    }


def test_runs_of_one_experiment_are_told_apart_by_their_folder(run: Path, tmp_path: Path) -> None:
    others = [write_generator(run.parent / "two_s1", "generator"), write_generator(tmp_path / "o" / "p_s0", "other")]
    assert list(read_generators([run, *others])) == ["generator one_s0", "generator two_s1", "other"]


def test_best_and_last_values_name_their_batch(run: Path) -> None:
    assert best_and_last(read_generators([run])) == [
        ["run", "metric", "best", "at batch", "last", "at batch"],
        ["generator", "val/psnr_y", "27.0000", "100", "26.5000", "200"],
        ["generator", "val/nme_interocular", "0.1000", "200", "0.1000", "200"],
    ]
    diverged = {"a": {"val/psnr_y": (np.array([10, 20, 30]), np.array([20.0, 21.0, np.nan]))}}
    assert best_and_last(diverged)[1] == ["a", "val/psnr_y", "21.0000", "20", "nan", "30"]


def test_single_batches_are_averaged_and_few_points_stay() -> None:
    steps, values = smooth((np.arange(1, 41), np.arange(40.0)))
    assert steps.tolist() == [2 * n + 1.5 for n in range(20)] and values.tolist() == [2 * n + 0.5 for n in range(20)]
    assert [array.tolist() for array in smooth((np.array([7]), np.array([2.0])))] == [[7.0], [2.0]]


def test_every_run_is_drawn_where_it_has_values(run: Path) -> None:
    curves = read_generators([run])["generator"]
    figure = draw_generators({"a": curves, "b": {"val/psnr_y": (np.array([10]), np.array([20.0]))}})
    lines = {axes.get_title(): [list(line.get_ydata()) for line in axes.lines] for axes in figure.axes}
    psnr, nme, heatmap, discriminator = PANELS
    assert lines == {
        psnr: [[27.0, 26.5], [25.5, 25.5], [20.0]],
        nme: [[0.2, 0.1]],
        heatmap: [[0.5, 0.25]],
        discriminator: [],
    }


def test_curves_are_written_beside_what_is_there_and_the_table_is_printed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "table.md").write_text("of classifiers")
    assert run_compare(tmp_path / "out", run) == 0
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "table.md").read_text() == "of classifiers"
    printed = capsys.readouterr().out
    assert "| generator | val/psnr_y          | 27.0000 | 100      | 26.5000 | 200      |" in printed
    assert f"written: {tmp_path / 'out' / 'curves.png'}" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch,step,val/psnr_y\n0,x,1\n", "metrics.csv is damaged"),
        ("epoch,step,lr\n0,5,1\n", "metrics.csv has no value of val/psnr_y"),
        ("", "metrics.csv has no value of val/psnr_y"),
    ],
)
def test_bad_metrics_are_refused_in_one_line(
    content: str, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "metrics.csv").write_text(content)
    assert run_compare(tmp_path / "out", run) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run}") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_generators_beside_classifiers_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = write_run(tmp_path / "dic", "dic", 0, DIC)
    for runs in ([run, classifier], [classifier, run]):
        assert run_compare(tmp_path / "out", *runs) == 2
        message = f"error: {run} trained a generator, {classifier} a classifier: compare them separately\n"
        assert capsys.readouterr().err == message
