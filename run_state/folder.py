"""Run folders: where a run lives, and how it is named, found again and locked.

A run folder is `runs/<experiment>/<time>_s<seed>` and holds `config.yaml`, `checkpoints/`, `metrics.csv`, `run.json`,
`wandb/`, and after testing `metrics_{split}.json` and `predictions_{split}.csv`.
"""

import errno
import fcntl
import hashlib
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from run_state.identity import original_of, read_record
from run_state.may_differ import changed_settings, flatten, may_differ
from storage.reading import read_mapping

LATEST, PREVIOUS = "latest.ckpt", "previous.ckpt"  # the latter in case that the former is damaged later
NEWEST_FIRST = (LATEST, PREVIOUS, "best.ckpt")
_CHOSEN = "SUPERFER_RUN_FOLDER"  # tells the folder to the processes that Lightning starts for the other devices


def find_run(path: str | Path) -> Path:
    """Return the run folder that `path` is, or lies in; a FileNotFoundError says what was expected."""
    path = Path(path)
    resolved = Path(os.path.realpath(path))  # which does not mind a link to itself
    for folder in (resolved, *list(resolved.parents)[:2]):
        if (folder / "config.yaml").is_file():
            return folder
    what = "holds no config.yaml" if path.exists() else "does not exist"
    expected = "a run folder (runs/<experiment>/<time>_s<seed>) or a checkpoint in one"
    raise FileNotFoundError(f"{path} {what}; expected {expected}{_runs_inside(path)}")


def find_checkpoint(path: str | Path, names: Sequence[str] = ("best.ckpt", "latest.ckpt")) -> Path:
    """Return a checkpoint file: `path` itself, or the first of `names` that the run folder `path` has."""
    path = Path(path)
    files = [path / "checkpoints" / name for name in names] if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            return file
    raise FileNotFoundError(f"no checkpoint: looked for {' and '.join(map(str, files))}{_runs_inside(path)}")


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints that a run can be resumed from, newest first."""
    return [path for name in NEWEST_FIRST if (path := run / "checkpoints" / name).is_file()]


def _runs_inside(path: Path) -> str:
    """Point at the runs of an experiment's folder that was given instead of one of them."""
    runs = sorted(folder.parent.name for folder in path.glob("*/config.yaml")) if path.is_dir() else []
    return f"; {path} holds the runs {', '.join(runs[-5:])}: name one of them" if runs else ""


def newest_run(settings: Mapping[str, Any], allowed: Sequence[str] = ()) -> tuple[Path | None, list[str]]:
    """Return the run with these settings, seed and experiment included, to go on with, or None; and why not another.

    Those that are not finished come first, then the one started last, as `run.json` says: times of files change with
    copies. A copy of a run that is still there does not count.
    """
    notes: list[str] = []
    found: list[tuple[datetime, bool, Path, str]] = []
    for run in sorted(path.parent for path in Path(settings["runs"], settings["experiment"]).glob("*/run.json")):
        if _chosen_folder() not in (None, run.resolve()):
            continue
        try:
            record = read_record(run)
            if record["seed"] != settings["seed_everything"] or not can_go_on(run, record):
                continue
            if original := original_of(run, record):
                raise ValueError(f"it is a copy of {original}")
            changes = changed_settings(read_mapping(run / "config.yaml"), settings, "resume", allowed)
        except (ValueError, OSError) as error:
            notes.append(f"{run} is skipped: {error}")
            continue
        started = datetime.fromisoformat(record["starts"][-1]["started"])
        found.append((started, record["status"] != "finished", run, "; ".join(changes)))
    if found and max(found)[-1]:
        notes.append(f"{max(found)[2]}, the newest run, has other settings: {max(found)[-1]}")
    fitting = [(unfinished, started, run) for started, unfinished, run, changes in found if not changes]
    return max(fitting)[2] if fitting else None, notes


def can_go_on(run: Path, record: Mapping[str, Any]) -> bool:
    """Whether a run has a checkpoint, or was stopped before its first one, so that it begins again."""
    return bool(checkpoints(run)) or record["status"] != "finished"


def new_run_folder(root: str | Path, experiment: str, seed: int) -> Path:
    """Choose the folder of a run, the same for all of its processes, and make it.

    It is named after the time; under torchrun or srun, where every process comes here on its own, after the job, of
    which a run must not be there yet.
    """
    if chosen := _chosen_folder():
        return chosen
    parent = Path(root) / experiment
    if job := _job():
        folder = parent / f"{job}_s{seed}"
        # It is written once all processes of a job are past this point.
        if (folder / "run.json").is_file():
            raise ValueError(f"{folder} holds a run of this job already; resume it with --resume {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = parent / f"{stamp}_s{seed}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:  # another job of the same second
        folder = parent / f"{stamp}-{os.getpid()}_s{seed}"
        folder.mkdir()
    return folder


def _job() -> str | None:
    """Name of the job whose processes torchrun or srun started; None where Lightning starts them, or there is one."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job == "none":
        raise ValueError("torchrun needs a name for the job and its run folder: add --rdzv-id=NAME or --standalone")
    if job is None and int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        job = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_STEP_ID', '0')}"
    return job


def started_processes() -> int | None:
    """Return how many processes torchrun or srun started; None where Lightning starts them, or there is one."""
    name = "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS"  # srun alone sets the latter
    return int(os.environ[name]) if name in os.environ else None


def is_follower() -> bool:
    """Whether Lightning has started this process for another device; the process that did so tells it when to end."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0 and started_processes() is None


def share_with_children(folder: Path | None) -> None:
    """Tell the folder to the processes that Lightning starts from this one; None when the run is over."""
    if folder is None:
        os.environ.pop(_CHOSEN, None)
    else:
        os.environ[_CHOSEN] = str(folder.resolve())


def _chosen_folder() -> Path | None:
    chosen = os.environ.get(_CHOSEN)
    return Path(chosen) if chosen else None


@contextmanager
def lock(folder: Path, name: str = ".lock", what: str = "") -> Iterator[None]:
    """Keep other trainings out of a run folder; a ValueError names the process that is in it.

    The lock is the kernel's and goes with the process, however it ends. (That of a lost machine goes when the file
    server gives it up.) Not `flock`, which workers that outlive a killed training would go on holding.
    """
    with (folder / name).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read().strip() or "another process"
                hint = f"wait for it, or stop it (if that machine is gone, delete {folder / name})"
                raise ValueError(f"{what or folder} is in use by {holder}; {hint}") from error
            # a file system without locks
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


@contextmanager
def only_auto(settings: Mapping[str, Any]) -> Iterator[None]:
    """Keep another `--resume auto` with these settings out: two that start at once would make two runs."""
    kept = sorted((key, repr(value)) for key, value in flatten(settings).items() if not may_differ(key, "resume"))
    runs = Path(settings["runs"])
    runs.mkdir(parents=True, exist_ok=True)
    name = f".auto-{hashlib.sha256(str(kept).encode()).hexdigest()[:12]}"
    with lock(runs, name, f"a run in {runs / settings['experiment']} with these settings"):
        yield  # the file stays: if it went, of two that wait one could lock the old file and one a new one


def status(folder: Path) -> str:
    """Return how a run ended, or "running"; "died" if it never said how, which its free lock shows.

    Not for the process that trains the run: closing any handle of the file frees the kernel's lock.
    """
    recorded = str(read_record(folder)["status"])
    if recorded != "running":
        return recorded
    try:
        with (folder / ".lock").open() as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return "died"
    except OSError:
        return "running"  # or a file system without locks, where nobody can know
    return "died"
