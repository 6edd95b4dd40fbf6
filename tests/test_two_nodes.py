"""Two torchrun agents on one machine stand for two nodes; one of them is lost, and the job carried on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_runs import REPOSITORY, classifier_args
from tests.torture import LONG, TIMEOUT, difference, finish, only_run, outcome, start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def agent(port: int, args: list[str], log: Path) -> subprocess.Popen[bytes]:
    """An agent with one worker, as somebody would start it on a node."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
    command += ["--rdzv-id=job", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    environment = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}
    # Else the survivor keeps the address of the first round's store to itself, and the node that is back waits for it.
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "GLOO_SOCKET_IFNAME": "lo"}
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


def lose(node: subprocess.Popen[bytes]) -> None:
    """What a power cut does: agent and worker (which has a session of its own) are gone at once."""
    workers = subprocess.run(["pgrep", "-P", str(node.pid)], capture_output=True, text=True).stdout.split()
    for process in (node.pid, *map(int, workers)):
        os.killpg(os.getpgid(process), signal.SIGKILL)
    node.wait()


@pytest.mark.slow
def test_job_is_carried_on_after_a_node_was_lost(tiny_ferplus: Path, tmp_path: Path) -> None:
    logs = [tmp_path / f"{name}.txt" for name in ("whole", "first", "second")]
    args = classifier_args(tiny_ferplus, tmp_path / "runs", *LONG, "--trainer.strategy=ddp", "--trainer.num_nodes=2")
    port = free_port()
    nodes = [agent(port, args, logs[1])]
    wait_for(port, nodes[0])
    nodes.append(agent(port, args, logs[2]))
    try:
        latest, patience = tmp_path / "runs" / "ferplus-bilinear" / "job_s0" / "checkpoints" / "latest.ckpt", 0.0
        while not latest.is_file():
            assert all(node.poll() is None for node in nodes) and patience < TIMEOUT, logs[1].read_text()[-3000:]
            time.sleep(0.1)
            patience += 0.1
        lose(nodes[1])
        nodes[1] = agent(port, args, logs[2])
        for node, log in zip(nodes, logs[1:], strict=True):
            finish(node, log)
    finally:
        for node in nodes:
            if node.poll() is None:
                lose(node)
    assert f"continuing {latest.parents[1]}" in logs[1].read_text(), "the run was begun anew"
    two = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    finish(start("train.py", classifier_args(tiny_ferplus, tmp_path / "whole", *LONG, *two), logs[0]), logs[0])
    run = only_run(tmp_path / "runs")
    assert difference(outcome(only_run(tmp_path / "whole")), outcome(run)) is None
