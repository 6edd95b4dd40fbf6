"""The shipped batch script under a stand-in for SLURM: preempted, requeued under the same id, finished."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from storage.checkpoints import read_checkpoint
from tests.test_torchrun import free_port
from tests.tiny_runs import REPOSITORY, classifier_options, config, read_csv

# What cannot be as shipped on a machine without GPUs; srun's command line ends with it, after the shipped file.
SMALL = "--trainer.accelerator=cpu --trainer.devices=1 --trainer.sync_batchnorm=false"
PYTHON = shlex.quote(sys.executable)
SRUN = f'#!/bin/sh\necho "$SRUN_CPUS_PER_TASK" >> "$0.cpus"\nexec {PYTHON} -m tests.srun "$@" {SMALL}\n'
SCONTROL = '#!/bin/sh\necho "$@" >> "$0.txt"\n'


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder for PATH, with the two commands that the script uses."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


def test_a_preempted_job_is_requeued_and_resumes(tiny_ferplus: Path, cluster: Path, tmp_path: Path) -> None:
    small = [
        option
        for option in classifier_options(tiny_ferplus)
        if not option.startswith(
            ("--trainer.accelerator", "--trainer.devices", "--trainer.num_nodes", "--trainer.strat")
        )
    ]
    arguments = [*config("classifier/bilinear"), *small, f"--runs={tmp_path / 'runs'}", "--trainer.max_epochs=2"]
    arguments += ["--model=tests.tiny_runs.TinyClassifier", "--trainer.limit_train_batches=1.0"]
    arguments += ["--trainer.callbacks+=tests.srun.Preemption"]
    job = {"JOB_ID": "4711", "JOB_NAME": "train", "NTASKS": "2", "NNODES": "2", "CPUS_PER_TASK": "8"}
    job |= {"ARRAY_TASK_ID": "3", "NODELIST": "127.0.0.1", "NTASKS_PER_NODE": "1"}
    environment = os.environ | {f"SLURM_{name}": value for name, value in job.items()}
    environment |= {"PATH": f"{cluster}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"MASTER_PORT": str(free_port()), "MASTER_ADDR": "127.0.0.1"}

    def start(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "configs/hardware/slurm.sbatch", *arguments],
            cwd=REPOSITORY,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=300,
        )

    preempted = start()
    assert preempted.returncode == 75, preempted.stderr[-3000:]
    (run,) = tmp_path.glob("runs/*/*")
    assert run.name == "4711.0_s3"
    assert json.loads((run / "run.json").read_text())["status"] == "preempted"
    assert read_checkpoint(run / "checkpoints" / "latest.ckpt")["global_step"] >= 5, "saved before it ended"
    assert (cluster / "scontrol.txt").read_text() == "requeue 4711\n"
    requeued = start(SLURM_RESTART_COUNT="1")
    assert requeued.returncode == 0, requeued.stderr[-3000:]
    assert f"resuming {run}" in requeued.stdout
    assert list(tmp_path.glob("runs/*/*")) == [run]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert [row["epoch"] for row in read_csv(run / "metrics.csv") if row["val/acc"]] == ["0", "1"]
    assert (cluster / "scontrol.txt").read_text() == "requeue 4711\n", "once"
    assert (cluster / "srun.cpus").read_text() == "8\n8\n", "srun does not take it from sbatch"
