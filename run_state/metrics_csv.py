"""`metrics.csv`: every logged row at once, and cut back to a checkpoint when a run resumes."""

import csv
import io
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from storage.atomic import write_atomically


class MetricsCSV(Logger):
    """Write each logging event as a row of `metrics.csv`; a resumed run adds to the rows it has.

    Columns are `step` (of the optimiser, from 0), `epoch`, `time` (seconds since 1970) and the metrics; a cell is empty
    where nothing was logged. Lightning's own CSVLogger empties a folder that it finds full.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns: list[str] = []

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
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        place = {"step": "" if step is None else step, "epoch": metrics.get("epoch", ""), "time": f"{time.time():.3f}"}
        row = {**place, **metrics}
        new = [name for name in row if name not in self._columns]
        if new:
            self._add_columns(new)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="", lineterminator="\n").writerow(row)

    def _add_columns(self, names: list[str]) -> None:
        """Rewrite the file with more columns; a row that a killed run left half written is dropped."""
        text = self.path.read_text() if self.path.is_file() else ""
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        rows = list(reader)
        self._columns = list(dict.fromkeys([*(reader.fieldnames or []), *self._columns, *names]))
        _write(self.path, self._columns, rows)


def cut_back(path: Path, global_step: int) -> None:
    """Remove the rows of `metrics.csv` that were logged after a checkpoint: they will be logged again.

    Args:
        path: the file; it may be missing.
        global_step: optimiser steps that the checkpoint has behind it.

    Raises:
        ValueError: The file is no CSV.
    """
    if not path.is_file():
        return
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it, or move it away to log anew") from error
    # A row that was being written when the power went has cells missing.
    complete = [row for row in rows if None not in row and None not in row.values() and str(row.get("step")).isdigit()]
    kept = [row for row in complete if int(row["step"]) < global_step]
    if len(kept) < len(rows):
        _write(path, columns, kept)


def _write(path: Path, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
