"""The whole job on tiny synthetic data: generator, both arms, tests and the comparison."""

import json
from pathlib import Path

import pytest

from commands.compare import compare
from commands.test import test as run_test
from commands.train import train
from commands.upscale import upscale
from tests.tiny_runs import classifier_args, generator_args, read_csv


def test_generator_arms_and_comparison(
    tiny_faces: Path, tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = train(generator_args(tiny_faces, tmp_path))
    assert generator.parent == tmp_path / "generator-dic-small"
    assert json.loads((generator / "run.json").read_text())["arm"] is None
    assert [float(row["val/psnr_y"]) > 5 for row in read_csv(generator / "metrics.csv") if row["val/psnr_y"]] == [True]

    dic = classifier_args(
        tiny_ferplus,
        tmp_path,
        f"--data.upscaler.checkpoint={generator}",
        f"--data.cache_dir={tmp_path / 'cache'}",
        configs=("classifier/dic",),
    )
    cache = upscale(dic)
    assert cache is not None and cache.parent == tmp_path / "cache"
    blocks = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.npy")}
    assert blocks
    assert upscale(dic) == cache
    runs = [train(classifier_args(tiny_ferplus, tmp_path)), train(dic)]
    assert blocks == {path.name: path.stat().st_mtime_ns for path in cache.glob("*.npy")}, "filled once, by upscale.py"

    arms = [json.loads((run / "run.json").read_text()) for run in runs]
    assert [arm["arm"] for arm in arms] == ["bilinear", "dic"]
    assert arms[0]["generator_fingerprint"] == "bilinear" and cache.name.startswith(arms[1]["generator_fingerprint"])
    for run in runs:
        for split in ("train", "val", "test"):
            assert run_test(["--ckpt_path", str(run), "--split", split]) == run

    capsys.readouterr()
    output = tmp_path / "comparison"
    compare([*map(str, runs), "--output", str(output)])
    assert {path.name for path in output.iterdir()} == {"table.md", "comparison.json", "figure1.png", "figure2.png"}
    table = capsys.readouterr().out
    assert "| bilinear" in table and "| dic" in table
    reported = json.loads((runs[1] / "metrics_test.json").read_text())["rules"]["majority"]["all"]
    assert f"test (n = {reported['n']})" in table and f"{100 * reported['acc']:.2f} [" in table
