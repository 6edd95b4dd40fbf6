"""Run folders: where a run lives, and how it is named, found again and locked.

A run folder is `runs/<experiment>/<time>_s<seed>` and holds `config.yaml`, `checkpoints/`, `metrics.csv`, `run.json`,
`wandb/`, and after testing `metrics_{split}.json` and `predictions_{split}.csv`.
"""

import errno
import fcntl
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from run_state.may_differ import changed_settings
from storage.reading import parse_json, read_text

NEWEST_FIRST = ("latest.ckpt", "previous.ckpt", "best.ckpt")
_CHOSEN = "SUPERFER_RUN_FOLDER"  # tells the folder to the processes that Lightning starts for the other devices


def find_run(path: str | Path) -> Path:
    """Return the run folder that `path` is, or lies in.

    Raises:
        FileNotFoundError: There is none.
    """
    path = Path(path)
    resolved = path.resolve()
    for folder in (resolved, *list(resolved.parents)[:2]):
        if (folder / "config.yaml").is_file():
            return folder
    what = "holds no config.yaml" if path.exists() else "does not exist"
    raise FileNotFoundError(
        f"{path} {what}; expected a run folder (runs/<experiment>/<time>_s<seed>) or a checkpoint in one"
        + _runs_inside(path)
    )


def find_checkpoint(path: str | Path, names: Sequence[str] = ("best.ckpt", "latest.ckpt")) -> Path:
    """Return a checkpoint file: `path` itself, or the first of `names` in the run folder `path`.

    Raises:
        FileNotFoundError: There is none.
    """
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


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of `run.json`.

    Raises:
        ValueError: It is damaged.
    """
    path = folder / "run.json"
    try:
        record = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it, or start the run anew") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}, expected a mapping; restore it, or start anew")
    return record


def newest_run(experiment: Path, seed: int, settings: Mapping[str, Any], allowed: Sequence[str] = ()) -> Path | None:
    """Return the newest run in `runs/<experiment>` with this seed and these settings that can be resumed, or None."""
    candidates = [
        path.parent
        for path in sorted(experiment.glob(f"*_s{seed}/config.yaml"), key=lambda path: path.stat().st_mtime)
        if checkpoints(path.parent) and _chosen_folder() in (None, path.parent.resolve())
    ]
    for run in reversed(candidates):
        try:
            changes = changed_settings(run, settings, "resume", allowed)
            if not changes:
                return run
            reason = f"has other settings: {'; '.join(changes)}"
        except (ValueError, OSError) as error:
            reason = str(error)
        if run is candidates[-1]:
            print(f"{run}, the newest run, {reason}", file=sys.stderr, flush=True)
    return None


def new_run_folder(root: str | Path, experiment: str, seed: int, restarted: bool = False) -> Path:
    """Choose the folder of a run, the same for all of its processes, and make it.

    It is named after the time; under torchrun or srun, where every process comes here on its own, after the job.

    Args:
        root: folder of all runs.
        experiment: its name.
        seed: of the run.
        restarted: the job may have been started before, and may have died before its first checkpoint.

    Raises:
        ValueError: The job has no name, or its folder holds a run already.
    """
    chosen = _chosen_folder()
    if chosen:
        return chosen
    parent = Path(root) / experiment
    job = _job()
    if job:
        folder = parent / f"{job}_s{seed}"
        resumable = bool(checkpoints(folder))
        # run.json is written once all processes of a job are past this point.
        if (folder / "run.json").is_file() and (resumable or not restarted):
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
        raise ValueError(
            "torchrun needs a name for the job, which names the run folder: add --rdzv-id=NAME or --standalone"
        )
    if job is None and int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        job = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_STEP_ID', '0')}"
    return job


def started_processes() -> int | None:
    """Return how many processes torchrun or srun started; None where Lightning starts them, or there is one."""
    name = "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS"  # srun alone sets the latter
    return int(os.environ[name]) if name in os.environ else None


def is_child() -> bool:
    """Whether another process of the job has chosen the run folder, or chooses the same one."""
    return _chosen_folder() is not None or _job() is not None


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
def lock(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run folder.

    The lock is the kernel's and goes with the process, however it ends. (That of a lost machine goes when the file
    server gives it up.) Not `flock`, which workers that outlive a killed training would go on holding.

    Raises:
        ValueError: Another process holds it.
    """
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise ValueError(
                    f"{folder} is being trained by {holder}; wait for it, or stop it (if that machine is gone, delete "
                    f"{folder / '.lock'})"
                ) from error
            # a file system without locks
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def status(folder: Path) -> str:
    """Return how a run ended, or "running"; "died" if it never said how, which its free lock shows.

    Not for the process that trains the run: closing any handle of the file frees the kernel's lock.

    Raises:
        ValueError: `run.json` is damaged.
    """
    recorded = str(read_record(folder).get("status", "finished"))
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
