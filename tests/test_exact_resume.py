"""A run that was stopped anywhere and continued has the weights, bit by bit, and the curves of one that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks.log_lines import LogLines
from cli import train
from models.checkpoints import CheckpointError, read_checkpoint
from resuming import newest_whole
from tests.tiny_runs import classifier_args, config, generator_options, read_csv

WHOLE = ["--trainer.limit_train_batches=1.0", "--trainer.max_epochs=2", "--latest.minutes=0"]
STEPS = ["--trainer.log_every_n_steps=1"]


class KilledError(Exception):
    """Stands for the death of the process."""


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Has a training die when so many batches are done: before their checkpoint is written."""

    def die(callback: LogLines, trainer: L.Trainer, *_: object) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == batches:
            raise KilledError

    monkeypatch.setattr(LogLines, "on_train_batch_end", die)


def stop_in_validation(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    def die(callback: LogLines, trainer: L.Trainer, *_: object) -> None:
        if trainer.current_epoch == epoch:
            raise KilledError

    monkeypatch.setattr(LogLines, "on_validation_batch_end", die, raising=False)


def final_state(run: Path) -> dict[str, Any]:
    saved = read_checkpoint(run / "checkpoints" / "latest.ckpt")
    kept = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "epoch", "global_step")
    return {name: saved[name] for name in kept if name in saved}


def assert_equal(first: Any, second: Any, where: str = "") -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), where
        for place, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{where}/{place}")
    else:
        assert first == second, where


def compare(arguments: Callable[[Path], list[str]], stop: Callable[[pytest.MonkeyPatch], None], folder: Path) -> None:
    """Runs through, runs and stops, continues; compares weights, optimizers and curves."""
    whole = train(arguments(folder / "whole"))
    with pytest.MonkeyPatch.context() as patched:
        stop(patched)
        with pytest.raises(KilledError):
            train(arguments(folder / "stopped"))
    (stopped,) = (folder / "stopped").glob("*/*")
    train(["--resume", str(stopped)])
    assert_equal(final_state(whole), final_state(stopped))
    curves = [
        [{k: v for k, v in row.items() if v} for row in read_csv(run / "metrics.csv")] for run in (whole, stopped)
    ]
    assert curves[0] == curves[1]


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
    compare(lambda runs: classifier_args(tiny_ferplus, runs, *WHOLE, *mixup, *options), stop, tmp_path)


@pytest.mark.parametrize("stage", ["hourglass", "dic", "dicgan"])
def test_generator(stage: str, tiny_faces: Path, tmp_path: Path) -> None:
    def arguments(runs: Path) -> list[str]:
        options = generator_options(tiny_faces, stage)
        return [*config(f"generator/{stage}_small"), f"--runs={runs}", *options, *WHOLE, *STEPS]

    compare(arguments, lambda patch: stop_after(patch, 9), tmp_path)


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
