"""Kills real training processes with SIGKILL at random moments, continues them, and compares with a run left in peace.

    python -m tests.torture [--kills 6] [--seed 0] [--stages classifier hourglass dic dicgan] [--processes 1]

Each stage is trained once without disturbance, and once with that many kills; the weights, the optimizers' states and
the schedules at the end have to be equal bit by bit, and metrics.csv row by row.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from datamodules.synthetic import write_faces, write_ferplus
from models.checkpoints import read_checkpoint
from tests.tiny_runs import REPOSITORY, classifier_args, config, generator_options, read_csv

STAGES = ("classifier", "hourglass", "dic", "dicgan")
LONG = ["--trainer.limit_train_batches=1.0", "--trainer.max_epochs=6", "--latest.minutes=0"]
TIMEOUT = 300  # seconds, for one process


def arguments(stage: str, data: Path, runs: Path, processes: int) -> list[str]:
    """Command line of a training of some seconds."""
    if stage == "classifier":
        given = classifier_args(data / "ferplus", runs, *LONG, "--model.mixup=0.4", "--data.num_workers=2")
    else:
        given = [
            *config(f"generator/{stage}_small"),
            f"--runs={runs}",
            *generator_options(data / "faces", stage),
            *LONG,
        ]
        given += ["--trainer.log_every_n_steps=1"]
    if processes > 1:
        strategy = "ddp_find_unused_parameters_true" if stage == "dicgan" else "ddp"
        given += [f"--trainer.devices={processes}", f"--trainer.strategy={strategy}"]
    return given


def start(args: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A training in a process group of its own, so that its workers and ranks die with it."""
    inherited = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}  # would outlive it
    environment = inherited | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "GLOO_SOCKET_IFNAME": "lo"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "train.py"), *args],
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for a training that nobody disturbs."""
    if process.wait(TIMEOUT) != 0:
        raise RuntimeError(f"training failed:\n{log.read_text()[-4000:]}")


def kill_soon(process: subprocess.Popen[bytes], run: Path, delay: float) -> bool:
    """Kills a training ``delay`` seconds after it has begun to write checkpoints; False if it was faster."""
    latest, begun = run / "checkpoints" / "latest.ckpt", time.time()
    while process.poll() is None and (not latest.is_file() or latest.stat().st_mtime < begun):
        if time.time() - begun > TIMEOUT:
            raise RuntimeError(f"{run}: no checkpoint in {TIMEOUT} s")
        time.sleep(0.02)
    time.sleep(delay)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return killed


def only_run(runs: Path, process: subprocess.Popen[bytes] | None = None) -> Path:
    """The run folder below ``runs``; waits for it while the process lives."""
    for _ in range(TIMEOUT * 20):
        found = [path.parent for path in runs.glob("*/*/run.json")]
        if found or process is None or process.poll() is not None:
            return found[0]
        time.sleep(0.05)
    raise RuntimeError(f"{runs}: no run folder")


def outcome(run: Path) -> dict[str, Any]:
    """What two runs have to end with alike: weights, optimizers, schedules, and metrics.csv without its empty cells."""
    saved = read_checkpoint(run / "checkpoints" / "latest.ckpt")
    kept = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "epoch", "global_step")
    rows = [{name: cell for name, cell in row.items() if cell} for row in read_csv(run / "metrics.csv")]
    return {name: saved[name] for name in kept if name in saved} | {"metrics.csv": rows}


def difference(first: Any, second: Any, where: str = "") -> str | None:
    """Where two trees of plain types and tensors differ, or None."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return None if torch.equal(first, second) else where
    if isinstance(first, dict) and isinstance(second, dict) and list(first) == list(second):
        pairs = [(first[key], second[key], f"{where}/{key}") for key in first]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = [(*pair, f"{where}/{place}") for place, pair in enumerate(zip(first, second, strict=True))]
    else:
        return None if first == second else where
    return next((found for pair in pairs if (found := difference(*pair))), None)


def torture(stage: str, kills: int, seed: int, data: Path, folder: Path, processes: int = 1) -> int:
    """Compares a disturbed training with an undisturbed one.

    Returns:
        How often it was killed.

    Raises:
        AssertionError: they differ.
    """
    draw, log = random.Random(f"{stage} {seed} {processes}"), folder / "log.txt"
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()
    finish(start(arguments(stage, data, folder / "whole", processes), log), log)
    duration = max(2.0, time.time() - began - 10)  # of the training itself; starting takes the rest
    process = start(arguments(stage, data, folder / "killed", processes), log)
    run, done = only_run(folder / "killed", process), 0
    while done < kills and kill_soon(process, run, draw.uniform(0, duration / kills)):
        done += 1
        process = start(["--resume", str(run)], log)
    finish(process, log)
    where = difference(outcome(only_run(folder / "whole")), outcome(run))
    assert where is None, f"{stage}: after {done} kills {where} differs; see {folder}"
    return done


def main() -> None:
    """Parses the command line, tortures, and says how often."""
    parser = argparse.ArgumentParser(prog="tests.torture", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=6, help="per stage (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--processes", type=int, default=1, help="ranks of each training (default: 1)")
    options = parser.parse_args()
    began, total = time.time(), 0
    with tempfile.TemporaryDirectory(prefix="superfer-torture-") as name:
        folder = Path(name)
        write_ferplus(folder / "data" / "ferplus", {"train": 80, "val": 16, "test": 16}, seed=0)
        write_faces(folder / "data" / "faces", count=24, size=80, seed=0)
        for stage in options.stages:
            kills = torture(stage, options.kills, options.seed, folder / "data", folder / stage, options.processes)
            total += kills
            print(f"{stage}: equal after {kills} kills", flush=True)
    print(f"{total} kills in {time.time() - began:.0f} s, nothing lost")


if __name__ == "__main__":
    main()
