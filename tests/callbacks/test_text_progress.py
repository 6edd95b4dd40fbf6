"""TextProgress: batches per second, also when an epoch is resumed."""

import time
from types import SimpleNamespace

import pytest

from callbacks.text_progress import TextProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Hold the time as its only entry."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("callbacks.text_progress.EVERY", 10)
    return now


def batches(lines: TextProgress, first: int, last: int, clock: list[float], seconds: float) -> None:
    trainer = SimpleNamespace(is_global_zero=True, current_epoch=3, num_training_batches=20)
    for index in range(first, last):
        lines.on_train_batch_start(trainer, None, None, index)
        clock[0] += seconds
        lines.on_train_batch_end(trainer, None, None, None, index)


def test_rate_is_that_of_batches_since_the_last_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    lines = TextProgress()
    batches(lines, 0, 10, clock, 0.5)
    batches(lines, 10, 20, clock, 0.25)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3, batch 10/20, 2.00 batches/s",
        "epoch 3, batch 20/20, 4.00 batches/s",
    ]


@pytest.mark.parametrize("first", [4, 9])
def test_rate_of_a_resumed_epoch_counts_from_its_first_batch(
    clock: list[float], capsys: pytest.CaptureFixture[str], first: int
) -> None:
    batches(TextProgress(), first, 10, clock, 0.5)
    assert capsys.readouterr().out == "epoch 3, batch 10/20, 2.00 batches/s\n"


def test_pause_between_epochs_does_not_count(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    lines = TextProgress()
    batches(lines, 0, 5, clock, 0.5)
    lines.on_train_epoch_end(SimpleNamespace(is_global_zero=False, callback_metrics={}), None)
    clock[0] += 60  # validation
    batches(lines, 0, 10, clock, 0.5)
    assert capsys.readouterr().out == "epoch 3, batch 10/20, 2.00 batches/s\n"
