"""A run that was stopped anywhere and continued has the weights, bit by bit, and the curves of one that was not."""

import errno
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.prediction_report import TestReport
from callbacks.text_progress import LogLines
from commands.test import test as run_test
from commands.train import train
from datamodules.ferplus.datamodule import FERPlusDataModule
from lightning_modules.classifier import EmotionClassifier
from run_state.checkpoints import LatestCheckpoint, WholeCheckpointIO, newest_whole
from run_state.metrics_csv import forget_beyond
from run_state.settings import changed_settings
from storage.atomic import write_atomically
from storage.checkpoints import CheckpointError, read_checkpoint
from tests.tiny_runs import classifier_args, config, generator_options, read_csv, write_generator
from tests.torture import difference, outcome

WHOLE = ["--trainer.limit_train_batches=1.0", "--trainer.max_epochs=2", "--latest.minutes=0"]
STEPS = ["--trainer.log_every_n_steps=1"]
SLOW = "--model.learning_rate=0.001"


class KilledError(Exception):
    """Stands for the death of the process."""


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Has a training die when so many batches are done: before their checkpoint is written."""

    def die(callback: LogLines, trainer: L.Trainer, *_: object) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == batches:
            raise KilledError

    monkeypatch.setattr(LogLines, "on_train_batch_end", die)


def stop_after_saving(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Has a training die when the checkpoint after so many batches is written, before Lightning logs their last."""
    write = LatestCheckpoint._write

    def die(callback: LatestCheckpoint, trainer: L.Trainer) -> None:
        write(callback, trainer)
        if trainer.fit_loop.total_batch_idx + 1 == batches:
            raise KilledError

    monkeypatch.setattr(LatestCheckpoint, "_write", die)


def stop_in_validation(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    def die(callback: LogLines, trainer: L.Trainer, *_: object) -> None:
        if trainer.current_epoch == epoch:
            raise KilledError

    monkeypatch.setattr(LogLines, "on_validation_batch_end", die, raising=False)


def run_and_stop(
    arguments: Callable[[Path], list[str]], stop: Callable[[pytest.MonkeyPatch], None], folder: Path
) -> tuple[Path, Path]:
    """Folders of a run that goes through, and of one that stops and is continued."""
    whole = train(arguments(folder / "whole"))
    with pytest.MonkeyPatch.context() as patched:
        stop(patched)
        with pytest.raises(KilledError):
            train(arguments(folder / "stopped"))
    (stopped,) = (folder / "stopped").glob("*/*")
    return whole, train(["--resume", str(stopped)])


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        (["--data.num_workers=0"], lambda patch: stop_after(patch, 2)),
        (["--data.num_workers=2"], lambda patch: stop_after(patch, 7)),
        (["--data.num_workers=2"], lambda patch: stop_after(patch, 5)),  # the first batch of an epoch: its end is kept
        (["--trainer.accumulate_grad_batches=2"], lambda patch: stop_after(patch, 7)),
        (["--trainer.val_check_interval=2"], lambda patch: stop_after(patch, 4)),
        ([], lambda patch: stop_in_validation(patch, 1)),
    ],
    ids=["mid-epoch", "workers", "epoch-end", "accumulation", "before-validation", "in-validation"],
)
def test_classifier(
    options: list[str], stop: Callable[[pytest.MonkeyPatch], None], tiny_ferplus: Path, tmp_path: Path
) -> None:
    mixup = ["--model.mixup=0.4"]  # draws from PyTorch's generator
    whole, stopped = run_and_stop(
        lambda runs: classifier_args(tiny_ferplus, runs, *WHOLE, *mixup, *options), stop, tmp_path
    )
    assert difference(outcome(whole), outcome(stopped)) is None


@pytest.mark.parametrize(
    ("stage", "stop"),
    [("hourglass", stop_after), ("dic", stop_after), ("dicgan", stop_after), ("dicgan", stop_after_saving)],
)
def test_generator(
    stage: str, stop: Callable[[pytest.MonkeyPatch, int], None], tiny_faces: Path, tmp_path: Path
) -> None:
    def arguments(runs: Path) -> list[str]:
        options = generator_options(tiny_faces, stage)
        return [*config(f"generator/{stage}_small"), f"--runs={runs}", *options, *WHOLE, *STEPS]

    whole, stopped = run_and_stop(arguments, lambda patch: stop(patch, 9), tmp_path)
    assert difference(outcome(whole), outcome(stopped)) is None
    steps = [int(row["step"]) for row in read_csv(stopped / "metrics.csv") if row["train/g/heatmap"]]
    assert steps == list(range(12))  # every batch once


@pytest.mark.parametrize("batches", [7, 10])
def test_training_counted_in_batches(batches: int, tiny_faces: Path, tmp_path: Path) -> None:
    """As the published generator configurations are: validations ignore the epochs (of six batches)."""
    counted = ["--trainer.max_steps=15", "--trainer.max_epochs=-1", "--trainer.check_val_every_n_epoch=null"]

    def arguments(runs: Path) -> list[str]:
        options = [*generator_options(tiny_faces), *WHOLE, *STEPS, *counted, "--trainer.val_check_interval=4"]
        return [*config("generator/dic_small"), f"--runs={runs}", *options]

    whole, stopped = run_and_stop(arguments, lambda patch: stop_after(patch, batches), tmp_path)
    assert difference(outcome(whole), outcome(stopped)) is None
    assert [row["step"] for row in read_csv(whole / "metrics.csv") if row["val/psnr_y"]] == ["3", "7", "11"]
    end = read_checkpoint(stopped / "checkpoints" / "latest.ckpt")
    assert end["global_step"] == 15
    trained = end["current_model_state"]["net.conv_in.0.weight"]  # beside the average, after the last batch, too
    assert not torch.equal(trained, end["state_dict"]["net.conv_in.0.weight"])


@pytest.mark.parametrize("steps", [4, 6], ids=["epoch-end", "mid-epoch"])
def test_only_the_best_checkpoint_is_left(steps: int, tiny_ferplus: Path, tmp_path: Path) -> None:
    """It is written during a validation."""
    arguments = [*WHOLE, "--trainer.val_check_interval=2", "--model.mixup=0.4"]
    whole = train(classifier_args(tiny_ferplus, tmp_path / "whole", *arguments))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ModelCheckpoint, "check_monitor_top_k", lambda *_: True)  # the last is the best
        stop_after(patched, steps + 2)
        with pytest.raises(KilledError):
            train(classifier_args(tiny_ferplus, tmp_path / "stopped", *arguments))
    (stopped,) = (tmp_path / "stopped").glob("*/*")
    for name in ("latest", "previous"):
        (stopped / "checkpoints" / f"{name}.ckpt").unlink()
    assert read_checkpoint(stopped / "checkpoints" / "best.ckpt")["global_step"] == steps
    train(["--resume", str(stopped)])
    weights = [read_checkpoint(run / "checkpoints" / "latest.ckpt")["state_dict"] for run in (whole, stopped)]
    assert difference(*weights) is None


@pytest.mark.parametrize("counted", [True, False], ids=["batches", "epochs"])
def test_stopped_by_the_clock_and_prolonged(
    counted: bool, tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`trainer.max_time` ends a run in mid-epoch, between two checkpoints."""
    length = ["--trainer.max_steps=12", "--trainer.max_epochs=-1"] if counted else []

    def arguments(runs: Path) -> list[str]:
        options = [*generator_options(tiny_faces), *WHOLE, "--latest.minutes=60", *length]
        return [*config("generator/dic_small"), f"--runs={runs}", *options]

    def stop(callback: LogLines, trainer: L.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.fit_loop.total_batch_idx == 8

    whole = train(arguments(tmp_path / "whole"))
    with monkeypatch.context() as patched:
        patched.setattr(LogLines, "on_train_batch_end", stop)
        stopped = train(arguments(tmp_path / "stopped"))
    assert read_checkpoint(stopped / "checkpoints" / "latest.ckpt")["global_step"] == 9
    train(["--resume", str(stopped)])
    final = [read_checkpoint(run / "checkpoints" / "latest.ckpt") for run in (whole, stopped)]
    assert difference(*(saved["current_model_state"] for saved in final)) is None
    assert difference(*(saved["optimizer_states"] for saved in final)) is None


def test_differences_are_found() -> None:
    first = {"a": [torch.zeros(2), {"b": 1}]}
    assert difference(first, {"a": [torch.zeros(2), {"b": 1}]}) is None
    assert difference(first, {"a": [torch.tensor([0.0, 1e-30]), {"b": 1}]}) == "/a/0"
    assert difference(first, {"a": [torch.zeros(2), {"b": 2}]}) == "/a/1/b"
    assert difference(first, {"a": [torch.zeros(2)]}) == "/a"


def test_damaged_checkpoints_are_passed_over(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path, *WHOLE))
    folder = run / "checkpoints"
    assert newest_whole(run) == folder / "latest.ckpt"
    content = bytearray((folder / "latest.ckpt").read_bytes())
    content[len(content) // 2] ^= 1  # one bit, in the weights
    (folder / "latest.ckpt").write_bytes(content)
    assert newest_whole(run) == folder / "previous.ckpt"
    assert "has changed since it was written" in capsys.readouterr().err
    for name in ("previous.ckpt", "best.ckpt"):
        (folder / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"best\.ckpt"):
        newest_whole(run)


def test_full_disk_stops_the_run_and_leaves_the_earlier_checkpoint(
    tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(classifier_args(tiny_ferplus, tmp_path / "whole", *WHOLE))

    def refuse(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(callback: LogLines, trainer: L.Trainer, *_: object) -> None:
        if trainer.fit_loop.total_batch_idx == 6:
            monkeypatch.setattr("os.fsync", refuse)

    with monkeypatch.context() as patched:
        patched.setattr(LogLines, "on_train_batch_end", fill)
        with pytest.raises(
            OSError, match=r"No space left on device.*the earlier ones are whole: make room and continue"
        ):
            train(classifier_args(tiny_ferplus, tmp_path / "stopped", *WHOLE))
    monkeypatch.undo()
    (run,) = (tmp_path / "stopped").glob("*/*")
    assert read_checkpoint(run / "checkpoints" / "latest.ckpt")["global_step"] == 6
    assert not list(run.rglob("*.writing-*")), "a half-written file is left"
    train(["--resume", str(run)])
    assert difference(outcome(whole), outcome(run)) is None


def test_failed_save_spares_the_checkpoint_that_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest is damaged, the one before it is not, and the disk is full."""
    torch.save({"global_step": 5, "state_dict": {}}, tmp_path / "previous.ckpt")
    (tmp_path / "latest.ckpt").write_bytes(b"damaged")
    before = (tmp_path / "previous.ckpt").read_bytes()

    def refuse(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="cannot be written"):
        WholeCheckpointIO().save_checkpoint({"global_step": 6}, tmp_path / "latest.ckpt")
    assert (tmp_path / "previous.ckpt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.ckpt", "previous.ckpt"]


def test_what_was_logged_after_the_checkpoint_is_logged_once(tmp_path: Path) -> None:
    torch.save({"global_step": 5, "state_dict": {}}, tmp_path / "latest.ckpt")
    rows = ["epoch,step,train/loss,lr", "0,3,1.5,", "0,4,1.25,0.1", "1,5,9,", "1,7,,0.2", ""]
    (tmp_path / "metrics.csv").write_text("\r\n".join(rows))
    forget_beyond(tmp_path, tmp_path / "latest.ckpt")
    assert (tmp_path / "metrics.csv").read_text().split() == rows[:3]


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("training", signal.SIGUSR1),
        ("training", signal.SIGTERM),
        ("accumulation", signal.SIGTERM),
        ("validation", signal.SIGTERM),
    ],
)
def test_preempted_run_saves_asks_to_be_started_again_and_goes_on(
    place: str, number: signal.Signals, tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*WHOLE, *STEPS, "--latest.minutes=60", "--data.num_workers=2"]
    if place == "accumulation":
        arguments += ["--trainer.accumulate_grad_batches=2"]
    whole = train(classifier_args(tiny_ferplus, tmp_path / "whole", *arguments))
    before, told = signal.getsignal(number), []

    def tell(callback: LogLines, trainer: L.Trainer, *_: object) -> None:
        if trainer.fit_loop.total_batch_idx == 5 or (place == "validation" and trainer.current_epoch == 1):
            signal.raise_signal(number)
            for worker in multiprocessing.active_children():  # as if sent to the whole process group
                os.kill(worker.pid, number)  # type: ignore[arg-type]

    hook = "on_validation_batch_end" if place == "validation" else "on_train_batch_end"
    with monkeypatch.context() as patched:
        patched.setattr(LogLines, hook, tell, raising=False)
        patched.setattr(wandb.Run, "mark_preempting", lambda run: told.append(run.id))
        with pytest.raises(SystemExit) as stopped:
            train(classifier_args(tiny_ferplus, tmp_path / "stopped", *arguments))
    assert stopped.value.code == 75 and signal.getsignal(number) == before
    (run,) = (tmp_path / "stopped").glob("*/*")
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "preempted" and told == [record["wandb_id"]]
    if place == "training":
        assert read_checkpoint(run / "checkpoints" / "latest.ckpt")["global_step"] == 6
    train(["--resume", str(run)])
    assert difference(outcome(whole), outcome(run)) is None
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_preempted_before_the_first_batch(tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a cache is filled, for instance."""
    monkeypatch.setattr(FERPlusDataModule, "fill_cache", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        train(classifier_args(tiny_ferplus, tmp_path))
    assert stopped.value.code == 75
    (run,) = tmp_path.glob("*/*")
    assert json.loads((run / "run.json").read_text())["status"] == "preempted"


@pytest.mark.parametrize("place", ["during the batches", "between the two files"])
def test_preempted_test_leaves_no_result(
    place: str, tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path))

    def write(path: Path, content: str) -> None:
        if path.suffix == ".json":
            signal.raise_signal(signal.SIGTERM)
        write_atomically(path, content)

    with monkeypatch.context() as patched:
        if place == "during the batches":
            patched.setattr(TestReport, "on_test_batch_end", lambda *_: signal.raise_signal(signal.SIGTERM))
        else:
            patched.setattr("callbacks.prediction_report.write_atomically", write)
        with pytest.raises(SystemExit) as stopped:
            run_test(["--ckpt_path", str(run)])
    assert stopped.value.code == 75 and "preempted; give the same command again" in capsys.readouterr().err
    assert not (run / "metrics_test.json").exists() and not (run / "predictions_test.csv").exists()
    assert json.loads((run / "run.json").read_text())["status"] == "finished", "the training"
    run_test(["--ckpt_path", str(run)])
    assert (run / "metrics_test.json").exists() and (run / "predictions_test.csv").exists()


def test_other_settings_are_refused_unless_allowed(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path))
    before = (run / "run.json").read_text()
    other = ["--resume", str(run), "--trainer.max_epochs=2", "--model.label_smoothing=0.2", "--data.num_workers=0"]
    with pytest.raises(SystemExit) as refusal:
        train(other)
    printed = capsys.readouterr().err
    assert refusal.value.code == 2 and "model.init_args.label_smoothing is 0.2, was 0.05" in printed
    assert "max_epochs" not in printed and (run / "run.json").read_text() == before
    with pytest.raises(SystemExit):
        train([*other, "--allow_change", "model.label_smoothing"])
    assert "--allow_change model.label_smoothing: there is no such setting" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train([*other, "--allow_change", "seed_everything,model,trainer", "--trainer.max_steps=9"])
    assert "trainer.max_steps is 9, was -1. Epochs" in capsys.readouterr().err
    assert train([*other, "--allow_change", "seed_everything, model.init_args.label_smoothing"]) == run


def test_auto_continues_the_newest_run_of_the_configuration_or_starts_one(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = ["--resume", "auto"]
    first = train([*auto, *classifier_args(tiny_ferplus, tmp_path)])
    other = train([*auto, *classifier_args(tiny_ferplus, tmp_path, "--model.label_smoothing=0.2")])
    seeded = train([*auto, *classifier_args(tiny_ferplus, tmp_path, "--seed_everything=1")])
    assert len({first, other, seeded}) == 3
    assert (
        "the newest run, has other settings: model.init_args.label_smoothing is 0.2, was 0.05"
        in capsys.readouterr().err
    )
    assert train([*auto, *classifier_args(tiny_ferplus, tmp_path, "--trainer.max_epochs=2")]) == first
    assert [row["epoch"] for row in read_csv(first / "metrics.csv") if row["val/acc"]] == ["0", "1"]


def test_a_setting_that_an_older_run_does_not_name_has_the_value_of_then(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {init_args: {hr_size: 128}}")
    now = {"data": {"init_args": {"hr_size": 128, "heatmap_sigma": 1.0}}}
    assert changed_settings(tmp_path, now) == []
    now["data"]["init_args"] |= {"heatmap_sigma": 3.0, "other": 1}
    wanted = ["data.init_args.heatmap_sigma is 3.0, was 1.0", "data.init_args.other is 1, was not set"]
    assert changed_settings(tmp_path, now) == wanted


def test_a_generator_goes_on_without_the_file_that_it_started_from(tiny_faces: Path, tmp_path: Path) -> None:
    def arguments(stage: str) -> list[str]:
        return [*config(f"generator/{stage}_small"), f"--runs={tmp_path}", *generator_options(tiny_faces, stage)]

    hourglass = train(arguments("hourglass")) / "checkpoints" / "best.ckpt"
    run = train([*arguments("dic"), f"--model.initial_weights={hourglass}"])
    recorded = json.loads((run / "run.json").read_text())["initial_weights"]
    assert recorded == {"path": str(hourglass), "sha256": hashlib.sha256(hourglass.read_bytes()).hexdigest()}
    hourglass.unlink()
    assert train(["--resume", str(run), "--trainer.max_epochs=2"]) == run
    assert json.loads((run / "run.json").read_text())["initial_weights"] == recorded


def test_auto_does_not_join_a_run_that_started_from_other_weights(
    tiny_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = [write_generator(tmp_path / f"{seed}.ckpt", seed) for seed in (0, 1)]
    arguments = [*config("generator/dic_small"), f"--runs={tmp_path}", *generator_options(tiny_faces)]
    first, second = (train(["--resume", "auto", *arguments, f"--model.initial_weights={path}"]) for path in weights)
    assert first != second
    again = ["--resume", "auto", *arguments, f"--model.initial_weights={weights[0]}", "--trainer.max_epochs=2"]
    assert train(again) == train(again) == first  # twice: the first time has written the configuration anew
    with pytest.raises(SystemExit):
        train(["--resume", str(first), f"--model.initial_weights={weights[1]}"])
    assert "initial_weights is" in capsys.readouterr().err


def test_a_moved_run_keeps_its_best_score(tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path, *WHOLE, "--best.monitor=val/loss", "--best.mode=min", SLOW))
    moved = run.rename(tmp_path / "moved")
    best = (moved / "checkpoints" / "best.ckpt").read_bytes()

    def wrong(self: EmotionClassifier, images: torch.Tensor) -> torch.Tensor:
        return torch.eye(8)[7].expand(len(images), 8) * 1000 + next(self.parameters()).sum() * 0

    monkeypatch.setattr(EmotionClassifier, "forward", wrong)
    train(["--resume", str(moved), "--trainer.max_epochs=3", "--latest.minutes=60"])
    scores = [float(row["val/loss"]) for row in read_csv(moved / "metrics.csv") if row["val/loss"]]
    assert len(scores) == 3 and scores[2] > min(scores[:2]), "the third epoch has to be a bad one"
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == best
    saved: Any = read_checkpoint(moved / "checkpoints" / "latest.ckpt")["callbacks"]
    (state,) = (state for name, state in saved.items() if name.startswith("ModelCheckpoint"))
    assert float(state["best_model_score"]) == pytest.approx(min(scores))
    assert state["best_model_path"] == str(moved / "checkpoints" / "best.ckpt")


def test_two_trainings_do_not_share_a_run_folder(
    tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path))
    with (run / "metrics.csv").open("a") as file:
        file.write("1,99,\n")  # which a run that may be continued would lose
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}

    def refuse(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "held")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.raises(SystemExit) as refusal:
        train(["--resume", str(run), "--trainer.max_epochs=2"])
    assert refusal.value.code == 2 and "is being trained by process" in capsys.readouterr().err
    assert "SUPERFER_RUN_FOLDER" not in os.environ
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
