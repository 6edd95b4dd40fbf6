"""What `metrics.csv` says about speed, waiting, memory and gradients."""

import resource
import time
from pathlib import Path

import lightning as L
import pytest
import torch

from callbacks.throughput import Throughput
from commands.train import train
from tests.tiny_runs import classifier_args, config, generator_options, read_csv


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_speed_and_waiting_without_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    module, trainer = L.LightningModule(), L.Trainer(accelerator="cpu", logger=False)
    trainer.datamodule = type("Data", (), {"batch_size": 30})  # type: ignore[attr-defined]
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda name, value: logged.update({name: value}))
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    callback = Throughput()
    callback.on_train_start(trainer, module)
    for waited, busy, validated in ((2, 3, 7), (1, 4, 0)):
        clock.now += waited
        callback.on_train_batch_start(trainer, module, None, 0)
        clock.now += busy
        callback.on_train_batch_end(trainer)
        clock.now += validated
        callback.on_validation_end(trainer, module)
    callback.on_train_epoch_end(trainer, module)
    assert logged["perf/images_per_s"] == 60 / 10 and logged["perf/data_wait"] == 0.3
    assert logged["perf/peak_memory_gb"] == pytest.approx(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6 * 1.024, rel=0.01
    )


def test_once_an_epoch(tiny_ferplus: Path, tmp_path: Path) -> None:
    options = ["--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]
    rows = read_csv(train(classifier_args(tiny_ferplus, tmp_path, *options)) / "metrics.csv")
    for name in ("perf/images_per_s", "perf/data_wait", "perf/peak_memory_gb"):
        values = [float(row[name]) for row in rows if row[name]]
        assert len(values) == 2 and all(value > 0 for value in values)
    assert all(row["train/acc"] for row in rows if row["perf/data_wait"]), "in the row of the epoch"
    assert len([row for row in rows if row["grad_norm"]]) == 4


def test_norm_of_each_optimiser(tiny_faces: Path, tmp_path: Path) -> None:
    options = [*config("generator/dicgan_small"), f"--runs={tmp_path}", *generator_options(tiny_faces, "dicgan")]
    run = train([*options, "--trainer.log_every_n_steps=1"])
    rows = [row for row in read_csv(run / "metrics.csv") if row["grad_norm"]]
    norms = [(float(row["grad_norm"]), float(row["grad_norm-1"])) for row in rows]
    assert len(norms) == 2 and all(first > 0 and second > 0 and first != second for first, second in norms)
    assert torch.isfinite(torch.tensor(norms)).all()
