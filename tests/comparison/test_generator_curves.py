"""Curves of generator runs: what is read from `metrics.csv`, and what is drawn of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from commands.curves import curves
from comparison.generator_curves import PANELS, draw, read_curves, smooth

METRICS = """epoch,step,train/g/heatmap,val/psnr_y,val/psnr_y_bicubic
0,49,0.5,,
0,99,0.25,,
0,99,,26.5,25.5
1,199,,27.0,25.5
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "generator" / "one_s0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("experiment: generator\n")
    (folder / "run.json").write_text(json.dumps({"experiment": "generator"}))
    (folder / "metrics.csv").write_text(METRICS)
    return folder


def test_values_are_read_by_batch(run: Path) -> None:
    curves = read_curves(run)
    assert {name: [array.tolist() for array in curve] for name, curve in curves.items() if name != "epoch"} == {
        "train/g/heatmap": [[50, 100], [0.5, 0.25]],
        "val/psnr_y": [[100, 200], [26.5, 27.0]],
        "val/psnr_y_bicubic": [[100, 200], [25.5, 25.5]],
    }


def test_single_batches_are_averaged_and_few_points_stay() -> None:
    steps, values = smooth((np.arange(1, 41), np.arange(40.0)), parts=4)
    assert steps.tolist() == [5.5, 15.5, 25.5, 35.5] and values.tolist() == [4.5, 14.5, 24.5, 34.5]
    assert [array.tolist() for array in smooth((np.array([7]), np.array([2.0])))] == [[7.0], [2.0]]


def test_every_run_is_drawn_where_it_has_values(run: Path) -> None:
    figure = draw({"a": read_curves(run), "b": {"val/psnr_y": (np.array([10]), np.array([20.0]))}})
    lines = {axes.get_title(): [line.get_ydata().tolist() for line in axes.lines] for axes in figure.axes}  # type: ignore[union-attr]
    psnr, nme, heatmap, discriminator = PANELS
    assert lines == {psnr: [[26.5, 27.0], [25.5, 25.5], [20.0]], nme: [], heatmap: [[0.5, 0.25]], discriminator: []}


def test_a_figure_is_written_or_one_line_says_why_not(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = curves([str(run), "--out", str(run / "curves.png")])
    assert out.read_bytes().startswith(b"\x89PNG")
    for content in ("epoch,step,lr-Adam\n0,x,1\n", "epoch,step,lr-Adam\n0,5,1\n"):  # damaged; nothing to draw
        (run / "metrics.csv").write_text(content)
        with pytest.raises(SystemExit, match="2"):
            curves([str(run), "--out", str(run / "other.png")])
        assert str(run) in capsys.readouterr().err
    for wrong in (run, run.parent / "none"):
        with pytest.raises(SystemExit) as stop:
            curves([str(wrong), "--out", str(run / "other.png")])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and str(wrong) in error
    assert not (run / "other.png").exists()
