"""W&B has what the run folder has, whatever happens to process and network. (Against a stub of its service.)"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from commands.test import test as run_test
from commands.train import train
from commands.upload import upload
from tests.tiny_runs import REPOSITORY, classifier_args, config, generator_options, read_csv
from tests.torture import children
from tests.wandb_stub import KEY, Service


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The service, with a key for it in the environment; trainings of this process are offline."""
    service = Service()
    for name, value in (service.environment | {"WANDB_MODE": "offline"}).items():
        monkeypatch.setenv(name, value)
    wandb.teardown()
    yield service
    service.stop()
    wandb.teardown()


def start(args: list[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "online"} | more
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "train.py"), *args],
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    patience = time.monotonic() + 240
    while not condition():
        assert process.poll() is None and time.monotonic() < patience, log.read_text()[-3000:]
        time.sleep(0.02)


def summary_of(run: Path) -> dict[str, Any]:
    rows = [row for row in read_csv(run / "metrics.csv") if row["val/acc"]]
    best = max(rows, key=lambda row: float(row["val/acc"]))
    return {"best/val/acc": float(best["val/acc"]), "best/epoch": float(best["epoch"]), "best/step": int(best["step"])}


def test_offline_run_and_its_tests_are_one_run(
    service: Service, tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path, "--trainer.max_epochs=3", "--seed_everything=7"))
    for split in ("val", "test"):
        run_test(["--ckpt_path", str(run), "--split", split])
    assert capsys.readouterr().out.count(f"to upload to W&B: superfer upload {run}\n") == 3
    assert not (run / "wandb").exists() and not service.runs
    for _ in range(2):  # the second changes nothing
        upload([str(run)])
        stored = service.check(run)
    assert stored.exit_codes == [0, 0] and stored.sent["groupName"] == "ferplus-bilinear"
    assert {"bilinear", "seed 7", "synthetic data"} <= set(stored.sent["tags"])
    shown = {"arm": "bilinear", "seed": 7, "arch": "resnet18", "lr": 0.1, "batch_size": 8, "epochs": 3, "devices": 1}
    record = json.loads((run / "run.json").read_text())
    assert shown | {"data": record["data_fingerprint"]} == {key: stored.config[key] for key in (*shown, "data")}
    assert stored.config["config"]["model"]["init_args"]["label_smoothing"] == 0.05
    assert "status" not in stored.config["run"] and stored.config["run"]["wandb_id"] == record["wandb_id"]
    report = json.loads((run / "metrics_test.json").read_text())["rules"]["majority"]
    tested = {"test/acc": report["all"]["acc"], "tested_on_val/acc": stored.summary["best/val/acc"]}
    tested["test/acc_without_train_duplicates"] = report["without_train_duplicates"]["acc"]
    for name, value in (summary_of(run) | tested).items():
        assert stored.summary[name] == pytest.approx(value), name
    assert len([name for name in stored.summary if name.startswith("test")]) < 20, "not every rule and subset"
    faces = [row["faces"]["path"] for row in stored.rows if "faces" in row]
    confusions = [row["confusion"]["path"] for row in stored.rows if "confusion" in row]
    assert len(faces) == len(confusions) == 3 and {*faces, *confusions} <= stored.uploads
    assert all("faces" in row for row in stored.rows if "val/acc" in row)


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_killed_runs_lose_nothing(mode: str, service: Service, tiny_ferplus: Path, tmp_path: Path) -> None:
    runs, log = tmp_path / "runs", tmp_path / "log.txt"
    args = [*classifier_args(tiny_ferplus, runs, "--trainer.max_epochs=4"), "--resume=auto"]

    def validations() -> int:
        return sum(bool(row.get("val/acc")) for path in runs.glob("*/*/metrics.csv") for row in read_csv(path))

    for validated in (1, 3):
        process = start(args, log, WANDB_MODE=mode)
        wait_until(lambda validated=validated: validations() >= validated, process, log)  # type: ignore[misc]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(args, log, WANDB_MODE=mode).wait(240) == 0, log.read_text()[-3000:]
    (run,) = runs.glob("*/*")
    if mode == "offline":
        upload([str(run)])
    stored = service.check(run, repeated=mode == "online")
    assert {name: stored.summary[name] for name in summary_of(run)} == pytest.approx(summary_of(run))
    assert [row["epoch"] for row in stored.rows if "val/acc" in row] == [0, 1, 2, 3]
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_rows_that_metrics_csv_has_lost(
    service: Service, tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B never has other rows than the file without a word."""
    run = train(classifier_args(tiny_ferplus, tmp_path, "--trainer.log_every_n_steps=1"))
    path, whole = run / "metrics.csv", (run / "metrics.csv").read_text()
    upload([str(run)])
    header, _, *others = whole.splitlines(keepends=True)
    for kept, problem in (
        (others[:-1], "W&B has 2 rows more than metrics.csv"),
        ([*others, others[0]], "W&B has a row of step"),
    ):
        path.write_text(header + "".join(kept))
        with pytest.raises(SystemExit) as stopped:
            upload([str(run)])
        assert stopped.value.code == 1 and problem in capsys.readouterr().err
    path.write_text(whole)
    upload([str(run)])
    service.check(run)


def test_killed_in_the_last_upload(
    service: Service, tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it resumes, nothing is left to train, but all to send."""
    run = train(classifier_args(tiny_ferplus, tmp_path))
    assert not service.runs
    monkeypatch.setenv("WANDB_MODE", "online")
    train(["--resume", str(run)])
    service.check(run)


def test_other_settings_are_a_new_run(
    service: Service, tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose rows are not those that W&B has."""
    args = classifier_args(tiny_ferplus, tmp_path, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1")
    run = train(args)
    run_test(["--ckpt_path", str(run)])
    upload([str(run)])
    monkeypatch.setenv("WANDB_MODE", "offline")
    (run / "checkpoints" / "latest.ckpt").unlink()  # resumes from the start of the last epoch
    with pytest.raises(SystemExit):
        train(["--resume", str(run), "--trainer.log_every_n_steps=100"])
    other = ["--trainer.max_epochs=3", "--trainer.log_every_n_steps=100"]
    train(["--resume", str(run), *other, "--allow_change=trainer.log_every_n_steps"])
    upload([str(run)])
    stored = service.check(run)
    assert len(service.runs) == 2 and [row["epoch"] for row in stored.rows if "val/acc" in row] == [0, 1, 2]
    assert not [name for name in stored.summary if name.startswith("test")], "of a checkpoint that is gone beyond"


def test_figures_of_a_test_go_with_its_checkpoint(
    service: Service, tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path))
    run_test(["--ckpt_path", str(run)])
    upload([str(run)])
    (before,) = service.runs.values()
    assert before.summary["test/acc"] is not None
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(["--resume", str(run), "--trainer.max_epochs=2"])
    upload([str(run)])
    assert service.check(run).summary.get("test/acc") is None


def test_damaged_results_are_named(
    service: Service, tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path))
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    for written, problem in (({"run_id": run_id, "split": "test"}, "is damaged"), ({}, "is of another run")):
        (run / "metrics_test.json").write_text(json.dumps(written))
        with pytest.raises(SystemExit) as stopped:
            upload([str(run)])
        assert stopped.value.code == 2 and f"metrics_test.json {problem}" in capsys.readouterr().err
    assert not service.runs


def test_killed_upload_goes_on(
    service: Service, tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, log = train(classifier_args(tiny_ferplus, tmp_path)), tmp_path / "log.txt"
    header, *rows = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text(header + "".join(rows * 2000))
    with log.open("wb") as file:
        command = [sys.executable, str(REPOSITORY / "superfer.py"), "upload", str(run)]
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    wait_until(lambda: any(stored.rows for stored in service.runs.values()), process, log)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    upload([str(run)])
    assert len(service.check(run).rows) == 2000 * len(rows)


def test_generator_shows_its_faces(service: Service, tiny_faces: Path, tmp_path: Path) -> None:
    options = [*config("generator/dic_small"), f"--runs={tmp_path}", *generator_options(tiny_faces)]
    run = train([*options, "--trainer.log_every_n_steps=1"])
    upload([str(run)])
    stored = service.check(run)
    assert stored.config["arm"] is None and stored.config["arch"] == "DICModule"
    (shown,) = [row["faces"]["path"] for row in stored.rows if "faces" in row]
    assert shown in stored.uploads and stored.summary["best/val/psnr_y"] > 0


@pytest.mark.parametrize(
    ("limit", "number"),
    [("2", None), pytest.param("600", signal.SIGTERM, marks=pytest.mark.slow)],
    ids=["given up", "signal"],
)
def test_lost_network(
    limit: str, number: signal.Signals | None, service: Service, tiny_ferplus: Path, tmp_path: Path
) -> None:
    """The training ends all the same, with its own exit code; what is missing is sent later."""
    log = tmp_path / "log.txt"
    args = classifier_args(tiny_ferplus, tmp_path / "runs", "--trainer.max_epochs=3")
    process = start(args, log, WANDB_FINISH_TIMEOUT=limit)
    try:
        wait_until(lambda: bool(list((tmp_path / "runs").glob("*/*/metrics.csv"))), process, log)
        service.stop()
        wait_until(lambda: "run folder: " in log.read_text() or process.poll() is not None, process, log)
        if number:
            time.sleep(1)  # well into the wait
            assert process.poll() is None, "nothing to interrupt"
            process.send_signal(number)
        assert process.wait(30) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
    (run,) = (tmp_path / "runs").glob("*/*")
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert f"to upload to W&B: superfer upload {run}\n" in log.read_text()
    service.start()
    upload([str(run)])
    service.check(run)


def test_training_survives_the_process_of_wandb(service: Service, tiny_ferplus: Path, tmp_path: Path) -> None:
    log, runs = tmp_path / "log.txt", tmp_path / "runs"
    process = start(classifier_args(tiny_ferplus, runs, "--trainer.max_epochs=4"), log, WANDB_FINISH_TIMEOUT="2")
    wait_until(lambda: bool(list(runs.glob("*/*/metrics.csv"))), process, log)
    (core,) = children(process.pid, "wandb-core")
    os.kill(core, signal.SIGKILL)
    assert process.wait(240) == 0, log.read_text()[-3000:]
    (run,) = runs.glob("*/*")
    assert f"to upload to W&B: superfer upload {run}\n" in log.read_text()
    upload([str(run)])
    service.check(run)


@pytest.mark.parametrize("fault", ["no network", "wrong key"])
def test_training_without_the_service(
    fault: str,
    service: Service,
    tiny_ferplus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    service.refuses = fault == "wrong key"
    if fault == "no network":
        service.stop()
    run = train(classifier_args(tiny_ferplus, tmp_path))
    printed = capsys.readouterr()
    assert len([line for line in printed.err.splitlines() if line.startswith("warning: W&B cannot be reached")]) == 1
    assert f"to upload to W&B: superfer upload {run}\n" in printed.out
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    with pytest.raises(SystemExit) as stopped:
        upload([str(run)])
    assert stopped.value.code == 1 and "W&B cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signal_while_the_service_does_not_answer(
    number: signal.Signals, code: int, service: Service, tiny_ferplus: Path, tmp_path: Path
) -> None:
    service.stop()
    log, runs = tmp_path / "log.txt", tmp_path / "runs"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = start(classifier_args(tiny_ferplus, runs), log, WANDB_BASE_URL=address)
        try:
            silent.settimeout(120)
            connection, _ = silent.accept()
            time.sleep(1)
            process.send_signal(number)
            assert process.wait(15) == code, log.read_text()[-3000:]
            connection.close()
        finally:
            process.kill()
    (run,) = runs.glob("*/*")
    assert f"to upload to W&B: superfer upload {run}\n" in log.read_text()


def test_sweep_agent_chooses_project_and_id(
    service: Service, tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two processes, of which one opens a run."""
    names = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "trial1", "WANDB_PROJECT": "others", "WANDB_ENTITY": "team"}
    log = tmp_path / "log.txt"
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    process = start(classifier_args(tiny_ferplus, tmp_path / "runs", *two), log, **names)
    assert process.wait(240) == 0, log.read_text()[-3000:]
    (run,) = (tmp_path / "runs").glob("*/*")
    record = json.loads((run / "run.json").read_text())
    assert [record[f"wandb_{name}"] for name in ("id", "project", "entity")] == ["trial1", "others", "team"]
    stored = service.check(run)
    assert (stored.sent["project"], stored.sent["entity"]) == ("others", "team")
    assert stored.config["devices"] == 2


@pytest.mark.slow
def test_preempted_run_is_not_a_failed_one(service: Service, tiny_ferplus: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    process = start(classifier_args(tiny_ferplus, tmp_path / "runs", "--trainer.max_epochs=10000"), log)
    try:
        wait_until(lambda: bool(list((tmp_path / "runs").glob("*/*/metrics.csv"))), process, log)
        process.terminate()
        assert process.wait(60) == 75, log.read_text()[-3000:]
    finally:
        process.kill()
    (stored,) = service.runs.values()
    assert stored.preempting and stored.exit_codes == [75]


def test_everything_else_works_without_wandb(tiny_ferplus: Path, tmp_path: Path) -> None:
    """As where the package may not be installed."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['wandb'] = None\n")
    log = tmp_path / "log.txt"
    process = start(
        classifier_args(tiny_ferplus, tmp_path / "runs"), log, WANDB_MODE="", PYTHONPATH=str(tmp_path), NETRC="none"
    )
    assert process.wait(240) == 0, log.read_text()[-3000:]
    (run,) = (tmp_path / "runs").glob("*/*")
    assert "to upload to W&B: superfer upload" in log.read_text() and read_csv(run / "metrics.csv")
