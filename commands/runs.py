"""List runs: how far each one is, its best and last value, and which of their settings differ.

superfer runs [FOLDER]
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from commands.ending import Parser, orderly, refusals
from run_state.folder import status
from run_state.identity import read_record
from run_state.may_differ import flatten
from run_state.metrics_csv import read_rows
from storage.reading import read_mapping

_COLUMNS = ("run", "state", "epochs", "left", "metric", "best", "last", "commit", "settings that differ")
# What the name of a run says already, and the file that a setting came from.
_NAMED = ("config", "experiment", "runs", "seed_everything", "data.init_args.seed")


@dataclass(frozen=True)
class Progress:
    """How far a run is, as its `metrics.csv` says."""

    epochs: int  # done
    all_epochs: int | None  # None where not epochs, but steps or time end the training
    epoch_s: float | None  # median seconds from the end of one epoch to the next; None before the first has ended
    last_time: float  # of the last epoch's end, in seconds since 1970
    metric: str  # that chooses the best checkpoint
    best: float | None
    last: float | None

    def left_s(self, since: float | None = None) -> float | None:
        """Return the seconds of training that are left, of an epoch under way from the time `since`; None: unknown."""
        if self.all_epochs is None or self.epoch_s is None:
            return None
        elapsed = 0.0 if since is None else min(since - self.last_time, self.epoch_s)
        return max(0.0, (self.all_epochs - self.epochs) * self.epoch_s - elapsed)


def read_progress(run: Path) -> Progress:
    """Read how far a run is; raise a ValueError that names the file that is missing or damaged."""
    settings, record = read_mapping(run / "config.yaml"), read_record(run)
    metric, all_epochs = settings["best"]["monitor"], settings["trainer"]["max_epochs"]
    _, rows = read_rows(run / "metrics.csv")
    try:
        ends = {int(float(row["epoch"])): float(row["time"]) for row in rows if row["epoch"]}
        measured = {int(float(row["epoch"])): float(row[metric]) for row in rows if row.get(metric)}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{run / 'metrics.csv'} is damaged: {error}") from error
    # The epoch of the last row may be under way; a value of the metric ends one.
    epochs = max(max(ends, default=0), max(measured, default=-1) + 1)
    started = datetime.fromisoformat(record["started"]).timestamp()
    times = [started, *(ends[epoch] for epoch in sorted(ends) if epoch < epochs)]
    lengths = [later - earlier for earlier, later in pairwise(times)]
    best = max if settings["best"]["mode"] == "max" else min
    return Progress(
        epochs=epochs,
        all_epochs=all_epochs if all_epochs and all_epochs > 0 else None,
        # The first includes the start and upscaling; an interruption makes one very long, which the median leaves out.
        epoch_s=statistics.median(lengths[1:] or lengths) if lengths else None,
        last_time=times[-1],
        metric=metric,
        best=best(measured.values(), default=None),
        last=measured[max(measured)] if measured else None,
    )


@orderly()
def runs(args: Sequence[str] | None = None) -> None:
    """Parse the command line and print a table with a row for each run."""
    parser = Parser(prog="superfer runs", description=(__doc__ or "").split("\n")[0])
    what = "a folder of runs, of one experiment, or of one run; default: runs"
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help=what)
    folder = parser.parse_args(args).folder
    with refusals():
        found = sorted({path.parent for pattern in ("", "*/", "*/*/") for path in folder.glob(f"{pattern}run.json")})
        if not found:
            state = "holds no run" if folder.is_dir() else "is not a folder"
            raise ValueError(f"{folder} {state}, expected a folder such as runs, with runs/<experiment>/<time>_s<seed>")
        described = {}
        for run in found:
            try:
                described[run] = (read_mapping(run / "config.yaml"), _describe(run))
            except (ValueError, KeyError, TypeError) as error:
                print(f"warning: {run} is left out: {error}", file=sys.stderr)
        different = _differences({run: settings for run, (settings, _) in described.items()})
    rows: list[tuple[str, ...]] = [_COLUMNS]
    rows += [(str(run.relative_to(folder)), *cells, different[run]) for run, (_, cells) in described.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _describe(run: Path) -> tuple[str, ...]:
    """Return the cells of a run's row between its name and its settings."""
    state, progress, start = status(run), read_progress(run), read_record(run)["starts"][-1]
    left = progress.left_s(time.time()) if state == "running" else progress.left_s()
    changed = "+" if start.get("git_dirty") else ""
    return (
        state,
        f"{progress.epochs}/{progress.all_epochs or '?'}",
        "-" if state == "finished" else span(left),
        progress.metric,
        *("-" if value is None else f"{value:.4f}" for value in (progress.best, progress.last)),
        f"{str(start.get('git_commit'))[:7]}{changed}",
    )


def _differences(settings: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str]:
    """Say in which settings each run differs from others of the same task, without what its name says."""
    flat = {run: flatten(content) for run, content in settings.items()}
    told = {}
    for run, own in flat.items():
        task = "model.class_path"
        alike = [other for other in flat.values() if other.get(task) == own.get(task)]
        differing = [
            name
            for name, value in own.items()
            if not f"{name}.".startswith(tuple(f"{named}." for named in _NAMED))
            and any(other.get(name) != value for other in alike)
        ]
        told[run] = " ".join(_setting(name, own[name]) for name in differing)
    return told


def _setting(name: str, value: object) -> str:
    """Return "data.upscaler.name=dic": without what config.yaml needs to build classes."""
    if name.endswith(".class_path"):
        name, value = name.removesuffix(".class_path"), str(value).rpartition(".")[2]
    return f"{name.replace('init_args.', '')}={value}"


def span(seconds: float | None) -> str:
    """Return a time as people say it: "40 s", "12 min", "3.5 h"; "?" for one that is not known."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
