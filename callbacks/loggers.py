"""Where metrics go: ``metrics.csv`` in the run folder, and Weights & Biases; and what libraries need not say."""

import csv
import io
import json
import logging
import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from datamodules.files import write_atomically

PROJECT = "superfer"  # in W&B
FINISH_TIMEOUT = 60.0  # seconds for the last upload; without network W&B would wait for ever
WandbMode = Literal["online", "offline", "disabled"]
# What libraries say at every start and nobody here can act on.
HARMLESS_WARNINGS = (
    ".*LightningCLI's args parameter.*",
    ".*LeafSpec.*",
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*it is recommended to use `Trainer\\(devices=1.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # the data module has the place
    ".*module\\(s\\) in eval mode at the start of training.*",  # frozen features
    ".*Total length of `list` across ranks is zero.*",
)
HARMLESS_MESSAGES = ("litlogger", "to estimate number of stepping batches")


def quieten() -> None:
    """Leaves out messages of libraries that are of no use to the user, so that the others are seen."""
    for pattern in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logger = logging.getLogger(name)
        if _is_useful not in logger.filters:
            logger.addFilter(_is_useful)


def _is_useful(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in HARMLESS_MESSAGES)


class MetricsCSV(Logger):
    """Writes each logging event as a row of ``metrics.csv``, at once; a continued run adds to the rows it has.

    Columns are ``epoch``, ``step`` (optimiser steps so far) and the metrics; a cell is empty where nothing was logged.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns: list[str] = []
        self._ahead: tuple[set[str], int | None] | None = None

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the whole configuration."""

    @rank_zero_only
    def log_ahead(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes a row that will be logged next, before a checkpoint: killed in between, a process never logs it."""
        self.log_metrics(metrics, step)
        self._ahead = set(metrics), step

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        known, self._ahead = self._ahead == (set(metrics), step), None
        if known:
            return
        row = {"epoch": metrics.get("epoch", ""), "step": "" if step is None else step, **metrics}
        new = [name for name in row if name not in self._columns]
        if new:
            self._add_columns(new)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="", lineterminator="\n").writerow(row)

    def _add_columns(self, names: list[str]) -> None:
        """Rewrites the file with more columns; a row that a killed run left half written is dropped."""
        text = self.path.read_text() if self.path.is_file() else ""
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        rows = list(reader)
        self._columns = list(dict.fromkeys([*(reader.fieldnames or []), *self._columns, *names]))
        whole = io.StringIO()
        writer = csv.DictWriter(whole, self._columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, whole.getvalue())


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
