"""Checkpoints appear whole or not at all, and the newest that is intact is found."""

import errno
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from commands.train import train
from run_state.checkpoints import AtomicCheckpointIO, newest_intact
from storage.checkpoints import CheckpointError, read_checkpoint
from tests.test_exact_resume import NOW, WHOLE
from tests.tiny_runs import classifier_args, run_record
from tests.torture import difference, outcome

TINY = "--model=tests.tiny_runs.TinyClassifier"


def no_space(file: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def write(run: Path, name: str, step: int) -> Path:
    path, record = run / "checkpoints" / name, run_record(run)
    (run / "run.json").write_text(json.dumps(record))
    own = {"run_id": record["run_id"], "settings": {"seed_everything": 0}}
    content = {"global_step": step, "epoch": 0, "loops": {}, "run": own, "weights": torch.arange(1000.0)}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def newest_step(run: Path) -> int:
    checkpoint = newest_intact(run)
    assert checkpoint
    return checkpoint.global_step


def test_damaged_checkpoints_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = write(tmp_path, "best.ckpt", 4)
    write(tmp_path, "latest.ckpt", 6)
    latest = write(tmp_path, "latest.ckpt", 8)
    previous = latest.with_name("previous.ckpt")
    assert newest_step(tmp_path) == 8
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, in the weights
    latest.write_bytes(content)
    assert newest_step(tmp_path) == 6
    assert "has changed since it was written" in capsys.readouterr().err
    previous.write_bytes(b"")
    assert newest_step(tmp_path) == 4
    best.unlink()
    torch.save({"state_dict": {}}, best)  # weights alone, as exported
    with pytest.raises(CheckpointError, match=r"best\.ckpt is not the checkpoint of a training"):
        newest_intact(tmp_path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "latest.ckpt", 5)
    other = run_record(tmp_path, run_id="0" * 32, arm="dic", seed=3)
    own = run_record(tmp_path)["run_id"]
    (tmp_path / "run.json").write_text(json.dumps(other))
    message = rf"latest\.ckpt is a checkpoint of run {own} .*, but .* is run {'0' * 32} \(arm dic, seed 3\)"
    with pytest.raises(ValueError, match=message):
        newest_intact(tmp_path)
    torch.save({"global_step": 5, "epoch": 0, "loops": {}}, path)
    with pytest.raises(ValueError, match="does not say of which run it is: an earlier version wrote it"):
        newest_intact(tmp_path)


def test_failed_save_spares_the_checkpoint_that_is_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest is damaged, the one before it is not, and the disk is full."""
    previous = write(tmp_path, "previous.ckpt", 5)
    latest = previous.with_name("latest.ckpt")
    latest.write_bytes(b"damaged")
    before = previous.read_bytes()
    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="cannot be written"):
        write(tmp_path, "latest.ckpt", 6)
    assert previous.read_bytes() == before
    assert sorted(path.name for path in latest.parent.iterdir()) == ["latest.ckpt", "previous.ckpt"]


def test_full_disk_stops_the_run_and_leaves_the_earlier_checkpoint(
    tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [TINY, *WHOLE, NOW]
    whole = train(classifier_args(tiny_ferplus, tmp_path / "whole", *arguments))
    save = AtomicCheckpointIO.save_checkpoint

    def fill(
        self: AtomicCheckpointIO, checkpoint: dict[str, object], path: str | Path, storage_options: object = None
    ) -> None:
        with monkeypatch.context() as patched:
            if checkpoint["global_step"] == 6:
                patched.setattr("os.fsync", no_space)
            save(self, checkpoint, path, storage_options)

    with monkeypatch.context() as patched:
        patched.setattr(AtomicCheckpointIO, "save_checkpoint", fill)
        with pytest.raises(SystemExit) as failed:
            train(classifier_args(tiny_ferplus, tmp_path / "stopped", *arguments))
    assert failed.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and "No space left" in last
    assert "the earlier ones are intact: make room and resume" in last
    (run,) = (tmp_path / "stopped").glob("*/*")
    assert json.loads((run / "run.json").read_text())["status"] == "failed: OSError"
    assert read_checkpoint(run / "checkpoints" / "latest.ckpt")["global_step"] == 5
    assert not list(run.rglob("*.writing-*")), "a half-written file is left"
    train(["--resume", str(run)])
    assert difference(outcome(whole), outcome(run)) is None


@pytest.mark.parametrize(("seconds", "expected"), [(199, [0, 4, 8]), (200, [0, 3, 4, 7, 8])])
def test_saved_when_an_epoch_begins_at_the_end_and_every_ten_minutes(
    seconds: int, expected: list[int], tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves by `seconds` whenever it is read: once a batch, and once a checkpoint."""
    clock = itertools.count(0, seconds)
    monkeypatch.setattr("run_state.checkpoints.time", SimpleNamespace(monotonic=lambda: next(clock)))
    saved: list[int] = []
    save = AtomicCheckpointIO.save_checkpoint

    def note(
        self: AtomicCheckpointIO, checkpoint: dict[str, object], path: str | Path, storage_options: object = None
    ) -> None:
        if Path(path).name == "latest.ckpt":
            saved.append(checkpoint["global_step"])
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", note)
    train(classifier_args(tiny_ferplus, tmp_path, TINY, *WHOLE))
    assert saved == expected
