"""Writes down what a run is: its configuration, identity, software and data, in its folder and in W&B."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from datamodules.files import write_atomically
from runs import software_state


class RunRecord(SaveConfigCallback):
    """Rank 0 writes ``config.yaml`` and ``run.json`` when training starts, and how it ended when it ends.

    The W&B run id is written at the start, so that a killed run can be continued under the same id.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})
        self._record: dict[str, Any] = {}

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(trainer.default_root_dir)
        config = self.parser.dump(self.config, skip_none=False)
        wandb_logger = next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
        upscaler = getattr(data, "upscaler", None)
        if stage == "fit":
            earlier = folder / "run.json"
            self._record = {
                "experiment": self.config.experiment,
                "arm": upscaler.name if upscaler else None,
                "seed": self.config.seed_everything,
                "wandb_id": wandb_logger.version if wandb_logger else None,
                **software_state(),
                "data_fingerprint": data.fingerprint,
                "generator_fingerprint": upscaler.fingerprint() if upscaler and upscaler.cached else None,
                "synthetic": data.synthetic,
                "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
                "started": json.loads(earlier.read_text())["started"] if earlier.is_file() else _now(),
                "status": "running",
            }
            write_atomically(folder / "config.yaml", config)
            self._write(trainer)
        if wandb_logger:
            wandb_logger.experiment.config.update(
                {"config": yaml.safe_load(config), "run": {**self._record, "folder": folder.name}},
                allow_val_change=True,
            )

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self._record:
            write_atomically(Path(trainer.default_root_dir) / "run.json", json.dumps(self._record, indent=1) + "\n")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._record |= {"status": "finished" if not trainer.interrupted else "interrupted", "ended": _now()}
        self._write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._record |= {"status": f"failed: {type(exception).__name__}", "ended": _now()}
        self._write(trainer)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
