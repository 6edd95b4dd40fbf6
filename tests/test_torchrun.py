"""Jobs that torchrun starts are carried on after a worker, or a whole node, was lost. (An agent stands for a node.)"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_runs import REPOSITORY, classifier_args
from tests.torture import LONG, TIMEOUT, children, difference, finish, only_run, outcome, start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Else all restarts share a store: a process may find the address of a partner that has died in the restart before, and
# a node that is back waits for an address that the survivor keeps to itself (PyTorch 2.15).
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


EVERY_BATCH = ["--latest.minutes=0"]


def agent(options: list[str], args: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """An agent with its workers, as somebody would start it on a node."""
    command = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=3", *options]
    environment = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}
    environment |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "GLOO_SOCKET_IFNAME": "lo", **variables}
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, str(REPOSITORY / "train.py"), "--resume", "auto", *args],
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )


def wait_for(port: int, node: subprocess.Popen[bytes]) -> None:
    """Until an agent listens there: the first one keeps the job's store."""
    while node.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


def wait_for_checkpoint(runs: Path, nodes: list[subprocess.Popen[bytes]], log: Path) -> Path:
    patience = time.monotonic() + TIMEOUT
    while not (found := list(runs.glob("*/*/checkpoints/latest.ckpt"))):
        assert all(node.poll() is None for node in nodes) and time.monotonic() < patience, log.read_text()[-3000:]
        time.sleep(0.1)
    return found[0]


def lose(node: subprocess.Popen[bytes]) -> None:
    """What a power cut does: agent and worker (which has a session of its own) are gone at once."""
    for process in (node.pid, *children(node.pid)):
        os.killpg(os.getpgid(process), signal.SIGKILL)
    node.wait()


@pytest.mark.slow
def test_job_is_carried_on_after_a_node_was_lost(tiny_ferplus: Path, tmp_path: Path) -> None:
    logs = [tmp_path / f"{name}.txt" for name in ("whole", "first", "second")]
    args = classifier_args(
        tiny_ferplus, tmp_path / "runs", *LONG, *EVERY_BATCH, "--trainer.strategy=ddp", "--trainer.num_nodes=2"
    )
    port = free_port()
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-id=job", "--rdzv-backend=c10d"]
    options += [f"--rdzv-endpoint=127.0.0.1:{port}"]
    nodes = [agent(options, args, logs[1], **OWN_STORE)]
    wait_for(port, nodes[0])
    nodes.append(agent(options, args, logs[2], **OWN_STORE))
    try:
        latest = wait_for_checkpoint(tmp_path / "runs", nodes, logs[1])
        lose(nodes[1])
        nodes[1] = agent(options, args, logs[2], **OWN_STORE)
        for node, log in zip(nodes, logs[1:], strict=True):
            finish(node, log)
    finally:
        for node in nodes:
            if node.poll() is None:
                lose(node)
    assert f"resuming {latest.parents[1]}" in logs[1].read_text(), "the run was begun anew"
    two = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    finish(start("train", classifier_args(tiny_ferplus, tmp_path / "whole", *LONG, *two), logs[0]), logs[0])
    run = only_run(tmp_path / "runs")
    assert difference(outcome(only_run(tmp_path / "whole")), outcome(run)) is None


@pytest.mark.slow
def test_job_is_carried_on_after_a_worker_was_lost(tiny_ferplus: Path, tmp_path: Path) -> None:
    log, args = (
        tmp_path / "log.txt",
        classifier_args(tiny_ferplus, tmp_path / "runs", *LONG, *EVERY_BATCH, "--trainer.devices=2"),
    )
    node = agent(["--standalone", "--nproc-per-node=2"], [*args, "--trainer.strategy=ddp"], log, **OWN_STORE)
    try:
        latest = wait_for_checkpoint(tmp_path / "runs", [node], log)
        os.kill(children(node.pid)[1], signal.SIGKILL)
        finish(node, log)
    finally:
        if node.poll() is None:
            lose(node)
    assert f"resuming {latest.parents[1]}" in log.read_text()
    assert json.loads((latest.parents[1] / "run.json").read_text())["status"] == "finished"
