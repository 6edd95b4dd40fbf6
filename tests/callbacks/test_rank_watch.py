"""Dead and stuck processes end a job, and are named."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from callbacks import rank_watch
from callbacks.rank_watch import RankWatch, Watch
from tests.tiny_runs import classifier_args
from tests.torture import only_run, start


class EndedError(Exception):
    """In place of the process's end."""


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> list[Watch]:
    """Three processes that share a store; their threads are not started, so `look` is called by hand."""

    def end(code: int) -> None:
        raise EndedError(code)

    monkeypatch.setattr(rank_watch.os, "_exit", end)
    monkeypatch.setattr(rank_watch, "GRACE", 0.01)
    store = HashStore()
    monkeypatch.setattr(HashStore, "clone", lambda self: self, raising=False)
    verdicts: list[str] = []
    found = [Watch(store, rank, 3, 60.0, [], verdicts.append) for rank in range(3)]
    for watch in found:
        watch.tell()
    return found


def ages(watch: Watch, seconds: float) -> None:
    """Lets time pass for what a watch has seen."""
    for times in (watch._beaten, watch._moved):
        for rank in times:
            times[rank] -= seconds


def test_living_processes_are_left_alone(watches: list[Watch]) -> None:
    for _ in range(3):
        for batch, watch in enumerate(watches):
            watch.mark = ([batch, 0, 0], "somewhere")
            watch.look()


def test_silent_process_is_named(watches: list[Watch], capsys: pytest.CaptureFixture[str]) -> None:
    watches[2].mark = ([7, 0, 0], "epoch 1, batch 7, forward pass")
    for watch in watches[::-1]:
        watch.look()
    ages(watches[0], 31)
    watches[1].tell()
    with pytest.raises(EndedError):
        watches[0].look()
    said = capsys.readouterr().err
    assert "rank 2 (" in said and "no sign of life for 31 s" in said and "epoch 1, batch 7, forward pass" in said
    assert "rank 1" not in said
    with pytest.raises(EndedError):
        watches[1].look()
    assert "rank 1 ends: rank 2 (" in capsys.readouterr().err


def test_rank_that_is_furthest_back_is_the_stuck_one(watches: list[Watch], capsys: pytest.CaptureFixture[str]) -> None:
    for watch, phase in zip(watches, (1, 0, 1), strict=True):
        watch.mark = ([7, phase, 0], f"epoch 1, batch 7, phase {phase}")
        watch.tell()
    watches[0].look()
    ages(watches[0], 61)
    for watch in watches[1:]:
        watch.tell()
    with pytest.raises(EndedError):
        watches[0].look()
    said = capsys.readouterr().err
    assert "rank 1 (" in said and "stuck for 61 s" in said and "phase 0" in said
    assert "rank 0 (" not in said and "rank 2 (" not in said


def test_failed_process_is_quoted(watches: list[Watch], capsys: pytest.CaptureFixture[str]) -> None:
    watches[1].stop("has failed: ValueError: no such thing")
    with pytest.raises(EndedError):
        watches[0].look()
    assert "has failed: ValueError: no such thing" in capsys.readouterr().err


def test_processes_that_have_ended_are_not_missed(watches: list[Watch]) -> None:
    watches[1].stop()
    ages(watches[0], 45)
    watches[2].tell()
    watches[0].look()


def test_lost_store_means_the_first_process(watches: list[Watch], capsys: pytest.CaptureFixture[str]) -> None:
    watches[1].store = SimpleNamespace()  # whatever is asked of it fails
    with pytest.raises(EndedError):
        watches[1].look()
    assert "rank 0 has died" in capsys.readouterr().err


def test_limit_must_be_positive() -> None:
    with pytest.raises(ValueError, match="stuck_minutes is 0"):
        RankWatch(0)


@pytest.mark.parametrize(
    ("number", "options", "said"),
    [
        (signal.SIGKILL, [], "has died (signal 9)"),
        (signal.SIGSTOP, ["--ranks.stuck_minutes=0.1"], "has given no sign of life"),
    ],
    ids=["dead", "stopped"],
)
def test_job_of_two_processes_ends(
    number: signal.Signals, options: list[str], said: str, tiny_ferplus: Path, tmp_path: Path
) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=10000", "--latest.minutes=0"]
    log = tmp_path / "log.txt"
    process = start("train.py", classifier_args(tiny_ferplus, tmp_path / "runs", *two, *options), log)
    try:
        run = only_run(tmp_path / "runs", process)
        latest, patience = run / "checkpoints" / "latest.ckpt", time.monotonic() + 120
        while not latest.is_file():
            assert process.poll() is None and time.monotonic() < patience, log.read_text()[-3000:]
            time.sleep(0.1)
        listed = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"], capture_output=True, text=True)
        (child,) = listed.stdout.split()
        os.kill(int(child), number)
        assert process.wait(timeout=60) not in (0, None)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    printed, record = log.read_text(), json.loads((run / "run.json").read_text())
    assert f"process {child}) {said}" in printed and "error: rank 1 (" in printed
    assert record["status"].startswith("failed: rank 1 (") and said in record["status"]
    patience = time.monotonic() + 10
    while _lives(child) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not _lives(child), "something is left behind"


def _lives(process: str) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
