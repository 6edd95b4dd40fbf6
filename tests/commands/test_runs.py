"""`superfer runs`: what it says about runs, against folders whose content is known."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from commands.runs import read_progress, runs, span
from tests.tiny_runs import REPOSITORY, run_record

BEGAN = 1_800_000_000.0  # seconds since 1970


def write_run(
    folder: Path,
    accuracies: list[float],
    began: float = BEGAN,
    lr: float = 0.1,
    upscaler: object = "bilinear",
    **facts: object,
) -> Path:
    """Write a run of eight epochs of 100 s that has finished some, and logged ten seconds into the next."""
    folder.mkdir(parents=True)
    settings = {
        "experiment": folder.parent.name,
        "seed_everything": 0,
        "model": {"class_path": "x.Classifier", "init_args": {"optimizer": {"lr": lr}, "arch": "resnet18"}},
        "data": {"init_args": {"upscaler": upscaler, "seed": 0}},
        "best": {"monitor": "val/acc", "mode": "max"},
        "trainer": {"max_epochs": 8},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    started = datetime.fromtimestamp(began, UTC).isoformat()
    (folder / "run.json").write_text(json.dumps(run_record(folder, started=started, **facts)))
    rows = ["step,epoch,time,train/loss,val/acc"]
    for epoch, accuracy in enumerate(accuracies):
        begins = began + 100 * epoch
        rows += [f"{epoch},{epoch},{begins + 10},1.0,", f"{epoch},{epoch},{begins + 100},,{accuracy}"]
    rows += [f"9,{len(accuracies)},{began + 100 * len(accuracies) + 10},1.0,", "9,"]  # the last was cut short
    (folder / "metrics.csv").write_text("\n".join(rows))
    return folder


def table(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Rows by name of the run; the state of a row comes next."""
    runs([str(folder)])
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines}


def test_progress(tmp_path: Path) -> None:
    progress = read_progress(write_run(tmp_path / "a" / "1_s0", [0.5, 0.8, 0.7]))
    assert (progress.epochs, progress.all_epochs, progress.epoch_s) == (3, 8, 100.0)
    assert (progress.metric, progress.best, progress.last) == ("val/acc", 0.8, 0.7)
    assert progress.left_s() == 500 and progress.left_s(BEGAN + 330) == 470
    assert progress.left_s(BEGAN + 9999) == 400, "an epoch that takes longer ends now, for all that is known"


def test_an_interruption_makes_no_epoch_long(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a" / "1_s0", [0.1, 0.2, 0.3, 0.4, 0.5])
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text.replace(str(BEGAN + 400), str(BEGAN + 40_000)))
    assert read_progress(run).epoch_s == 100.0


def test_a_slow_start_makes_no_epoch_long(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a" / "1_s0", [0.1, 0.2])
    earlier = datetime.fromtimestamp(BEGAN - 5000, UTC).isoformat()
    record = json.loads((run / "run.json").read_text()) | {"started": earlier}
    (run / "run.json").write_text(json.dumps(record))
    assert read_progress(run).epoch_s == 100.0


def test_a_run_that_has_not_logged_anything(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a" / "1_s0", [])
    (run / "metrics.csv").unlink()
    progress = read_progress(run)
    assert (progress.epochs, progress.epoch_s, progress.best, progress.left_s()) == (0, None, None, None)


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dic = {"class_path": "datamodules.upscalers.DICUpscaler", "init_args": {"name": "dic"}}
    write_run(tmp_path / "a" / "1_s0", [0.5] * 8)
    write_run(tmp_path / "a" / "2_s0", [0.5, 0.8, 0.7], status="running", lr=0.05)
    write_run(tmp_path / "b" / "3_s0", [0.25], status="preempted", upscaler=dic)
    found = table(tmp_path, capsys)
    assert found["a/1_s0"] == ("finished 8/8 - val/acc 0.5000 0.5000 abc data.upscaler=bilinear model.optimizer.lr=0.1")
    assert found["a/2_s0"].startswith(
        "died 3/8 8 min val/acc 0.8000 0.7000 abc data.upscaler=bilinear model.optimizer.lr=0.05"
    )
    assert found["b/3_s0"].startswith("preempted 1/8 12 min val/acc 0.2500 0.2500 abc")
    assert found["b/3_s0"].endswith("data.upscaler=DICUpscaler data.upscaler.name=dic model.optimizer.lr=0.1")
    assert set(table(tmp_path / "b", capsys)) == {"run", "3_s0"}


def test_a_run_that_is_being_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a" / "1_s0", [0.5] * 4, began=time.time() - 420, status="running")
    assert table(tmp_path, capsys)["a/1_s0"].startswith("died 4/8 7 min")
    code = "import sys; from pathlib import Path; from run_state.folder import lock\n"
    code += "with lock(Path(sys.argv[1])): print('locked', flush=True); input()"
    command = [sys.executable, "-c", code, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as trainer:
        assert trainer.stdout is not None and trainer.stdout.readline() == b"locked\n"
        assert table(tmp_path, capsys)["a/1_s0"].startswith("running 4/8 6 min"), "20 s of this epoch are over"
        trainer.kill()


def test_an_unreadable_run_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a" / "1_s0", [0.5])
    (write_run(tmp_path / "a" / "2_s0", [0.5]) / "run.json").write_text("{")
    runs([str(tmp_path)])
    output = capsys.readouterr()
    assert "1_s0" in output.out and "2_s0" not in output.out
    assert output.err.startswith("warning: ") and "2_s0" in output.err and output.err.count("\n") == 1


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, words in ((tmp_path, "holds no run"), (tmp_path / "x", "is not a folder")):
        with pytest.raises(SystemExit) as exit_:
            runs([str(folder)])
        assert exit_.value.code == 2 and words in capsys.readouterr().err


def test_spans() -> None:
    assert [span(seconds) for seconds in (None, 0, 89, 600, 7200)] == ["?", "0 s", "89 s", "10 min", "2.0 h"]
