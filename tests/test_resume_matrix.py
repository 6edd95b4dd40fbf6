"""Every schedule that somebody might set, stopped in every way: resumed, a run ends as one that nobody stopped."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from commands.train import train
from tests.stopping import KilledError
from tests.test_exact_resume import NOW, TINY, stop
from tests.tiny_runs import as_shipped, classifier_args, config, generator_options
from tests.torture import difference, outcome

LONG = ["--trainer.limit_train_batches=1.0", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1"]
SELDOM = ["--trainer.check_val_every_n_epoch=2"]  # as the generators, but not less than once in a training
NULL = "--trainer.check_val_every_n_epoch=null"
EVERY = "--trainer.val_check_interval"
ACCUMULATE = "--trainer.accumulate_grad_batches"
STEPS = ["--trainer.max_steps=13", "--trainer.max_epochs=-1"]
EMA = ["--trainer.callbacks+=callbacks.weight_average.WeightAverage", "--trainer.callbacks.decay=0.9"]


def callback(name: str, **arguments: object) -> list[str]:
    return [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{key}={value}" for key, value in arguments.items())]


class Restless(L.Callback):
    """Somebody's callback: has a state, logs, and changes weights by draws from all three generators."""

    def __init__(self) -> None:
        self.total = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        drawn = random.random() + float(np.random.random()) + float(torch.rand(()))
        self.total += drawn
        pl_module.log("restless", self.total)
        with torch.no_grad():
            next(pl_module.parameters()).add_(1e-3 * drawn)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total = state_dict["total"]


CLASSIFIER = {  # of 12 batches, 4 an epoch
    "as shipped": [],
    "validation every second epoch": ["--trainer.check_val_every_n_epoch=2"],
    "validation every third batch": [NULL, f"{EVERY}=3"],
    "validation every seventh batch": [NULL, f"{EVERY}=7"],
    "third batch, counted in batches": [NULL, f"{EVERY}=3", *STEPS],
    "seventh batch, counted in batches": [NULL, f"{EVERY}=7", *STEPS],
    "half an epoch": [f"{EVERY}=0.5"],
    "half of every second epoch": [f"{EVERY}=0.5", "--trainer.check_val_every_n_epoch=2"],
    "second batch of an epoch": [f"{EVERY}=2"],
    "third batch of an epoch": [f"{EVERY}=3"],
    "part of a validation": ["--trainer.limit_val_batches=0.5"],
    "sanity check": ["--trainer.num_sanity_val_steps=2"],
    "counted in batches": STEPS,
    "counted in batches and epochs": ["--trainer.max_steps=11"],
    "at least": ["--trainer.min_epochs=2"],
    "accumulation 2": [f"{ACCUMULATE}=2"],
    "accumulation 3": [f"{ACCUMULATE}=3"],
    "accumulation 2, validation every second epoch": [f"{ACCUMULATE}=2", "--trainer.check_val_every_n_epoch=2"],
    "accumulation 2, third batch": [f"{ACCUMULATE}=2", f"{EVERY}=3"],
    "accumulation 2, seventh batch": [f"{ACCUMULATE}=2", NULL, f"{EVERY}=7"],
    "accumulation 3, second batch": [f"{ACCUMULATE}=3", f"{EVERY}=2"],
    "accumulation 2, counted in batches": [f"{ACCUMULATE}=2", "--trainer.max_steps=5", "--trainer.max_epochs=-1"],
    "accumulation 2, workers": [f"{ACCUMULATE}=2", "--data.num_workers=2"],
    "accumulation 2, averaged": [f"{ACCUMULATE}=2", *EMA],
    "accumulation that changes": callback(
        "lightning.pytorch.callbacks.GradientAccumulationScheduler", scheduling="{0: 1, 1: 2, 2: 4}"
    ),
    "clipping": ["--trainer.gradient_clip_val=0.1"],
    "clipping by value": ["--trainer.gradient_clip_val=0.01", "--trainer.gradient_clip_algorithm=value"],
    "no mixup": ["--model.mixup=0"],
    "averaged": EMA,
    "averaged, validation every second epoch": [*EMA, "--trainer.check_val_every_n_epoch=2"],
    "averaged, third batch": [*EMA, NULL, f"{EVERY}=3"],
    "small images first": ["--data.early_size=16", "--data.early_epochs=2"],
    "three batches": ["--trainer.limit_train_batches=3"],
    "half of the batches": ["--trainer.limit_train_batches=0.5"],
    "three batches, workers": ["--trainer.limit_train_batches=3", "--data.num_workers=2"],
    "one batch": ["--trainer.limit_train_batches=1", "--trainer.max_epochs=8"],
    "early stopping": callback("lightning.pytorch.callbacks.EarlyStopping", monitor="val/loss", patience=9),
    "a callback of one's own": callback("tests.test_resume_matrix.Restless"),
    "own callback, third batch": [*callback("tests.test_resume_matrix.Restless"), NULL, f"{EVERY}=3"],
    "workers": ["--data.num_workers=2"],
    "workers, third batch": ["--data.num_workers=2", NULL, f"{EVERY}=3"],
    "drawn labels": ["--data.label_mode=probability"],
    "several labels": [
        "--data.label_mode=multi_target",
        "--model.loss=multi_target",
        "--model.mixup=0",
        "--model.label_smoothing=0",
    ],
    "bfloat16": ["--trainer.precision=bf16-mixed"],
    "steps of the rate": ["--model.optimizer.schedule=multistep", "--model.optimizer.milestones=[3, 7]"],
    "one cycle": ["--model.optimizer.schedule=onecycle", "--model.optimizer.warmup=0.3"],
    "AdamW": ["--model.optimizer.name=adamw", "--model.optimizer.lr=0.001"],
    "logged every third batch": ["--trainer.log_every_n_steps=3"],
    "a second CSV": ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=csv"],
    "last beside": ["--best.save_last=true"],
    "loaders anew every epoch": ["--trainer.reload_dataloaders_every_n_epochs=1"],
    "loaders anew every second epoch": ["--trainer.reload_dataloaders_every_n_epochs=2"],
    "loaders anew, workers": ["--trainer.reload_dataloaders_every_n_epochs=1", "--data.num_workers=2"],
    "loaders anew, third batch": ["--trainer.reload_dataloaders_every_n_epochs=1", NULL, f"{EVERY}=3"],
}
STEPS_OF_GENERATORS = ["--trainer.max_steps=14", "--trainer.max_epochs=-1", NULL, f"{EVERY}=4"]
GENERATOR = {  # of 18 batches, 6 an epoch
    "hourglass": ("hourglass", []),
    "hourglass, every fourth batch": ("hourglass", STEPS_OF_GENERATORS),
    "hourglass, accumulation": ("hourglass", [f"{ACCUMULATE}=4"]),
    "dic": ("dic", ["--model.freeze_hourglass=8"]),
    "dic, every fourth batch": ("dic", ["--model.freeze_hourglass=5", *STEPS_OF_GENERATORS]),
    "dic, half an epoch": ("dic", [f"{EVERY}=0.5", "--trainer.check_val_every_n_epoch=1"]),
    "dic, accumulation": ("dic", ["--model.freeze_hourglass=3", f"{ACCUMULATE}=4"]),
    "dic, workers": ("dic", ["--data.num_workers=2"]),
    "dicgan": ("dicgan", []),
    "dicgan, every fourth batch": ("dicgan", STEPS_OF_GENERATORS),
    "dicgan, half an epoch": ("dicgan", [f"{EVERY}=0.5", "--trainer.check_val_every_n_epoch=1"]),
}
STOPS: dict[str, dict[str, Any]] = {
    "batch 5": {"batches": 5},
    "batch 7": {"batches": 7},
    "within step 6": {"step": 6},
    "validation": {"epoch": 1},
    "end of an epoch": {"ended": 1},
    "SIGTERM 7": {"batches": 7, "how": "SIGTERM"},
    "SIGTERM in validation": {"epoch": 1, "how": "SIGTERM"},
    "clock 5": {"batches": 5, "how": "clock"},
    "clock 7": {"batches": 7, "how": "clock"},
    "clock in validation": {"epoch": 1, "how": "clock"},
}


QUICK = {  # of `make test`; the others of `make torture`
    ("accumulation 2", "clock 7"),
    ("counted in batches", "clock 7"),
    ("counted in batches", "clock in validation"),
    ("accumulation that changes", "batch 7"),
    ("a callback of one's own", "within step 6"),
    ("loaders anew, third batch", "SIGTERM 7"),
}


def combined(schedules: Iterable[str]) -> list[Any]:
    return [
        pytest.param(schedule, place, marks=[] if (schedule, place) in QUICK else pytest.mark.slow)
        for schedule in schedules
        for place in STOPS
    ]


def resumed(arguments: list[str], folder: Path, place: dict[str, Any]) -> Path:
    """Train, with a stop at one place; resume if that place was come to."""
    try:
        run = train([*arguments, NOW, f"--runs={folder}", *stop(folder, **place)])
    except (KilledError, SystemExit):
        (run,) = (record.parent for record in folder.glob("*/*/run.json"))
    if not (folder / "stopped").exists():
        pytest.skip("a training of this schedule does not come there")
    return train(["--resume", str(run)])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], Path]:
    runs: dict[str, Path] = {}

    def run(arguments: list[str]) -> Path:
        key = str(arguments)
        if key not in runs:
            runs[key] = train([*arguments, f"--runs={tmp_path_factory.mktemp('undisturbed')}"])
        return runs[key]

    return run


@pytest.fixture(autouse=True)
def no_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)  # the second CSV lies in the working directory


@pytest.mark.parametrize(("schedule", "place"), combined(CLASSIFIER))
def test_classifier(
    schedule: str, place: str, tiny_ferplus: Path, tmp_path: Path, undisturbed: Callable[[list[str]], Path]
) -> None:
    arguments = [*classifier_args(tiny_ferplus, Path("runs"), TINY, *LONG, "--model.mixup=0.4"), *CLASSIFIER[schedule]]
    run = resumed(arguments, tmp_path, STOPS[place])
    assert difference(outcome(undisturbed(arguments)), outcome(run)) is None


@pytest.mark.parametrize(("schedule", "place"), combined(GENERATOR))
def test_generator(
    schedule: str, place: str, tiny_faces: Path, tmp_path: Path, undisturbed: Callable[[list[str]], Path]
) -> None:
    stage, options = GENERATOR[schedule]
    small = as_shipped(generator_options(tiny_faces, stage))
    arguments = [*config(f"generator/{stage}_small"), *small, "--trainer.strategy=auto", *LONG, *SELDOM, *options]
    run = resumed(arguments, tmp_path, STOPS[place])
    assert difference(outcome(undisturbed(arguments)), outcome(run)) is None
