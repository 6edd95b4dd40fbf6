"""Kills real processes with SIGKILL at random moments, starts them again, and compares with what nobody disturbed.

    python -m tests.torture [--kills 7] [--seed 0] [--jobs NAME ...]

Trainings, with the schedules and the strategy that ship: both checkpoints have to be equal at the end, bit by bit, and
metrics.csv row by row; a stand-in for W&B's service has to have received the same rows. A cache of upscaled faces and a
folder of upscaled images: every file, byte by byte.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from datamodules.synthetic.writing import write_faces, write_ferplus
from storage.checkpoints import read_checkpoint
from tests.tiny_runs import (
    REPOSITORY,
    as_shipped,
    classifier_options,
    config,
    generator_options,
    logged,
    write_generator,
)
from tests.wandb_stub import Service

LONG = ["--trainer.limit_train_batches=1.0", "--trainer.max_epochs=6", "--latest.minutes=0.005"]
COUNTED = ["--trainer.max_steps=30", "--trainer.max_epochs=-1", "--trainer.check_val_every_n_epoch=null"]
TIMEOUT = 600  # seconds, for one process


def start(verb: str, args: list[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
    """A verb of `superfer` in a process group of its own, so that its workers and ranks die with it."""
    inherited = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}  # would outlive it
    environment = inherited | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "GLOO_SOCKET_IFNAME": "lo"} | more
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "superfer.py"), verb, *args],
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for a process that nobody disturbs."""
    if process.wait(TIMEOUT) != 0:
        raise RuntimeError(f"exit code {process.returncode}:\n{log.read_text()[-4000:]}")


def kill_soon(process: subprocess.Popen[bytes], begun: Callable[[], bool], delay: float) -> bool:
    """Kills a process ``delay`` seconds after it has begun to write; False if it was faster."""
    started = time.monotonic()
    while process.poll() is None and not begun():
        if time.monotonic() - started > TIMEOUT:
            os.killpg(process.pid, signal.SIGKILL)
            raise RuntimeError(f"process {process.pid} has written nothing in {TIMEOUT} s")
        time.sleep(0.02)
    time.sleep(delay)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return killed


def children(process: int, command: str = "") -> list[int]:
    """The processes that a process has started, if their command line contains `command`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            _, parent, *_ = stat.read_text().rpartition(")")[2].split()
            if int(parent) == process and command in stat.with_name("cmdline").read_text():
                found.append(int(stat.parent.name))
    return sorted(found)


def only_run(runs: Path, process: subprocess.Popen[bytes] | None = None) -> Path:
    """The run folder below ``runs``; waits for it while the process lives."""
    for _ in range(TIMEOUT * 20):
        found = [path.parent for path in runs.glob("*/*/run.json")]
        if found or process is None or process.poll() is not None:
            return found[0]
        time.sleep(0.05)
    raise RuntimeError(f"{runs}: no run folder")


def outcome(run: Path) -> dict[str, Any]:
    """What two runs have to end with alike: both checkpoints, and metrics.csv."""
    saved, best = read_checkpoint(run / "checkpoints" / "latest.ckpt"), run / "checkpoints" / "best.ckpt"
    kept = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "epoch", "global_step")
    callbacks = {
        name: {"best_model_score": state["best_model_score"]} if name.startswith("ModelCheckpoint") else state
        for name, state in saved["callbacks"].items()
        if not name.startswith("Timer")
    }
    found = {name: saved[name] for name in kept if name in saved} | {"callbacks": callbacks}
    if best.is_file():
        found["best.ckpt"] = {name: read_checkpoint(best)[name] for name in ("state_dict", "global_step")}
    return found | {"metrics.csv": logged(run)}


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


def contents(folder: Path) -> dict[str, Any]:
    """Every file by its name, but for what a killed process had not finished."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".writing-" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@dataclass
class Job:
    """What is tortured.

    Attributes:
        verb: of `superfer`.
        arguments: its command line, for results in a folder.
        again: command line that continues what lies in that folder.
        newest: the files whose change tells that the program has begun to write.
        result: what has to be equal.
        most: kills that its work allows; a killed process gets on by a piece of it each time.
    """

    verb: str
    arguments: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]
    newest: str
    result: Callable[[Path], dict[str, Any]]
    most: int = 1000


def training(stage: str, data: Path, *options: str, processes: int = 1) -> Job:
    """A training of some seconds, with its own schedule but for `options`."""

    def arguments(runs: Path) -> list[str]:
        if stage == "classifier":
            files = ["classifier/bilinear"]
            small = [*classifier_options(data / "ferplus"), *LONG, "--data.num_workers=2"]
        else:
            files = [f"generator/{stage}_small"]
            small = [*generator_options(data / "faces", stage), *LONG, "--trainer.max_epochs=10"]
        small = [*as_shipped(small), "--trainer.log_every_n_steps=1", f"--runs={runs}"]
        if processes > 1:
            files.append("hardware/ddp")
            small += [f"--trainer.devices={processes}", "--trainer.sync_batchnorm=false"]  # which is for GPUs only
        return [*config(*files), *small, *options]

    return Job(
        "train",
        arguments,
        again=lambda runs: ["--resume", str(only_run(runs))],
        newest="*/*/checkpoints/latest.ckpt",
        result=lambda runs: outcome(only_run(runs)),
    )


def cache_fill(data: Path) -> Job:
    """Three blocks of upscaled faces."""

    def arguments(cache: Path) -> list[str]:
        options = [f"--data.root={data / 'many'}", f"--data.cache_dir={cache}", "--trainer.accelerator=cpu"]
        return [*config("classifier/dic"), *options, f"--data.upscaler.checkpoint={data / 'generator.ckpt'}"]

    return Job("upscale", arguments, arguments, newest="**/*.npy", result=contents, most=2)


def folder_of_images(data: Path) -> Job:
    """Some dozens of images."""

    def arguments(out: Path) -> list[str]:
        return [f"--ckpt_path={data / 'generator.ckpt'}", f"--images={data / 'crops'}", f"--out={out}"]

    return Job("upscale", arguments, arguments, newest="*.png", result=contents)


def write_data(folder: Path) -> None:
    """Everything that the jobs read."""
    write_ferplus(folder / "ferplus", {"train": 80, "val": 24, "test": 24}, seed=0)
    write_ferplus(folder / "many", {"train": 260, "val": 40, "test": 24}, seed=0)
    write_faces(folder / "faces", count=12, size=80, seed=0)
    write_generator(folder / "generator.ckpt")
    (folder / "crops").mkdir()
    for number in range(30):
        pixels = torch.randint(0, 256, (64, 48 + number, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / "crops" / f"{number}.png")


def torture(job: Job, kills: int, seed: int, folder: Path) -> int:
    """Compares a disturbed job with an undisturbed one, and a training with what W&B was sent of it.

    Returns:
        How often it was killed.

    Raises:
        AssertionError: they differ.
    """
    draw, log = random.Random(seed), folder / "log.txt"
    whole, service = folder / "whole", Service()
    folder.mkdir(parents=True, exist_ok=True)
    process = start(job.verb, job.arguments(whole), log, **service.environment)
    while process.poll() is None and not any(whole.glob(job.newest)):
        time.sleep(0.02)
    began = time.monotonic()
    finish(process, log)
    duration = time.monotonic() - began  # of the work itself
    for attempt in range(8):  # the machine may be faster now than it was then
        killed, done = folder / f"killed-{attempt}", 0
        arguments = job.arguments(killed)
        while True:
            started = time.time()
            process = start(job.verb, arguments, log, **service.environment)
            if done == kills:
                break

            def begun(killed: Path = killed, since: float = started) -> bool:
                with suppress(FileNotFoundError):  # renamed since it was listed
                    return any(path.stat().st_mtime > since for path in killed.glob(job.newest))
                return False

            if not kill_soon(process, begun, draw.uniform(0, 0.9 * duration / kills / 2**attempt)):
                break
            done, arguments = done + 1, job.again(killed)
        finish(process, log)
        where = difference(job.result(whole), job.result(killed))
        assert where is None, f"after {done} kills {where} differs; see {folder}"
        if job.verb == "train":
            service.check(only_run(killed), repeated=True)
            assert len(service.runs) == 2 + attempt, "one for each run, however often it was killed"
        if done == kills:
            break
    service.stop()
    return done


def main() -> None:
    """Parses the command line, tortures, and says how often."""
    # Schedules that ship, and those that people set: in batches, twice an epoch, every second epoch; accumulation.
    twice, second = "--trainer.val_check_interval=0.5", "--trainer.check_val_every_n_epoch=2"
    batches, accumulate = "--trainer.val_check_interval=7", "--trainer.accumulate_grad_batches=2"
    trainings: dict[str, tuple[str, list[str], int]] = {
        "classifier": ("classifier", [twice, accumulate, "--model.mixup=0.4"], 1),
        "hourglass": ("hourglass", [], 1),
        "dic": ("dic", [*COUNTED, batches], 1),
        "dicgan": ("dicgan", [], 1),
        "classifier-2-processes": ("classifier", [second, "--model.mixup=0.4"], 2),
        "hourglass-2-processes": ("hourglass", [*COUNTED, batches, accumulate], 2),
        "dic-2-processes": ("dic", [], 2),
        "dicgan-2-processes": ("dicgan", [*COUNTED, batches], 2),
    }
    jobs: dict[str, Callable[[Path], Job]] = {
        name: lambda data, of=(stage, options, processes): training(of[0], data, *of[1], processes=of[2])  # type: ignore[misc]
        for name, (stage, options, processes) in trainings.items()
    }
    jobs |= {"cache": cache_fill, "folder": folder_of_images}
    parser = argparse.ArgumentParser(prog="tests.torture", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=7, help="per job (default: 7)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--jobs", nargs="+", choices=jobs, default=list(jobs))
    options = parser.parse_args()
    began, total = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="superfer-torture-") as name:
        data = Path(name) / "data"
        data.mkdir()
        write_data(data)
        for job in options.jobs:
            tortured = jobs[job](data)
            wanted = min(options.kills, tortured.most)
            kills = torture(tortured, wanted, options.seed, Path(name) / job)
            total += kills
            print(f"{job}: equal after {kills} kills, {time.monotonic() - began:.0f} s so far", flush=True)
            if kills < wanted:
                raise SystemExit(f"{job} was done after {kills} kills of {wanted}; take fewer")
    print(f"{total} kills in {time.monotonic() - began:.0f} s, nothing lost")


if __name__ == "__main__":
    main()
