"""Training, testing and continuing through the command line, in this process."""

import errno
import hashlib
import json
import re
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
import wandb
import yaml

from commands.export import write_weights
from commands.test import test as run_test
from commands.train import train
from datamodules.labels import CLASSES
from storage.checkpoints import CheckpointError
from tests.tiny_runs import classifier_args, config, generator_options, read_csv


@pytest.fixture(scope="module")
def finished(tiny_ferplus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, tested on validation and test images. Read only."""
    runs = tmp_path_factory.mktemp("runs")
    run = train(
        classifier_args(tiny_ferplus, runs, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", "--tags=[x]")
    )
    for split in ("val", "test"):
        run_test(["--ckpt_path", str(run), f"--split={split}"])
    return run


def weights(run: Path, name: str = "latest") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def test_run_folder(finished: Path, tiny_ferplus: Path) -> None:
    assert finished.parent.name == "ferplus-bilinear" and re.fullmatch(r"[\d-]+_[\d-]+_s0", finished.name)
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml",
        "run.json",
        "metrics.csv",
        "checkpoints",
        "faces",
        "confusion",
        ".lock",
        *(
            f"{kind}_{split}.{end}"
            for split in ("val", "test")
            for kind, end in (("metrics", "json"), ("predictions", "csv"))
        ),
    }
    checkpoints = {path.name for path in (finished / "checkpoints").iterdir()}
    assert checkpoints == {"best.ckpt", "latest.ckpt", "previous.ckpt"}
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["seed_everything"] == 0 and config["experiment"] == "ferplus-bilinear"
    assert config["data"]["init_args"]["root"] == str(tiny_ferplus)
    assert config["data"]["init_args"]["upscaler"] == "bilinear"
    record = json.loads((finished / "run.json").read_text())
    assert record["arm"] == "bilinear" and record["seed"] == 0 and record["status"] == "finished"
    assert record["synthetic"] is True and record["generator_fingerprint"] == "bilinear"
    assert re.fullmatch("[0-9a-f]{32}", record["run_id"]) and record["folder"] == str(finished.resolve())
    (start,) = record["starts"]
    assert start["versions"]["torch"] == torch.__version__.split("+")[0] and start["device"] == "cpu"
    assert (start["max_epochs"], start["max_steps"], start["checkpoint"]) == (2, -1, None)
    assert (start["threads"], start["devices"], start["precision"]) == (torch.get_num_threads(), 1, "32-true")
    assert {"git_commit", "git_dirty", "started", "host", "cpu_capability"} <= set(start)
    assert {"data_fingerprint", "started", "ended", "wandb_id"} <= set(record)


def test_checkpoints_and_results_know_their_run(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    for name in ("best", "latest"):
        path = finished / "checkpoints" / f"{name}.ckpt"
        own = torch.load(path, weights_only=True)["run"]
        assert own.pop("settings") == yaml.safe_load((finished / "config.yaml").read_text())
        assert own == {key: record[key] for key in own} and own["run_id"] and own["generator_fingerprint"]
    for split in ("val", "test"):
        metrics = json.loads((finished / f"metrics_{split}.json").read_text())
        best = finished / "checkpoints" / "best.ckpt"
        saved = torch.load(best, weights_only=True)
        assert metrics["run_id"] == record["run_id"]
        assert metrics["checkpoint"] == {
            "name": "best.ckpt",
            "sha256": hashlib.sha256(best.read_bytes()).hexdigest(),
            "global_step": saved["global_step"],
            "epoch": saved["epoch"],
        }


def test_metrics_of_every_epoch(finished: Path) -> None:
    rows = read_csv(finished / "metrics.csv")
    for name in ("train/loss", "train/acc", "val/loss", "val/acc", "val/macro_f1", "val/ece", "val/recall_fear"):
        assert [row["epoch"] for row in rows if row[name]] == ["0", "1"], f"{name}: once per epoch"
    assert [int(row["step"]) for row in rows if row["val/acc"]] == [1, 3]
    rates = {int(row["step"]): float(row["lr-SGD/pg1"]) for row in rows if row["lr-SGD/pg1"]}
    assert list(rates) == [0, 1, 2, 3]
    first, third = 0.1 * 0.001 / 0.101, 0.1 * 0.5 * (1 + 0.173648178)  # cos(80 degrees)
    assert [rates[0], rates[2]] == pytest.approx([first, third], rel=1e-4)


def test_reported_figures_follow_from_the_predictions(finished: Path) -> None:
    for split in ("val", "test"):
        rows = [row for row in read_csv(finished / f"predictions_{split}.csv") if row["label"]]
        right = [max(CLASSES, key=lambda name: float(row[name])) == row["label"] for row in rows]
        figures = json.loads((finished / f"metrics_{split}.json").read_text())["rules"]["majority"]["all"]
        assert figures["n"] == len(rows) > 10 and figures["acc"] == pytest.approx(sum(right) / len(rows))
        if split == "val":  # the best epoch's checkpoint is what was tested
            logged = [float(row["val/acc"]) for row in read_csv(finished / "metrics.csv") if row["val/acc"]]
            assert figures["acc"] == pytest.approx(max(logged))


def test_without_a_best_checkpoint_the_other_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "checkpoints" / "best.ckpt").unlink()
    run_test(["--ckpt_path", str(run)])
    assert f"warning: {run} has no best.ckpt; testing latest.ckpt" in capsys.readouterr().err
    assert json.loads((run / "metrics_test.json").read_text())["checkpoint"]["name"] == "latest.ckpt"


@pytest.mark.parametrize("command", ["test", "resume"])
def test_a_checkpoint_of_another_run_or_a_resume_with_an_edited_configuration_is_refused(
    command: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> str:
        with pytest.raises(SystemExit) as refusal:
            if command == "test":
                run_test(["--ckpt_path", str(run)])
            else:
                train(["--resume", str(run), "--trainer.max_epochs=3"])
        assert refusal.value.code == 2
        return capsys.readouterr().err

    run = shutil.copytree(finished, tmp_path / "run")
    record, config = (run / "run.json").read_text(), run / "config.yaml"
    own = json.loads(record)["run_id"]
    (run / "run.json").write_text(record.replace(own, "0" * 32))
    message = refused()
    assert f"is a checkpoint of run {own} (arm bilinear, seed 0)" in message and f"is run {'0' * 32}" in message
    (run / "run.json").write_text(record)
    config.write_text(config.read_text().replace("input_size: 32", "input_size: 48"))
    if command == "resume":
        assert "data.init_args.input_size is 48, was 32" in refused()
    (run / "run.json").unlink()
    assert "has no run.json" in refused()


def test_a_checkpoint_is_tested_with_its_own_settings(tiny_ferplus: Path, tmp_path: Path) -> None:
    """Not with those of `config.yaml`, which a resume may have changed since."""
    run = train(classifier_args(tiny_ferplus, tmp_path))
    latest = run / "checkpoints" / "latest.ckpt"
    older = shutil.copyfile(latest, latest.with_name("older.ckpt"))
    changed = ["--trainer.max_epochs=2", "--model.label_smoothing=0.2"]
    train(["--resume", str(run), "--allow_change", "model.init_args.label_smoothing", *changed])
    for path, smoothing in ((older, 0.05), (latest, 0.2)):
        run_test(["--ckpt_path", str(path)])
        report = json.loads((run / "metrics_test.json").read_text())
        assert report["settings"]["model"]["init_args"]["label_smoothing"] == smoothing


def test_a_folder_that_cannot_be_written_is_refused_before_the_test(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(self: Path, *_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)  # a test may run as root, whom no permission stops
    monkeypatch.setattr(L.Trainer, "test", lambda *_, **__: pytest.fail("tested for nothing"))
    with pytest.raises(SystemExit) as refusal:
        run_test(["--ckpt_path", str(finished)])
    error = capsys.readouterr().err
    assert refusal.value.code == 2 and "nothing can be written there (Read-only file system)" in error
    assert str(finished) in error


def test_same_seed_same_weights(finished: Path, tiny_ferplus: Path, tmp_path: Path) -> None:
    twin = train(classifier_args(tiny_ferplus, tmp_path, "--trainer.max_epochs=2"))
    first, again = weights(finished), weights(twin)
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_resume_continues_in_the_same_folder(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path))
    before, rows = json.loads((run / "run.json").read_text()), read_csv(run / "metrics.csv")
    assert train(["--resume", str(run), "--trainer.max_epochs=3"]) == run
    assert [folder.name for folder in run.parent.iterdir()] == [run.name]
    after, longer = json.loads((run / "run.json").read_text()), read_csv(run / "metrics.csv")
    for kept in ("run_id", "wandb_id", "started"):
        assert after[kept] == before[kept]
    first, second = after["starts"]
    assert [first] == before["starts"] and (first["max_epochs"], second["max_epochs"]) == (1, 3)
    assert (second["checkpoint"]["name"], second["checkpoint"]["global_step"]) == ("latest.ckpt", 2)
    assert longer[: len(rows)] == rows
    assert [row["epoch"] for row in longer if row["val/acc"]] == ["0", "1", "2"]
    assert [row["epoch"] for row in longer if row["train/loss"]] == ["0", "1", "2"]
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    states = [state for name, state in best["callbacks"].items() if "val/acc" in name]
    logged = [float(row["val/acc"]) for row in longer if row["val/acc"]]
    assert float(states[0]["best_model_score"]) == pytest.approx(max(logged)), (
        "the best of the whole run, not of a part"
    )


def test_the_end_says_where_everything_is(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path, "--trainer.limit_val_batches=1", "--seed_everything=1"))
    assert run.name.endswith("_s1") and json.loads((run / "run.json").read_text())["seed"] == 1
    out = capsys.readouterr().out
    assert f"run folder: {run}\n" in out and f"to upload to W&B: superfer upload {run}\n" in out
    assert re.search(r"^epoch 0: .*val/acc \d", out, re.MULTILINE), "one line per epoch where there is no terminal"


def test_without_logger_or_wandb(tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B was started"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    short = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    run = train(classifier_args(tiny_ferplus, tmp_path, *short))
    assert (run / "metrics.csv").is_file() and not (run / "wandb").exists()
    assert json.loads((run / "run.json").read_text())["wandb_id"]
    run = train(classifier_args(tiny_ferplus, tmp_path, *short, "--trainer.logger=false"))
    assert (run / "metrics.csv").is_file() and (run / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.input_size=16", "with different settings: data.init_args.input_size is 16, was 32"),
        ("--trainer.limit_test_batches=1", "leave images out"),
        ("--model.arch=resnet34", "model.init_args.arch is 'resnet34', was 'resnet18'"),
    ],
)
def test_a_test_of_something_else_is_refused(
    option: str, message: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "metrics_test.json").read_bytes()
    with pytest.raises(SystemExit) as refusal:
        run_test(["--ckpt_path", str(finished), option])
    assert refusal.value.code == 2 and message in capsys.readouterr().err
    assert (finished / "metrics_test.json").read_bytes() == before


def test_a_classifier_is_no_generator(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="seems to hold an emotion classifier of this project, expected a DIC"):
        write_weights(finished, tmp_path / "generator.pth")


def test_training_on_removes_results_of_the_earlier_checkpoint(tiny_ferplus: Path, tmp_path: Path) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path))
    run_test(["--ckpt_path", str(run), "--split", "val"])
    assert (run / "predictions_val.csv").is_file() and (run / "metrics_val.json").is_file()
    train(["--resume", str(run), "--trainer.max_epochs", "2"])
    assert not (run / "predictions_val.csv").exists() and not (run / "metrics_val.json").exists()


def test_a_trial_that_ends_before_its_first_validation_is_warned_of(
    tiny_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the shipped interval of 8 epochs."""
    options = [option for option in generator_options(tiny_faces) if "check_val_every_n_epoch" not in option]
    run = train([*config("generator/dic_small"), *options, f"--runs={tmp_path}", "--trainer.max_epochs=2"])
    said = "warning: trainer.check_val_every_n_epoch is 8 and max_epochs 2: nothing will be validated, and there will"
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest.ckpt", "previous.ckpt"]
