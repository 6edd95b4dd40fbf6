"""Arguments that make the shipped configurations run in seconds, for tests that really run them."""

import csv
import hashlib
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lightning_modules.classifier import EmotionClassifier
from models.dic import DIC

REPOSITORY = Path(__file__).parents[1]
TRAINER = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--trainer.precision=32-true",
    "--trainer.max_steps=-1",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.val_check_interval=1.0",
    "--trainer.limit_train_batches=2",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_model_summary=false",
]
SCHEDULE = (
    "strategy",
    "max_steps",
    "check_val_every_n_epoch",
    "val_check_interval",
)  # settings above that are no sizes
NETWORK = {"num_features": 4, "num_steps": 2, "num_groups": 1, "num_fusion_blocks": 1, "hourglass_features": 8}


def config(*names: str) -> list[str]:
    """``--config`` arguments of files below configs/."""
    return [word for name in names for word in ("--config", str(REPOSITORY / "configs" / f"{name}.yaml"))]


def classifier_options(root: Path) -> list[str]:
    """Overrides: 32x32 faces, two batches of eight."""
    data = [f"--data.root={root}", "--data.input_size=32", "--data.batch_size=8", "--data.num_workers=0"]
    return [*TRAINER, *data]


def generator_options(faces: Path, stage: str = "dic") -> list[str]:
    """Overrides: the smallest network of a stage, from scratch, two batches of two faces of 64 pixels."""
    data = [f"--data.train_root={faces}", f"--data.val_root={faces}", "--data.batch_size=2", "--data.num_workers=0"]
    data += [
        "--data.hr_size=64",
        "--data.min_face_size=0",
        "--data.val_min_face_size=0",
        "--trainer.limit_val_batches=2",
    ]
    if stage == "hourglass":
        return [*TRAINER, *data, "--model.net.init_args.num_features=8"]
    model = [f"--model.net.init_args.{name}={value}" for name, value in NETWORK.items()]
    model += ["--model.initial_weights=null"]
    if stage == "dic":
        model += ["--model.hourglass_weights=null"]
    if stage == "dicgan":
        model += ["--model.discriminator.init_args.size=64"]
    return [*TRAINER, *data, *model]


def classifier_args(
    root: Path, runs: Path, *more: str, configs: tuple[str, ...] = ("classifier/bilinear",)
) -> list[str]:
    """Arguments of ``train.py`` for a classifier."""
    return [*config(*configs), f"--runs={runs}", *classifier_options(root), *more]


def generator_args(faces: Path, runs: Path, *more: str) -> list[str]:
    """Arguments of ``train.py`` for a generator."""
    return [*config("generator/dic_small"), f"--runs={runs}", *generator_options(faces), *more]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a header."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def logged(run: Path) -> list[dict[str, str]]:
    """Rows of a run's metrics.csv as an equal run has them: what was measured with a clock is left out."""
    rows = [
        {name: cell for name, cell in row.items() if cell and name != "time" and not name.startswith("perf/")}
        for row in read_csv(run / "metrics.csv")
    ]
    return [row for row in rows if row.keys() - {"step", "epoch"}]


def run_record(folder: Path, seed: int = 0, **facts: Any) -> dict[str, Any]:
    """Content of ``run.json`` of a finished run that was started once, with other or further ``facts``."""
    start = {
        "started": "2026-01-02T03:04:05.000+00:00",
        "git_commit": "abc",
        "git_dirty": False,
        "versions": {"torch": "2.9"},
        "device": "cpu",
        "precision": "32-true",
        "threads": 1,
        "cpu_capability": "AVX2",
        "max_epochs": 8,
        "max_steps": -1,
        "checkpoint": None,
    }
    record = {
        "run_id": hashlib.md5(str(folder).encode()).hexdigest(),
        "folder": folder.name,
        "experiment": "x",
        "arm": "bilinear",
        "seed": seed,
        "wandb_id": "abc",
        "wandb_project": "superfer",
        "data_fingerprint": "d" * 16,
        "synthetic": False,
        "started": start["started"],
        "starts": [start],
        "status": "finished",
    }
    return record | facts


def write_generator(path: Path, seed: int = 0, broken: bool = False) -> Path:
    """A checkpoint of a small random generator; a broken one returns numbers that are not finite."""
    torch.manual_seed(seed)
    net = DIC(**NETWORK)
    state = {f"net.{key}": value.fill_(1e30) if broken else value for key, value in net.state_dict().items()}
    torch.save({"dic_config": net.config, "state_dict": state}, path)
    return path


def as_shipped(options: list[str]) -> list[str]:
    """``options`` without those that change strategy and schedule: what is left makes a training small, no more."""
    return [option for option in options if not option.startswith(tuple(f"--trainer.{name}=" for name in SCHEDULE))]


class HangingRank(L.Callback):
    """Has the second process hang in its second epoch."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            time.sleep(600)


class TinyClassifier(EmotionClassifier):
    """The classifier's task with a network that trains and is saved in no time."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net = nn.Sequential(
            nn.Conv2d(self.in_channels, 4, 3, stride=4),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(16, 8),
        )


def choose_by_step(monkeypatch: pytest.MonkeyPatch, mode: str) -> list[str]:
    """Have classifiers log the step as `val/step`, and return options that choose the best checkpoint by it.

    What so tiny a network reaches is a matter of luck, and of the processor.
    """
    logged = EmotionClassifier.on_validation_epoch_end

    def log_step(module: EmotionClassifier) -> None:
        logged(module)
        module.log("val/step", float(module.trainer.global_step))

    monkeypatch.setattr(EmotionClassifier, "on_validation_epoch_end", log_step)
    monkeypatch.setattr(EmotionClassifier, "monitored", {"val/step": mode})
    return ["--best.monitor=val/step", f"--best.mode={mode}"]
