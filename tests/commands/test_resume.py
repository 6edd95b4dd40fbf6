"""`--resume RUN` and `--resume auto`: which run, with which settings, alone in its folder."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from commands.test import test as run_test
from commands.train import train
from commands.upscale import upscale
from datamodules.ferplus.datamodule import FERPlusDataModule
from run_state.wandb_run import WandbMirror, upload
from storage.checkpoints import read_checkpoint
from tests.stopping import KilledError, Stop
from tests.test_exact_resume import WHOLE, stop
from tests.tiny_runs import (
    REPOSITORY,
    choose_by_step,
    classifier_args,
    config,
    generator_options,
    read_csv,
    write_generator,
)

TINY = "--model=tests.tiny_runs.TinyClassifier"


@pytest.fixture
def run(tiny_ferplus: Path, tmp_path: Path) -> Path:
    """A finished run of one epoch."""
    return train(classifier_args(tiny_ferplus, tmp_path / "runs", TINY))


def contents(run: Path) -> dict[Path, bytes]:
    """Every file but the lock, and what W&B's service goes on writing."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock" and "wandb" not in path.parts]
    return {path: path.read_bytes() for path in files}


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as refusal:
        train(args)
    assert refusal.value.code == 2
    return capsys.readouterr().err


def test_other_settings_are_refused_unless_allowed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "run.json").read_text()
    other = ["--resume", str(run), "--trainer.max_epochs=2", "--model.label_smoothing=0.2", "--data.num_workers=0"]
    printed = refused(other, capsys)
    assert "model.init_args.label_smoothing is 0.2, was 0.05" in printed and "max_epochs" not in printed
    assert (run / "run.json").read_text() == before
    printed = refused([*other, "--allow_change", "model.label_smoothing"], capsys)
    assert "--allow_change model.label_smoothing: there is no such setting" in printed
    assert train([*other, "--allow_change", "seed_everything, model.init_args.label_smoothing"]) == run


def test_auto_resumes_the_newest_run_of_the_configuration_or_starts_one(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def auto(*more: str) -> Path:
        return train(["--resume", "auto", *classifier_args(tiny_ferplus, tmp_path, TINY, *more)])

    first, other, seeded = auto(), auto("--model.label_smoothing=0.2"), auto("--seed_everything=1")
    assert len({first, other, seeded}) == 3
    printed = capsys.readouterr()
    assert "the newest run, has other settings: model.init_args.label_smoothing is 0.2, was 0.05" in printed.err
    assert printed.out.count("no run to resume; starting one") == 3
    assert auto("--trainer.max_epochs=2") == first
    assert [row["epoch"] for row in read_csv(first / "metrics.csv") if row["val/acc"]] == ["0", "1"]


def test_auto_leaves_a_run_of_the_same_job_with_other_settings_alone(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by torchrun with the --rdzv-id of an earlier run, which names the folder."""
    job = {"TORCHELASTIC_RUN_ID": "night", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    arguments = ["--resume", "auto", *classifier_args(tiny_ferplus, tmp_path, TINY)]
    run = train(arguments)
    assert run.name == "night_s0"
    before = contents(run)
    assert f"{run} holds a run of this job already" in refused([*arguments, "--model.label_smoothing=0.2"], capsys)
    assert contents(run) == before
    assert train([*arguments, "--trainer.max_epochs=2"]) == run


def test_a_damaged_checkpoint_does_not_take_the_place_of_an_intact_one(tiny_ferplus: Path, tmp_path: Path) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path, TINY, "--trainer.max_epochs=2"))
    latest, previous = (run / "checkpoints" / f"{name}.ckpt" for name in ("latest", "previous"))
    latest.write_bytes(b"PK")
    train(["--resume", str(run)])
    steps = [read_checkpoint(path)["global_step"] for path in (previous, latest)]
    assert steps[0] < steps[1] and record_of(run)["starts"][1]["checkpoint"]["name"] == "previous.ckpt"


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    return record


def test_auto_goes_by_what_the_runs_say_and_not_by_times_of_files(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = classifier_args(tiny_ferplus, tmp_path, TINY)
    older, newer = train(arguments), train(arguments)
    copy = shutil.copytree(newer, newer.with_name(f"{newer.name}_backup"))
    (older / "config.yaml").touch()
    auto = ["--resume", "auto", *arguments]
    assert train([*auto, "--trainer.max_epochs=2"]) == newer
    assert f"{copy} is skipped: it is a copy of {newer}" in capsys.readouterr().err
    (older / "run.json").write_text(json.dumps(record_of(older) | {"status": "preempted"}))
    assert train([*auto, "--trainer.max_epochs=2"]) == older, "which is not finished"
    assert train([*auto, "--trainer.max_epochs=3"]) == older, "which was started last"
    renamed = older.rename(older.with_name("renamed"))
    assert train([*auto, "--trainer.max_epochs=4"]) == renamed
    assert record_of(renamed)["folder"] == str(renamed)


@pytest.mark.parametrize("place", ["{run.parent}/copy", "{run.parent}-of-others/{run.name}"])
def test_a_copy_goes_on_as_a_run_of_its_own(place: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run, Path(place.format(run=run)))
    train(["--resume", str(copy), "--trainer.max_epochs=2"])
    assert f"{copy} is a copy of {run}: in W&B it is a new run" in capsys.readouterr().out
    first, second = record_of(run), record_of(copy)
    assert (first["folder"], second["folder"]) == (str(run), str(copy))
    assert first["wandb_id"] != second["wandb_id"] and first["run_id"] == second["run_id"]
    train(["--resume", str(copy), "--trainer.max_epochs=3"])
    assert record_of(copy)["wandb_id"] == second["wandb_id"] and "is a copy" not in capsys.readouterr().out


def test_a_copy_that_is_uploaded_leaves_the_run_of_the_original_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def note(mirror: WandbMirror) -> None:
        opened.append(record_of(mirror.folder)["wandb_id"])
        mirror.complete = True

    monkeypatch.setattr(WandbMirror, "open", note)
    copy = shutil.copytree(run, run.with_name("copy"))
    for folder in (run, copy, copy):
        upload(folder)
    assert opened[0] == record_of(run)["wandb_id"] != opened[1] == opened[2]


def test_a_finished_run_is_left_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_test(["--ckpt_path", str(run)])
    before = contents(run)
    assert train(["--resume", str(run), "--data.num_workers=1"]) == run
    assert f"{run} is finished: nothing is left to train" in capsys.readouterr().out
    assert contents(run) == before
    (run / "run.json").write_text(json.dumps(record_of(run) | {"status": "running"}))  # killed when all was done
    train(["--resume", str(run)])
    assert record_of(run)["status"] == "finished" and len(record_of(run)["starts"]) == 1


def test_other_conditions_are_named_and_the_first_are_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = record_of(run)
    record["starts"][0] |= {"git_commit": "f" * 40, "threads": 99}
    (run / "run.json").write_text(json.dumps(record))
    train(["--resume", str(run), "--trainer.max_epochs=2"])
    line, length = (x for x in capsys.readouterr().out.splitlines() if x.startswith("resuming with other"))
    assert "max_epochs 2 (was 1); the learning rate follows the new length" in length
    assert f"(was {'f' * 40})" in line and f"threads {torch.get_num_threads()} (was 99)" in line and "torch" not in line
    assert record_of(run)["starts"][0] == record["starts"][0] and len(record_of(run)["starts"]) == 2
    train(["--resume", str(run), "--trainer.max_epochs=3"])
    assert "not bit-exact" not in capsys.readouterr().out


@pytest.mark.parametrize("resume", ["auto", "by name"])
def test_a_run_stopped_before_its_first_checkpoint_begins_again_in_its_folder(
    resume: str, tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = classifier_args(tiny_ferplus, tmp_path, TINY)
    with monkeypatch.context() as patched:
        patched.setattr(FERPlusDataModule, "train_dataloader", lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit):
            train(arguments)
    (run,) = tmp_path.glob("*/*")
    assert f"resume with --resume {run}" in capsys.readouterr().err
    before = record_of(run)
    (run / "metrics.csv").write_text("step,epoch,time,train/loss\n0,0,1.0,2.5\n")
    again = ["--resume", "auto", *arguments] if resume == "auto" else ["--resume", str(run)]
    assert train(again) == run and list(tmp_path.glob("*/*")) == [run]
    after = record_of(run)
    assert [after[name] for name in ("run_id", "wandb_id", "status")] == [
        *(before[name] for name in ("run_id", "wandb_id")),
        "finished",
    ]
    assert [start["checkpoint"] for start in after["starts"]] == [None, None]
    assert not [row for row in read_csv(run / "metrics.csv") if row["train/loss"] == "2.5"]


@pytest.mark.slow
def test_two_that_resume_automatically_at_once_make_one_run(tiny_ferplus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "--resume", "auto", *classifier_args(tiny_ferplus, tmp_path, TINY)]
    jobs = [subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    refusals = [said for job in jobs for said in [job.communicate(timeout=300)[1]] if job.returncode]
    assert len(list(tmp_path.glob("*/*/run.json"))) == 1
    assert all("with these settings is in use by process" in said for said in refusals)


def test_a_second_automatic_resume_of_the_same_settings_is_refused(
    tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before there is a run that it could join."""

    def held(file: Any, *_: object) -> None:
        if Path(file.name).name.startswith(".auto-"):
            raise BlockingIOError(errno.EAGAIN, "held")

    monkeypatch.setattr("fcntl.lockf", held)
    printed = refused(["--resume", "auto", *classifier_args(tiny_ferplus, tmp_path, TINY)], capsys)
    assert "ferplus-bilinear with these settings is in use by another process" in printed
    assert not list(tmp_path.glob("*/*_s0"))


def test_the_score_of_a_best_checkpoint_that_was_given_up_is_forgotten(
    tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when `best.ckpt` was newer than the checkpoint to resume from, and what follows is worse than before."""
    run = train(classifier_args(tiny_ferplus, tmp_path, TINY, *WHOLE, *choose_by_step(monkeypatch, "min")))
    first, second = (float(row["val/step"]) for row in read_csv(run / "metrics.csv") if row["val/step"])
    assert first < second
    best, latest = (run / "checkpoints" / f"{name}.ckpt" for name in ("best", "latest"))
    latest.replace(best)  # of step 8; the one before is of step 4
    train(["--resume", str(run)])
    callbacks: Any = read_checkpoint(best)["callbacks"]
    (state,) = (state for name, state in callbacks.items() if name.startswith("ModelCheckpoint"))
    assert float(state["best_model_score"]) == pytest.approx(second)


def test_a_generator_goes_on_without_the_file_that_it_started_from(tiny_faces: Path, tmp_path: Path) -> None:
    weights = write_generator(tmp_path / "generator.ckpt")
    arguments = [*config("generator/dic_small"), f"--runs={tmp_path}", *generator_options(tiny_faces)]
    run = train([*arguments, f"--model.initial_weights={weights}"])
    recorded = json.loads((run / "run.json").read_text())["initial_weights"]
    assert recorded == {"path": str(weights), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    weights.unlink()
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
    printed = refused(["--resume", str(first), f"--model.initial_weights={weights[1]}"], capsys)
    assert "initial_weights is" in printed


def test_auto_skips_a_copy_of_the_same_name(
    run: Path, tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "others" / run.parent.name / run.name)
    started = train(["--resume", "auto", *classifier_args(tiny_ferplus, tmp_path / "others", TINY)])
    assert started != copy and f"{copy} is skipped: it is a copy of {run}" in capsys.readouterr().err


def test_a_moved_run_keeps_its_best_score(tiny_ferplus: Path, tmp_path: Path) -> None:
    arguments = [*WHOLE, TINY, "--best.monitor=val/loss", "--best.mode=min"]
    run = train(classifier_args(tiny_ferplus, tmp_path, *arguments))
    moved = run.rename(tmp_path / "moved")
    before = read_checkpoint(moved / "checkpoints" / "latest.ckpt")["callbacks"]
    train(["--resume", str(moved), "--trainer.max_epochs=3"])
    scores = [float(row["val/loss"]) for row in read_csv(moved / "metrics.csv") if row["val/loss"]]
    assert len(scores) == 3

    def best(callbacks: Any) -> dict[str, Any]:
        return next(state for name, state in callbacks.items() if name.startswith("ModelCheckpoint"))

    after: Any = read_checkpoint(moved / "checkpoints" / "latest.ckpt")["callbacks"]
    assert float(best(before)["best_model_score"]) == pytest.approx(min(scores[:2]))
    assert float(best(after)["best_model_score"]) == pytest.approx(min(scores))
    assert best(after)["best_model_path"] == str(moved / "checkpoints" / "best.ckpt")


def test_two_trainings_do_not_share_a_run_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (run / "metrics.csv").open("a") as file:
        file.write("99,1,0,\n")  # which a run that may be resumed would lose
    before = contents(run)

    def held(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "held")

    monkeypatch.setattr("fcntl.lockf", held)
    assert "is in use by process" in refused(["--resume", str(run), "--trainer.max_epochs=2"], capsys)
    assert "SUPERFER_RUN_FOLDER" not in os.environ
    assert before == contents(run)


def test_preempted_before_the_first_batch(tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a cache is filled, for instance."""
    monkeypatch.setattr(FERPlusDataModule, "train_dataloader", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        train(classifier_args(tiny_ferplus, tmp_path, TINY))
    assert stopped.value.code == 75
    (run,) = tmp_path.glob("*/*")
    assert json.loads((run / "run.json").read_text())["status"] == "preempted"


def test_preempted_while_a_cache_is_filled_ahead_of_time(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = classifier_args(tiny_ferplus, tmp_path, f"--data.cache_dir={tmp_path / 'cache'}")
    with pytest.raises(SystemExit) as stopped:
        upscale([*arguments, "--data.upscaler=tests.stopping.Preempted"])
    assert stopped.value.code == 75 and "preempted; give the same command again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and not list(tmp_path.glob("cache/*/*.npy"))


def test_preempted_test_leaves_no_result(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run / "metrics_test.json"
    with monkeypatch.context() as patched:
        patched.setattr(Stop, "on_test_batch_end", lambda *_: signal.raise_signal(signal.SIGTERM), raising=False)
        with pytest.raises(SystemExit) as stopped:
            run_test(["--ckpt_path", str(run), *stop(run)])
    assert stopped.value.code == 75 and "preempted; give the same command again" in capsys.readouterr().err
    assert not report.exists() and not (run / "predictions_test.csv").exists()
    assert json.loads((run / "run.json").read_text())["status"] == "finished", "the training"
    run_test(["--ckpt_path", str(run)])
    assert report.exists() and (run / "predictions_test.csv").exists()


def test_a_test_of_other_data_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"data_fingerprint": "another"}))
    for command, name in ((run_test, "--ckpt_path"), (train, "--resume")):
        with pytest.raises(SystemExit) as refusal:
            command([name, str(run)])
        assert refusal.value.code == 2
        assert "data_fingerprint is 'another', but what is configured now has" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["metrics.csv", "config.yaml", "run.json"])
def test_a_full_disk_at_a_resume_names_the_file(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, sync = (run / name).read_bytes(), os.fsync
    with (run / "metrics.csv").open("a") as file:
        file.write("99,1,0,\n")  # to be cut back

    def full(file: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SystemExit) as stopped:
        train(["--resume", str(run), "--trainer.max_epochs=2"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 1 and error.startswith("error: ") and str(run / name) in error
    assert (run / name).read_bytes().startswith(before), "the file is intact"


def test_rows_beyond_the_checkpoint_are_logged_once(tiny_ferplus: Path, tmp_path: Path) -> None:
    """Killed long after the last checkpoint."""
    arguments = classifier_args(tiny_ferplus, tmp_path, TINY, *WHOLE)
    with pytest.raises(KilledError):
        train([*arguments, *stop(tmp_path, batches=8)])
    (run,) = tmp_path.glob("*/*")
    assert read_checkpoint(run / "checkpoints" / "latest.ckpt")["global_step"] == 4
    assert max(int(row["step"]) for row in read_csv(run / "metrics.csv")) > 4
    train(["--resume", str(run)])
    steps = [int(row["step"]) for row in read_csv(run / "metrics.csv") if row["lr-SGD/pg1"]]
    assert steps == list(range(8))
    assert [row["epoch"] for row in read_csv(run / "metrics.csv") if row["val/acc"]] == ["0", "1"]
