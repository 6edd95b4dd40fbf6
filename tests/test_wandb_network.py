"""A training whose network goes away ends all the same, with its own exit code. (Against a stub of W&B's service.)"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.test_torchrun import free_port
from tests.tiny_runs import REPOSITORY, classifier_args


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """The service, and the environment in which W&B finds it."""
    port = str(free_port())
    stub = subprocess.Popen([sys.executable, str(REPOSITORY / "tests" / "wandb_stub.py"), port, str(tmp_path / "log")])
    inherited = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    key = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
    yield stub, inherited | key | {"OMP_NUM_THREADS": "1"}
    stub.kill()
    stub.wait()


def start(args: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "train.py"), *args], stdout=file, stderr=file, env=environment
        )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    patience = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < patience, log.read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("limit", "number"),
    [("2", None), pytest.param("600", signal.SIGTERM, marks=pytest.mark.slow)],
    ids=["given up", "signal"],
)
def test_lost_network(
    limit: str,
    number: signal.Signals | None,
    service: tuple[subprocess.Popen[bytes], dict[str, str]],
    tiny_ferplus: Path,
    tmp_path: Path,
) -> None:
    stub, environment = service
    args = classifier_args(tiny_ferplus, tmp_path / "runs", "--trainer.max_epochs=3")
    log = tmp_path / "log.txt"
    process = start(args, environment | {"WANDB_FINISH_TIMEOUT": limit}, log)
    try:
        wait_until(lambda: bool(list((tmp_path / "runs").glob("*/*/metrics.csv"))), process, log)
        stub.kill()
        wait_until(lambda: "run folder: " in log.read_text() or process.poll() is not None, process, log)
        if number:
            time.sleep(1)  # well into the wait
            assert process.poll() is None, "nothing to interrupt"
            process.send_signal(number)
        assert process.wait(30) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
    (record,) = (tmp_path / "runs").glob("*/*/run.json")
    assert json.loads(record.read_text())["status"] == "finished"


@pytest.mark.slow
def test_preempted_run_is_not_a_failed_one_in_wandb(
    service: tuple[subprocess.Popen[bytes], dict[str, str]], tiny_ferplus: Path, tmp_path: Path
) -> None:
    args = classifier_args(tiny_ferplus, tmp_path / "runs", "--trainer.max_epochs=10000")
    log = tmp_path / "log.txt"
    process = start(args, service[1], log)
    try:
        wait_until(lambda: bool(list((tmp_path / "runs").glob("*/*/metrics.csv"))), process, log)
        process.terminate()
        assert process.wait(60) == 75, log.read_text()[-3000:]
    finally:
        process.kill()
    sent = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert any(message.get("preempting") for message in sent)
    assert [message["exitcode"] for message in sent if message.get("complete")] == [75]
