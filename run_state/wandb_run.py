"""The run in Weights & Biases that belongs to a run folder."""

import json
import os
import uuid
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers import WandbLogger

PROJECT = "superfer"  # in W&B

FINISH_TIMEOUT = 60.0  # seconds for the last upload; without network W&B would wait for ever

WandbMode = Literal["online", "offline", "disabled"]


def wandb_mode() -> WandbMode:
    """How W&B is to run: as ``WANDB_MODE`` says, else online if there is a key; it never asks at the terminal.

    Raises:
        ValueError: Online is asked for, but there is no key; W&B would ask for it.
    """
    mode = os.environ.get("WANDB_MODE", "")
    if mode == "disabled":
        return "disabled"
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    key = bool(os.environ.get("WANDB_API_KEY"))
    key = key or (netrc.is_file() and host in netrc.read_text(errors="ignore"))
    if mode == "online" and not key:
        raise ValueError(
            f"WANDB_MODE is online, but there is no key: looked for WANDB_API_KEY and for {host} in {netrc}"
        )
    return "online" if key and mode in ("", "online") else "offline"


def make_wandb_logger(
    folder: Path, experiment: str, job_type: str, tags: list[str], mode: Literal["online", "offline"]
) -> WandbLogger:
    """A run in W&B that is grouped with the others of its experiment; a continued training keeps its id.

    Args:
        folder: The run folder.
        experiment: The group in W&B.
        job_type: ``train`` or ``test``.
        tags: What the dashboard can be filtered by.
        mode: From ``wandb_mode``.
    """
    logger = WandbLogger(
        project=PROJECT,
        group=experiment,
        job_type=job_type,
        name=f"{experiment}_{folder.name}",
        tags=tags,
        save_dir=str(folder),
        offline=mode == "offline",
        id=_run_id(folder) if job_type == "train" else None,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(
            silent=mode == "offline",  # nothing to say but where the files are; cli.py does
            finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT)),
        ),
    )
    logger._wandb_init.pop("anonymous", None)  # W&B warns of this argument, which nobody gave
    return logger


def _run_id(folder: Path) -> str:
    """The id of the training that is continued, or a new one."""
    record = folder / "run.json"
    saved = json.loads(record.read_text()).get("wandb_id") if record.is_file() else None
    return saved or uuid.uuid4().hex[:8]
