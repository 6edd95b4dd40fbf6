"""`metrics.csv`: every logged row at once, and cut back to a checkpoint when a run resumes."""

import csv
import io
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from storage.atomic import write_atomically
from storage.reading import read_table

Row = Mapping[str, Any]


class MetricsCSV(Logger):
    """Write each logging event as a row of `metrics.csv`; a resumed run adds to the rows it has.

    Columns are `step` (of the optimiser, from 0), `epoch`, `time` (seconds since 1970) and the metrics; a cell is empty
    where nothing was logged. Lightning's own CSVLogger empties a folder that it finds full.

    Args:
        folder: the run folder.
        listener: is given every row once it is in the file.
    """

    def __init__(self, folder: Path, listener: Callable[[Row], None] | None = None) -> None:
        super().__init__()
        self.path, self.listener = folder / "metrics.csv", listener
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
        if self.listener:
            self.listener(row)

    def _add_columns(self, names: list[str]) -> None:
        """Rewrite the file with more columns; a row that a killed run left half written is dropped."""
        columns, rows = read_rows(self.path)
        self._columns = list(dict.fromkeys([*columns, *self._columns, *names]))
        _write(self.path, self._columns, rows)


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns of `metrics.csv` and its rows; a run that has logged nothing yet has none."""
    return read_table(path) if path.exists() else ([], [])


def cut_back(path: Path, global_step: int) -> None:
    """Remove the rows of `metrics.csv` that were logged after a checkpoint at a step: they will be logged again."""
    columns, rows = read_rows(path)
    if columns:
        _write(path, columns, [row for row in rows if row["step"].isdigit() and int(row["step"]) < global_step])


def _write(path: Path, columns: list[str], rows: Iterable[Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if not path.is_file() or path.read_text() != text.getvalue():
        write_atomically(path, text.getvalue())
