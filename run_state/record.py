"""Run folders: where a run lives, how it is named, found again and described.

A run folder is ``runs/<experiment>/<time>_s<seed>`` and holds ``config.yaml``, ``checkpoints/``, ``metrics.csv``,
``run.json``, ``wandb/``, and after testing ``metrics_{split}.json`` and ``predictions_{split}.csv``.
"""

import contextlib
import hashlib
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from run_state.folder import find_checkpoint, read_record
from run_state.preemption import PreemptedError
from storage.atomic import write_atomically

_PACKAGES = ("lightning", "torch", "torchvision", "torchmetrics", "wandb", "albumentations", "numpy", "jsonargparse")


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def software_state() -> dict[str, object]:
    """Git commit, whether files differ from it, versions of the packages and of Python; plain types."""
    changes = _git("status", "--porcelain")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }


def data_identity(data: Any) -> dict[str, str | None]:
    """What decides the pixels that a run sees: the arm's name, the data and the generator."""
    upscaler = getattr(data, "upscaler", None)
    return {
        "arm": upscaler.name if upscaler else None,
        "data_fingerprint": data.fingerprint,
        "generator_fingerprint": upscaler.fingerprint() if upscaler else None,
    }


def check_same_data(folder: Path, data: Any) -> None:
    """Refuses to continue or test a run with other pixels than it was trained on.

    Raises:
        ValueError: ``run.json`` of the folder names another arm, data set or generator.
    """
    path = folder / "run.json"
    if not path.is_file():
        return
    saved = read_record(folder)
    for key, value in data_identity(data).items():
        if saved.get(key) != value:
            raise ValueError(f"{path}: {key} is {saved.get(key)!r}, but what is configured now has {value!r}")


class RunRecord(SaveConfigCallback):
    """Rank 0 writes ``config.yaml`` and ``run.json`` when a training starts, and how it ended when it ends.

    The W&B run id is written at the start, so that a killed run can be continued under the same id. A test leaves both
    files as they are; its run in W&B gets their content too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})
        self._record: dict[str, Any] = {}  # of the training that runs

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called by Lightning on rank 0 before anything runs."""
        folder = Path(trainer.default_root_dir)
        config = self.parser.dump(self.config, skip_none=False)
        logger = next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
        path = folder / "run.json"
        earlier = read_record(folder) if path.is_file() else {}
        record = earlier
        if stage == "fit":
            record = self._record = self._describe(trainer, pl_module, logger) | {
                "started": earlier.get("started", _now()),
                **{name: earlier.get(name) or self._weights(name) for name in ("initial_weights", "hourglass_weights")},
                "status": "running",
            }
            write_atomically(folder / "config.yaml", config)
            self._write(trainer)
        if logger:
            logger.experiment.config.update(
                {"config": yaml.safe_load(config), "run": {**record, "folder": folder.name}}, allow_val_change=True
            )

    def _describe(self, trainer: L.Trainer, pl_module: L.LightningModule, logger: WandbLogger | None) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        return {
            "experiment": self.config.experiment,
            "seed": self.config.seed_everything,
            "wandb_id": logger.version if logger else None,
            **software_state(),
            **data_identity(data),
            "synthetic": data.synthetic,
            "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
        }

    def _weights(self, name: str) -> dict[str, str] | None:
        """Which file of an earlier stage a generator started from; a resumed run does not need it any more."""
        given = self.config.model.init_args.get(name)
        if given is None:
            return None
        path = find_checkpoint(given)
        return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self._record:
            write_atomically(Path(trainer.default_root_dir) / "run.json", json.dumps(self._record, indent=1) + "\n")

    def end(self, trainer: L.Trainer, status: str) -> None:
        if self._record:
            self._record |= {"status": status, "ended": _now()}
            self._write(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:  # a finished run that is "continued" does not come here
            folder = Path(trainer.default_root_dir)
            for results in (*folder.glob("metrics_*.json"), *folder.glob("predictions_*.csv")):
                results.unlink()  # of a checkpoint that this training goes beyond

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end(trainer, "finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        orderly = {KeyboardInterrupt: "interrupted", PreemptedError: "preempted"}
        if type(exception) not in orderly:  # on every rank: the first line is that of the culprit
            place = (
                f"rank {trainer.global_rank}, epoch {trainer.current_epoch}, batch {trainer.fit_loop.total_batch_idx}"
            )
            words = " ".join(str(exception).split())
            print(f"{place}: {type(exception).__name__}: {words}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # on a full disk that is what is being reported
            self.end(trainer, orderly.get(type(exception), f"failed: {type(exception).__name__}"))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
