"""All three stages run from one command, each from the one before it."""

import argparse
import json
from pathlib import Path

import pytest

from commands import stages
from tests.tiny_runs import NETWORK, TRAINER


def test_stages_follow_each_other(
    tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = stages.arguments

    def tiny(stage: str, *rest: object) -> list[str]:
        sizes = {"num_features": 8} if stage == "hourglass" else NETWORK
        network = [f"--model.net.init_args.{name}={value}" for name, value in sizes.items()]
        return [*plain(stage, *rest), *network]  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "arguments", tiny)
    data = [f"--data.train_root={tiny_faces}", f"--data.val_root={tiny_faces}", "--data.batch_size=2"]
    data += ["--data.min_face_size=0", "--data.val_min_face_size=0", "--data.num_workers=0"]
    runs = stages.stages(
        ["--hr_size=64", "--hardware=cpu", f"--runs={tmp_path}", *TRAINER, *data, "--trainer.limit_val_batches=1"]
    )
    assert list(runs) == ["hourglass", "dic", "dicgan"]
    for earlier, later, option in (("hourglass", "dic", "hourglass"), ("dic", "dicgan", "initial")):
        record = json.loads((runs[later] / "run.json").read_text())
        assert record[f"{option}_weights"]["path"].startswith(str(runs[earlier]))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| hourglass", "| dic"))]
    assert [row.split("|")[3].strip() for row in rows[-3:]] == ["2", "2", "2"]


def test_gaussians_are_as_wide_on_a_larger_face() -> None:
    options = argparse.Namespace(size="small", hr_size=384, hardware="cpu")
    hourglass, dic = (stages.arguments(stage, None, options, []) for stage in ("hourglass", "dic"))
    assert {"--data.hr_size=384", "--data.heatmap_sigma=3.0", "--model.start_sigma=12.0"} < set(hourglass)
    assert {"--data.hr_size=384", "--data.heatmap_sigma=3.0"} < set(dic)
