"""Two processes on one machine give what one process gives, every image counted once."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.face_strip import HEADER
from commands.test import test as run_test
from commands.train import train
from datamodules.labels import CLASSES
from run_state.folder import status
from storage.checkpoints import read_checkpoint
from tests import torture
from tests.stopping import KilledError
from tests.test_exact_resume import stop
from tests.test_torchrun import free_port
from tests.tiny_runs import (
    REPOSITORY,
    as_shipped,
    classifier_args,
    classifier_options,
    config,
    generator_options,
    read_csv,
    write_generator,
)

TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
LONGER = ["--trainer.limit_train_batches=1.0", "--trainer.max_epochs=3"]
GENTLE = ["--model.optimizer.name=adamw", "--model.optimizer.lr=0.001"]


def start(program: str, args: list[str]) -> str:
    """Runs a program of the project in processes of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "superfer.py"), program, *args],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tiny_ferplus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes."""
    runs = tmp_path_factory.mktemp("runs")
    printed = start("train", classifier_args(tiny_ferplus, runs, *TWO, *LONGER, *GENTLE))
    (run,) = runs.glob("*/*")
    (run / "printed.txt").write_text(printed)
    return run


def test_training(trained: Path) -> None:
    assert json.loads((trained / "run.json").read_text())["status"] == "finished"
    printed, rows = (trained / "printed.txt").read_text(), read_csv(trained / "metrics.csv")
    assert [row["epoch"] for row in rows if row["val/acc"]] == ["0", "1", "2"]
    images = int(re.search(r"^train, crossentropy, kept +(\d+)", printed, re.MULTILINE)[1])  # type: ignore[index]
    per_epoch = images // 8  # batches of eight over both processes
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [(n + 1) * per_epoch - 1 for n in range(3)]


def test_at_a_terminal(tiny_ferplus: Path, tmp_path: Path) -> None:
    """The progress bar of the first process reads metrics when an epoch ends; the other must not wait elsewhere."""
    small = [*as_shipped(classifier_options(tiny_ferplus)), "--trainer.max_epochs=2", "--trainer.devices=2"]
    small += ["--model=tests.tiny_runs.TinyClassifier", f"--runs={tmp_path}", "--trainer.log_every_n_steps=1"]
    # Synchronised batch normalisation is for GPUs only; the first epoch ends without a validation.
    small += ["--trainer.sync_batchnorm=false", "--trainer.check_val_every_n_epoch=2"]
    ours, its = pty.openpty()
    command = [sys.executable, str(REPOSITORY / "superfer.py"), "train", *config("classifier/bilinear", "hardware/ddp")]
    variables = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen([*command, *small], stdout=its, stderr=its, env=os.environ | variables)
    os.close(its)
    shown = b""
    try:
        while select.select([ours], [], [], 120)[0]:
            with contextlib.suppress(OSError):  # its end
                if part := os.read(ours, 1 << 16):
                    shown += part
                    continue
            break
        assert process.wait(timeout=60) == 0, shown[-3000:].decode(errors="replace")
    finally:
        process.kill()
        os.close(ours)
    assert b"Epoch 1/1" in shown
    (run,) = tmp_path.glob("*/*")
    assert status(run) == "finished"


def test_a_hanging_rank_prints_its_stacks_and_its_death_ends_the_job(tiny_ferplus: Path, tmp_path: Path) -> None:
    log, more = tmp_path / "log.txt", ["--trainer.max_epochs=2", "--trainer.callbacks+=tests.tiny_runs.HangingRank"]
    process = torture.start("train", classifier_args(tiny_ferplus, tmp_path / "runs", *TWO, *more), log)
    try:
        patience = time.monotonic() + torture.TIMEOUT
        while not list((tmp_path / "runs").glob("*/*/checkpoints/latest.ckpt")):
            assert process.poll() is None and time.monotonic() < patience, log.read_text()[-3000:]
            time.sleep(0.1)
        (child,) = torture.children(process.pid, "superfer.py")
        while "tiny_runs.py" not in log.read_text():  # until it hangs there
            assert process.poll() is None and time.monotonic() < patience, log.read_text()[-3000:]
            os.kill(child, signal.SIGUSR2)
            time.sleep(1)
        os.kill(child, signal.SIGKILL)
        assert process.wait(timeout=torture.TIMEOUT) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    found = status(torture.only_run(tmp_path / "runs"))
    assert found == "died" or found.startswith("failed: "), "of two processes that end each other either may be faster"


@pytest.mark.slow
def test_ranks_that_continue_from_different_checkpoints(tiny_ferplus: Path, tmp_path: Path) -> None:
    """Two nodes without a shared file system, of which one has a run to continue."""
    args = classifier_args(tiny_ferplus, tmp_path / "0")
    train(args)
    args += ["--trainer.max_epochs=3", "--trainer.strategy=ddp", "--trainer.num_nodes=2", "--resume=auto"]
    job = {"TORCHELASTIC_RUN_ID": "job", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    nodes = [
        subprocess.Popen(
            [sys.executable, str(REPOSITORY / "train.py"), *args, f"--runs={tmp_path / rank}"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | job | {"RANK": rank, "GROUP_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in "01"
    ]
    said = [node.communicate(timeout=120)[1] for node in nodes]
    for node, words in zip(nodes, said, strict=True):
        assert node.returncode == 1
        assert "resume from different checkpoints (rank 0 epoch 1 step 2, rank 1 epoch 0 step 0)" in words


def test_testing(trained: Path) -> None:
    """One process counts what two processes counted when they validated."""
    run_test(["--ckpt_path", str(trained), "--split", "val"])
    rows, report = read_csv(trained / "predictions_val.csv"), json.loads((trained / "metrics_val.json").read_text())
    probabilities = np.array([[float(row[name]) for name in CLASSES] for row in rows])
    assert probabilities.std(axis=0).max() > 0.003, "images that look alike to the network prove nothing"
    figures = report["rules"]["majority"]["all"]
    assert figures["n"] == sum(bool(row["label"]) for row in rows)
    logged = [row for row in read_csv(trained / "metrics.csv") if row["val/acc"]]
    best = max(logged, key=lambda row: float(row["val/acc"]))  # the first of equals, as ModelCheckpoint has it
    assert float(best["val/acc"]) == pytest.approx(figures["acc"])
    assert float(best["val/ece"]) == pytest.approx(figures["ece"], rel=1e-4)


@pytest.mark.parametrize("stage", ["hourglass", "dic", "dicgan"])
def test_generators(stage: str, tiny_faces: Path, tmp_path: Path) -> None:
    """Both halves of a batch on their own processes: the mean of the gradients, and thus the weights, are the same."""
    arguments = [*config(f"generator/{stage}_small"), *generator_options(tiny_faces, stage)]
    arguments += ["--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=1"]
    if stage == "dic":
        arguments += ["--model.freeze_hourglass=1"]
    start("train", [*arguments, f"--runs={tmp_path / 'two'}", *TWO])
    start("train", [*arguments, f"--runs={tmp_path / 'one'}"])
    two, one = (next((tmp_path / name).glob("*/*")) for name in ("two", "one"))
    saved = [read_checkpoint(run / "checkpoints" / "latest.ckpt") for run in (two, one)]
    weights: Any = [checkpoint.get("current_model_state", checkpoint["state_dict"]) for checkpoint in saved]
    for key, value in weights[1].items():
        torch.testing.assert_close(weights[0][key], value, atol=2e-4, rtol=0)
    metric = "val/nme_interocular" if stage == "hourglass" else "val/psnr_y"
    for name, tolerance in ((metric, 1e-2), ("train/g/heatmap", 1e-5)):
        logged = [[float(row[name]) for row in read_csv(run / "metrics.csv") if row[name]] for run in (two, one)]
        assert len(logged[0]) == (1 if name == metric else 3)
        assert logged[0] == pytest.approx(logged[1], abs=tolerance)
    (sheet,) = (two / "faces").glob("*.png")
    assert Image.open(sheet).height == 4 * (HEADER + 64)  # two faces of each process


def test_stopped_by_one_process_continued_by_two(tiny_faces: Path, tmp_path: Path) -> None:
    """In mid-epoch; every batch has the same faces, so only sums are rounded in another order."""
    options = [*generator_options(tiny_faces), "--trainer.limit_train_batches=6", "--trainer.max_epochs=2"]
    weights = write_generator(tmp_path / "generator.ckpt")
    arguments = [*config("generator/dic_small"), *options, "--latest.minutes=0", f"--model.initial_weights={weights}"]
    whole = train([*arguments, f"--runs={tmp_path / 'whole'}"])
    with pytest.raises(KilledError):
        train([*arguments, f"--runs={tmp_path / 'resumed'}", *stop(tmp_path, batches=3)])
    (stopped,) = (tmp_path / "resumed").glob("*/*")
    printed = start("train", ["--resume", str(stopped), *TWO])
    assert "resuming with 2 processes a run saved with 1: batches are identical" in printed
    other = train([*arguments, f"--runs={tmp_path / 'other'}", "--seed_everything=1"])  # other batches
    final = [
        read_checkpoint(run / "checkpoints" / "latest.ckpt")["current_model_state"] for run in (whole, stopped, other)
    ]
    apart = [max(float((state[key] - final[0][key]).abs().max()) for key in final[0]) for state in final]  # type: ignore[attr-defined,index]
    assert apart[1] < 2e-4 < apart[2] / 4
