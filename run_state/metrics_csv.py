"""`metrics.csv`: every logged row, and cutting it back to a checkpoint."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from storage.atomic import write_atomically
from storage.checkpoints import read_checkpoint


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


def forget_beyond(run: Path, checkpoint: Path) -> None:
    """Removes the rows of ``metrics.csv`` that were logged after the checkpoint: they will be logged again.

    Raises:
        ValueError: the file is no CSV.
    """
    path = run / "metrics.csv"
    steps = read_checkpoint(checkpoint).get("global_step")
    if not path.is_file() or not isinstance(steps, int):
        return
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it, or move it away to log anew") from error
    # A row that was being written when the power went has cells missing.
    whole = [row for row in rows if None not in row and None not in row.values() and str(row.get("step")).isdigit()]
    kept = [row for row in whole if int(row["step"]) < steps]
    if len(kept) == len(rows):
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(kept)
    write_atomically(path, text.getvalue())
