"""Write down what a run is, in its folder: its configuration, identity, software and data."""

import contextlib
import json
import platform
import subprocess
import sys
import uuid
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from run_state.checkpoints import RunCheckpoint
from run_state.folder import find_checkpoint
from run_state.identity import read_record, sha256
from run_state.may_differ import INITIAL_WEIGHTS, changed_settings, flatten
from run_state.preemption import PreemptedError, StoppedError
from run_state.wandb_run import wandb_identity
from storage.atomic import write_atomically

_PACKAGES = ("lightning", "torch", "torchvision", "torchmetrics", "wandb", "albumentations", "numpy", "jsonargparse")


def data_identity(data: Any) -> dict[str, str | None]:
    """Return what decides the pixels that a run sees: the arm's name, the data and the generator."""
    upscaler = getattr(data, "upscaler", None)
    return {
        "arm": upscaler.name if upscaler else None,
        "data_fingerprint": data.fingerprint,
        "generator_fingerprint": upscaler.fingerprint() if upscaler else None,
    }


def check_same_data(folder: Path, data: Any) -> None:
    """Refuse to resume or test a run with other pixels than it was trained on: another arm, data set or generator."""
    saved = read_record(folder)
    for key, value in data_identity(data).items():
        if saved.get(key) != value:
            found = f"{key} is {saved.get(key)!r}, but what is configured now has {value!r}"
            raise ValueError(f"{folder / 'run.json'}: {found}")


class RunRecord(L.Callback):
    """Write `config.yaml` and `run.json` when a training starts, and how it ended when it ends.

    The W&B run id is there from the start, so that a killed run can be resumed under the same id. Every checkpoint
    says whose it is, and which settings it was trained with. A test leaves both files as they are, and so does a resume
    that finds nothing left to train.
    """

    def __init__(self, config: str, checkpoint: RunCheckpoint | None = None) -> None:
        self.config, self.checkpoint = config, checkpoint  # as YAML; where a resumed training goes on
        self._settings: dict[str, Any] = yaml.safe_load(config)
        self._record: dict[str, Any] = {}  # of the training under way
        self._begun = False  # and written

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.is_global_zero and stage == "fit":
            self._folder = Path(trainer.default_root_dir)
            self._record = self._describe(trainer, pl_module)
            if self.checkpoint is None:
                self._begin()  # before a cache is filled: a kill leaves a run that can begin again

    def _describe(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        data, checkpoint, config = trainer.datamodule, self.checkpoint, self._settings  # type: ignore[attr-defined]
        earlier = read_record(self._folder) if (self._folder / "run.json").is_file() else {}
        weights = {
            name: earlier.get(name) if checkpoint else _identify(config["model"].get("init_args", {}).get(name))
            for name in INITIAL_WEIGHTS
        }
        start = {
            "started": _now(),
            **conditions(trainer),
            "max_epochs": trainer.max_epochs,
            "max_steps": trainer.max_steps,
            "allowed_changes": changed_settings(checkpoint.settings, config, "resume") if checkpoint else [],
            "checkpoint": checkpoint and checkpoint.facts(),
        }
        return {
            "run_id": earlier.get("run_id", uuid.uuid4().hex),
            "folder": str(self._folder.resolve()),
            "experiment": config["experiment"],
            "seed": config["seed_everything"],
            # With other settings, the rows that W&B has would not be those of `metrics.csv`.
            **wandb_identity(earlier, renewed=bool(start["allowed_changes"])),
            **data_identity(data),
            "synthetic": data.synthetic,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            **weights,
            "started": earlier.get("started", start["started"]),
            "starts": [*earlier.get("starts", []), start],
            "status": "running",
        }

    def _begin(self) -> None:
        self._begun = True
        write_atomically(self._folder / "config.yaml", self.config)
        self._write()

    def _write(self) -> None:
        write_atomically(self._folder / "run.json", json.dumps(self._record, indent=1) + "\n")

    def _end(self, status: str) -> None:
        if self._begun:
            self._record |= {"status": status, "ended": _now()}
            self._write()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._record:  # on the process that writes
            names = ("run_id", "arm", "seed", "data_fingerprint", "generator_fingerprint")
            checkpoint["run"] = {name: self._record[name] for name in names} | {"settings": self._settings}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:  # a finished run that is "resumed" does not come here
            if self.checkpoint:
                self._begin()
                _name_other_conditions(*self._record["starts"][-2:])
                if changes := self._record["starts"][-1]["allowed_changes"]:
                    print(f"resuming with {'; '.join(changes)}: in W&B it is a new run", flush=True)
            results = sorted([*self._folder.glob("metrics_*.json"), *self._folder.glob("predictions_*.csv")])
            if results:  # of a checkpoint that this training goes beyond
                names = ", ".join(path.name for path in results)
                print(f"{names} removed: training goes on; test again when it is done", flush=True)
            for path in results:
                path.unlink()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._record and not self._begun:
            print(f"{self._folder} is finished: nothing is left to train", flush=True)
            self._record = read_record(self._folder)
            self._begun = self._record["status"] != "finished"  # it was killed after its last checkpoint
        self._end("finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        orderly = {KeyboardInterrupt: "interrupted", PreemptedError: "preempted", StoppedError: "stopped"}
        if type(exception) not in orderly:  # on every rank: the first line is that of the culprit
            rank, epoch, batch = trainer.global_rank, trainer.current_epoch, trainer.fit_loop.total_batch_idx
            words = f"{type(exception).__name__}: {' '.join(str(exception).split())}"
            print(f"rank {rank}, epoch {epoch}, batch {batch}: {words}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # on a full disk that is what is being reported
            self._end(orderly.get(type(exception), f"failed: {type(exception).__name__}"))


def _name_other_conditions(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say under which other conditions a run goes on than it was started under last."""
    one, other = flatten(before), flatten(now)
    for names, meaning in (
        (("git_commit", "versions.torch", "threads", "cpu_capability"), "not bit-exact"),
        (("max_epochs",), "the learning rate follows the new length from here on"),
    ):
        changed = [f"{x} {other.get(x)} (was {one.get(x)})" for x in names if one.get(x) != other.get(x)]
        if changed:
            print(f"resuming with other conditions: {', '.join(changed)}; {meaning}", flush=True)


def _identify(weights: str | None) -> dict[str, str] | None:
    """Which file of an earlier stage a generator started from; a resumed run does not need it any more."""
    if weights is None:
        return None
    path = find_checkpoint(weights)
    return {"path": str(path), "sha256": sha256(path)}


def software_state() -> dict[str, object]:
    """Return the git commit, whether files differ from it, and versions of the packages and of Python; plain types."""
    changes = _git("status", "--porcelain")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "versions": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }


def conditions(trainer: L.Trainer) -> dict[str, Any]:
    """Return under what a trainer runs, as far as results may depend on it; plain types."""
    device = trainer.strategy.root_device
    return {
        **software_state(),
        "host": platform.node(),
        "devices": trainer.world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # wandb may be left out
        return None


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
