"""Run folders: names, and finding them again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from run_state.folder import find_checkpoint, find_run, lock, new_run_folder, share_with_children, status
from run_state.record import software_state
from tests.tiny_runs import REPOSITORY, run_record


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUPERFER_RUN_FOLDER", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "2026-01-02_03-04-05")
    folders = [new_run_folder(tmp_path, "arm", seed) for seed in (0, 0, 1)]
    names = ["2026-01-02_03-04-05_s0", f"2026-01-02_03-04-05-{os.getpid()}_s0", "2026-01-02_03-04-05_s1"]
    assert [folder.name for folder in folders] == names
    assert all(folder.is_dir() and folder.parent == tmp_path / "arm" for folder in folders)


def test_children_take_the_folder_of_their_parent(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path, "arm", 0)
    share_with_children(folder)
    assert new_run_folder(tmp_path, "arm", 0) == folder
    share_with_children(None)
    assert new_run_folder(tmp_path, "arm", 0) != folder


def test_one_process_at_a_time_trains_in_a_folder_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from run_state.folder import lock\n"
    code += "with lock(Path(sys.argv[1])): print('locked', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match=rf"in use by process {other.pid} on .*; wait for it"), lock(tmp_path):
            pass
        (tmp_path / "run.json").write_text(json.dumps(run_record(tmp_path, status="running")))
        assert status(tmp_path) == "running"
        other.kill()
        other.wait()
    assert status(tmp_path) == "died"
    (tmp_path / "run.json").write_text(json.dumps(run_record(tmp_path, status="preempted")))
    assert status(tmp_path) == "preempted"
    with lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


STARTER = """
import sys, time
from pathlib import Path
from run_state.folder import only_auto

settings = {"runs": sys.argv[1], "experiment": "x"}
for _ in range(300):
    try:
        with only_auto(settings):
            mark = Path(sys.argv[1], "alone")
            mark.touch(exist_ok=False)
            mark.unlink()
    except ValueError:  # refused
        pass
"""


def test_of_two_automatic_starts_at_most_one_is_let_in(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path)]
    starters = [subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [starter.communicate(timeout=120)[1] for starter in starters] == [""] * 4


def test_processes_of_a_job_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night")
    folder = new_run_folder(tmp_path, "arm", 7)
    assert folder == tmp_path / "arm" / "night_s7" == new_run_folder(tmp_path, "arm", 7)
    (folder / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="resume it with --resume"):
        new_run_folder(tmp_path, "arm", 7)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's default
    with pytest.raises(ValueError, match="rdzv-id"):
        new_run_folder(tmp_path, "arm", 7)


def test_slurm_names_the_folder_only_if_it_starts_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3", "SLURM_PROCID": "1", "SLURM_NTASKS": "8"}.items():
        monkeypatch.setenv(name, value)
    assert new_run_folder(tmp_path, "arm", 0).name == "12.3_s0"
    monkeypatch.setenv("SLURM_NTASKS", "1")  # two trainings one after the other in one allocation
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_s0", new_run_folder(tmp_path, "arm", 0).name)


def test_finding_runs_and_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.yaml"):
        find_run(run)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_run(tmp_path / "other")
    (run / "config.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match=r"best\.ckpt and .*latest\.ckpt"):
        find_checkpoint(run)
    latest = run / "checkpoints" / "latest.ckpt"
    latest.touch()
    assert find_run(latest) == find_run(run) == run
    assert find_checkpoint(run) == latest == find_checkpoint(latest)
    (run / "checkpoints" / "best.ckpt").touch()
    assert find_checkpoint(run).name == "best.ckpt"
    with pytest.raises(FileNotFoundError, match=r"typo\.ckpt"):
        find_checkpoint(run / "checkpoints" / "typo.ckpt")


def test_software_state_is_plain() -> None:
    state = software_state()
    commit = state["git_commit"]
    assert commit is None or re.fullmatch("[0-9a-f]{40}", str(commit))
    assert {"torch", "lightning", "python"} <= set(state["versions"])  # type: ignore[call-overload]


def test_no_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    state = software_state()
    assert state["git_commit"] is None and state["git_dirty"] is None
