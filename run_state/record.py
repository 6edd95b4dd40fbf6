"""Write down what a run is: its configuration, identity, software and data, in its folder and in W&B."""

import contextlib
import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers import WandbLogger

from run_state.folder import find_checkpoint, read_record
from run_state.preemption import PreemptedError, StoppedError
from run_state.wandb_run import run_id
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
    """Refuse to resume or test a run with other pixels than it was trained on.

    Raises:
        ValueError: `run.json` of the folder names another arm, data set or generator.
    """
    path = folder / "run.json"
    if not path.is_file():
        return
    saved = read_record(folder)
    for key, value in data_identity(data).items():
        if saved.get(key) != value:
            raise ValueError(f"{path}: {key} is {saved.get(key)!r}, but what is configured now has {value!r}")


class RunRecord(L.Callback):
    """Write `config.yaml` and `run.json` when a training starts, and how it ended when it ends.

    The W&B run id is there from the start, so that a killed run can be resumed under the same id. A test leaves both
    files as they are; its run in W&B gets their content too.

    Args:
        config: the configuration, as YAML.
    """

    def __init__(self, config: str) -> None:
        self.config = config
        self._record: dict[str, Any] = {}  # of the training under way

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        logger = next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
        earlier = read_record(folder) if (folder / "run.json").is_file() else {}
        if stage == "fit":
            self._record = self._describe(trainer, pl_module, logger, earlier)
            write_atomically(folder / "config.yaml", self.config)
            self._write(trainer)
        if logger:
            content = {
                "config": yaml.safe_load(self.config),
                "run": {**(self._record or earlier), "folder": folder.name},
            }
            logger.experiment.config.update(content, allow_val_change=True)

    def _describe(
        self, trainer: L.Trainer, module: L.LightningModule, logger: WandbLogger | None, earlier: Mapping[str, Any]
    ) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        config = yaml.safe_load(self.config)
        weights = {
            name: earlier.get(name) or _identify(config["model"].get("init_args", {}).get(name))
            for name in ("initial_weights", "hourglass_weights")
        }
        return {
            "experiment": config["experiment"],
            "seed": config["seed_everything"],
            "wandb_id": logger.version if logger else run_id(Path(trainer.default_root_dir)),
            **software_state(),
            **data_identity(data),
            "synthetic": data.synthetic,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            **weights,
            "started": earlier.get("started", _now()),
            "status": "running",
        }

    def _write(self, trainer: L.Trainer) -> None:
        write_atomically(Path(trainer.default_root_dir) / "run.json", json.dumps(self._record, indent=1) + "\n")

    def _end(self, trainer: L.Trainer, status: str) -> None:
        if self._record:
            self._record |= {"status": status, "ended": _now()}
            self._write(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:  # a finished run that is "resumed" does not come here
            folder = Path(trainer.default_root_dir)
            for results in (*folder.glob("metrics_*.json"), *folder.glob("predictions_*.csv")):
                results.unlink()  # of a checkpoint that this training goes beyond

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(trainer, "finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        orderly = {KeyboardInterrupt: "interrupted", PreemptedError: "preempted", StoppedError: "finished"}
        if type(exception) not in orderly:  # on every rank: the first line is that of the culprit
            place = (
                f"rank {trainer.global_rank}, epoch {trainer.current_epoch}, batch {trainer.fit_loop.total_batch_idx}"
            )
            words = " ".join(str(exception).split())
            print(f"{place}: {type(exception).__name__}: {words}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # on a full disk that is what is being reported
            self._end(trainer, orderly.get(type(exception), f"failed: {type(exception).__name__}"))


def _identify(weights: str | None) -> dict[str, str] | None:
    """Which file of an earlier stage a generator started from; a resumed run does not need it any more."""
    if weights is None:
        return None
    path = find_checkpoint(weights)
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def software_state() -> dict[str, object]:
    """Return the git commit, whether files differ from it, and versions of the packages and of Python; plain types."""
    changes = _git("status", "--porcelain")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
