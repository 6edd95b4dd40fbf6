"""The run in Weights & Biases that belongs to a run folder.

Its configuration comes from `run_state.record`, its pictures from `callbacks.face_strip`; metrics are what modules log.
"""

import os
import uuid
from pathlib import Path
from typing import Literal

import wandb
from lightning.pytorch.loggers import WandbLogger

from run_state.identity import read_record
from run_state.lightning_internals import drop_anonymous

PROJECT = "superfer"
FINISH_TIMEOUT_S = 60.0  # for the last upload; without network W&B would wait for ever
WandbMode = Literal["online", "offline", "disabled"]


def wandb_mode() -> WandbMode:
    """Return how W&B is to run: as `WANDB_MODE` says, else online if there is a key; it never asks at the terminal.

    Raises:
        ValueError: Online is asked for, but there is no key; W&B would ask for it.
    """
    mode = os.environ.get("WANDB_MODE", "")
    if mode == "disabled":
        return "disabled"
    if mode not in ("", "online"):
        return "offline"
    try:
        logged_in = wandb.login(prompt=False, verify=False)
    except wandb.errors.Error as error:
        raise ValueError(f"W&B refuses its key: {error}") from error
    if mode == "online" and not logged_in:
        raise ValueError(
            "WANDB_MODE is online, but there is no key; set WANDB_API_KEY, log in with `wandb login`, or set "
            "WANDB_MODE=offline"
        )
    return "online" if logged_in else "offline"


def make_wandb_logger(
    folder: Path, experiment: str, job_type: str, tags: list[str], mode: Literal["online", "offline"]
) -> WandbLogger:
    """Make a run in W&B that is grouped with the others of its experiment; a resumed training keeps its id."""
    logger = WandbLogger(
        project=PROJECT,
        group=experiment,
        job_type=job_type,
        name=f"{experiment}_{folder.name}",
        tags=tags,
        save_dir=str(folder),
        offline=mode == "offline",
        mode=mode,  # said again: W&B has read its environment when it looked for a key
        id=run_id(folder) if job_type == "train" else None,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(
            silent=mode == "offline",  # nothing to say but where the files are, which the command does
            finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT_S)),
        ),
    )
    drop_anonymous(logger)
    return logger


def run_id(folder: Path) -> str:
    """Return the W&B id of the training in a run folder, or a new one."""
    saved = read_record(folder).get("wandb_id") if (folder / "run.json").is_file() else None
    return str(saved) if saved else uuid.uuid4().hex[:8]
