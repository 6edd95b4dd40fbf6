"""Dead and stuck processes end a job, and are named."""

import itertools
import json
import os
import signal
import subprocess
import sys
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


RECORDED: list[tuple[str, int]] = []  # what rank 0 wrote down


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> list[Watch]:
    """Three processes that share a store; their threads are not started, so `look` is called by hand."""

    def end(code: int) -> None:
        raise EndedError(code)

    monkeypatch.setattr(rank_watch.os, "_exit", end)
    monkeypatch.setattr(rank_watch, "GRACE", 0.01)
    monkeypatch.setattr(
        rank_watch.faulthandler, "dump_traceback", lambda all_threads: print("the stack", file=sys.stderr)
    )
    RECORDED.clear()
    store = HashStore()
    found = [Watch(store, rank, 3, 60.0, [], record=lambda *told: RECORDED.append(told)) for rank in range(3)]
    for watch in found:
        watch.tell()
    return found


def ages(watch: Watch, seconds: float) -> None:
    """Lets time pass for what a watch has seen."""
    for times in (watch._beaten, watch._moved):
        for rank in times:
            times[rank] -= seconds


def test_living_processes_are_left_alone(watches: list[Watch]) -> None:
    for batch in range(8):
        for watch in watches:
            watch.mark = ([batch, 0, 0], "somewhere")
            watch.look()
        for watch in watches:
            watch.look()
            ages(watch, 12)


def test_machine_that_was_asleep_is_no_reason(watches: list[Watch]) -> None:
    for watch in watches:
        watch.look()
    ages(watches[0], 1000)
    watches[0]._looked -= 1000
    watches[0].look()


def test_silent_process_is_named(watches: list[Watch], capsys: pytest.CaptureFixture[str]) -> None:
    watches[2].mark = ([7, 0, 0], "epoch 1, batch 7, forward pass")
    for watch in watches[::-1]:
        watch.look()
    ages(watches[0], 16)
    watches[1].tell()
    with pytest.raises(EndedError, match="1"):
        watches[0].look()
    said = capsys.readouterr().err
    assert "rank 2 (" in said and "no sign of life for 16 s" in said and "epoch 1, batch 7, forward pass" in said
    assert "rank 1" not in said
    ((status, code),) = RECORDED
    assert status.startswith("failed: rank 2 (") and code == 1
    with pytest.raises(EndedError):
        watches[1].look()
    said = capsys.readouterr().err
    assert "rank 1 ends: rank 2 (" in said and "the stack" not in said


def test_rank_that_is_furthest_back_is_the_stuck_one(watches: list[Watch], capsys: pytest.CaptureFixture[str]) -> None:
    for watch, phase in zip(watches, (2, 1, 2), strict=True):
        watch.mark = ([7, 0, phase], f"epoch 1, batch 7, phase {phase}")
        watch.tell()
    watches[0].look()
    ages(watches[0], 61)
    for watch in watches[1:]:
        watch.tell()
    with pytest.raises(EndedError):
        watches[0].look()
    said = capsys.readouterr().err
    assert "rank 1 (" in said and "stuck for 61 s" in said and "phase 1" in said and "the stack" not in said
    assert "rank 0 (" not in said and "rank 2 (" not in said
    with pytest.raises(EndedError):
        watches[1].look()
    assert "the stack" in capsys.readouterr().err


def test_marks_grow_with_two_backward_passes_in_a_batch(watches: list[Watch]) -> None:
    callback = RankWatch()
    callback.watch, seen = watches[1], []
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(total_batch_idx=4), current_epoch=1)
    hooks = [callback.on_train_batch_start, *[callback.on_before_backward, callback.on_after_backward] * 2]
    for hook in [*hooks, callback.on_train_batch_end]:
        hook(trainer)  # type: ignore[operator]
        seen.append(watches[1].mark[0])
    callback.on_validation_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    seen.append(watches[1].mark[0])
    callback.on_validation_epoch_end(trainer)  # type: ignore[arg-type]
    seen.append(watches[1].mark[0])
    assert all(earlier < later for earlier, later in itertools.pairwise(seen))


def test_failed_process_is_quoted(watches: list[Watch], capsys: pytest.CaptureFixture[str]) -> None:
    watches[1].stop("has failed: ValueError: no such thing")
    ages(watches[0], 1)
    watches[0]._read(1)
    ages(watches[0], 1)
    watches[2].tell()
    with pytest.raises(EndedError):
        watches[0].look()
    assert "rank 1 (" in (said := capsys.readouterr().err) and "has failed: ValueError: no such thing" in said


def test_process_that_was_only_told_to_stop_blames_the_failed_one(watches: list[Watch]) -> None:
    watches[0].blame_failed()
    watches[1].stop("has failed: ValueError: no such thing")
    with pytest.raises(EndedError, match="1"):
        watches[0].blame_failed()


def test_process_that_lost_its_partner_is_not_to_blame(
    watches: list[Watch], capsys: pytest.CaptureFixture[str]
) -> None:
    watches[0].look()
    watches[1].tell("has lost a partner: RuntimeError: connection reset")
    ages(watches[0], 7)
    watches[1].tell()
    watches[0].look()
    with pytest.raises(EndedError):
        watches[0].look()
    assert "rank 2 (" in (said := capsys.readouterr().err) and "no sign of life for 7 s" in said


@pytest.mark.parametrize(("end", "code"), [("has ended", 1), ("was told to stop", 75)])
def test_process_that_ends_alone(end: str, code: int, watches: list[Watch]) -> None:
    watches[1].stop(end)
    watches[0].look()
    ages(watches[0], 10)
    watches[2].tell()
    watches[0].look()
    ages(watches[0], 10)
    watches[2].tell()
    with pytest.raises(EndedError, match=str(code)):
        watches[0].look()


def test_lost_store_means_the_first_process(watches: list[Watch], capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("connection refused")

    watches[1].store = SimpleNamespace(set=refuse, check=refuse)
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
        pytest.param(
            signal.SIGSTOP, ["--ranks.stuck_minutes=0.1"], "has given no sign of life", marks=pytest.mark.slow
        ),
        (None, ["--ranks.stuck_minutes=0.1", "--trainer.callbacks+=tests.tiny_runs.StuckRank"], "has been stuck for"),
    ],
    ids=["dead", "stopped", "stuck"],
)
def test_job_of_two_processes_ends(
    number: signal.Signals | None, options: list[str], said: str, tiny_ferplus: Path, tmp_path: Path
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
        if number:
            os.kill(int(child), number)
        assert process.wait(timeout=60) not in (0, None)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    printed, record = log.read_text(), json.loads((run / "run.json").read_text())
    assert f"process {child}) {said}" in printed and "error: rank 1 (" in printed
    assert ("in on_train_batch_start" in printed) == (number is None), "a process that can prints where it stands"
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
