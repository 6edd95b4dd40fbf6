"""What run.json says about a run that ended badly."""

import json
from pathlib import Path

import pytest

from commands.train import train
from lightning_modules.classifier import EmotionClassifier
from tests.tiny_runs import classifier_args


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (ArithmeticError("loss"), ArithmeticError, "failed: ArithmeticError"),
        (KeyboardInterrupt(), SystemExit, "interrupted"),
    ],
)
def test_status(
    error: BaseException,
    raised: type[BaseException],
    status: str,
    tiny_ferplus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[str] = []

    def step(self: EmotionClassifier, batch: object, batch_idx: int) -> None:
        (run,) = tmp_path.glob("*/*")
        record = json.loads((run / "run.json").read_text())
        seen.extend([record["status"], record["wandb_id"]])
        raise error

    monkeypatch.setattr(EmotionClassifier, "training_step", step)
    with pytest.raises(raised):
        train(classifier_args(tiny_ferplus, tmp_path))
    (run,) = tmp_path.glob("*/*")
    record = json.loads((run / "run.json").read_text())
    assert seen == ["running", record["wandb_id"]] and record["wandb_id"], "the id is on the disk when training starts"
    assert record["status"] == status and record["ended"] >= record["started"]
    assert ("rank 0, epoch 0, batch 0: ArithmeticError: loss" in capsys.readouterr().err) == (status != "interrupted")
    assert (run / "config.yaml").is_file()
