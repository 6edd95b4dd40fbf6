"""How commands end: exit codes, one line, and what is kept."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from commands import compare, export, prepare, synthetic, upscale
from commands.train import train
from tests.stopping import KilledError
from tests.test_exact_resume import stop
from tests.tiny_runs import REPOSITORY, classifier_args, write_generator
from tests.torture import children

TINY = "--model=tests.tiny_runs.TinyClassifier"


def ended(command: Callable[[list[str]], object], args: list[str]) -> object:
    with pytest.raises(SystemExit) as end:
        command(args)
    return end.value.code


@pytest.mark.parametrize(
    ("how", "code", "status", "last"),
    [
        ("SIGINT", 130, "interrupted", "interrupted; resume with --resume {run}"),
        ("SIGTERM", 75, "preempted", "preempted; resume with --resume {run}"),
        ("memory", 1, "failed: RuntimeError", "error: DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_a_training_ends_in_one_line_and_goes_on(
    how: str, code: int, status: str, last: str, tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(train, [*classifier_args(tiny_ferplus, tmp_path, TINY), *stop(tmp_path, batches=1, how=how)]) == code
    (run,) = tmp_path.glob("*/*")
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1].startswith(last.format(run=run)) and "KeyboardInterrupt" not in printed
    assert json.loads((run / "run.json").read_text())["status"] == status
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Lightning ignores further ones"
    train(["--resume", str(run)])
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("seconds", [0.5, 2, 5])
def test_a_signal_while_the_second_process_starts(seconds: float, tiny_ferplus: Path, tmp_path: Path) -> None:
    """To the whole process group, as schedulers send it, before the processes know of each other."""
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1000"]
    command = [sys.executable, "train.py", *classifier_args(tiny_ferplus, tmp_path, TINY, *two)]
    with subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.PIPE, text=True) as job:
        try:
            patience = time.monotonic() + 120
            while not (started := children(job.pid, "train.py")) and time.monotonic() < patience:
                time.sleep(0.02)
            time.sleep(seconds)
            os.killpg(job.pid, signal.SIGTERM)
            said = job.communicate(timeout=60)[1]
            assert job.returncode == 75 and "preempted; " in said, said[-3000:]
            assert not [
                path for pid in started if (path := Path(f"/proc/{pid}/cmdline")).exists() and path.read_bytes()
            ]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)


def test_an_error_of_the_program_keeps_its_traceback(tiny_ferplus: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train([*classifier_args(tiny_ferplus, tmp_path, TINY), *stop(tmp_path, batches=1)])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    ("command", "step", "args"),
    [
        (compare.compare, (compare, "read_runs"), ["run"]),
        (export.export, (export, "write_weights"), ["--ckpt_path=x", "--out=x.pth"]),
        (prepare.prepare, (prepare, "pack_faces"), ["--faces=x", "--out={out}"]),
        (synthetic.synthetic, (synthetic, "write_faces"), ["--root={out}"]),
        (upscale.upscale, (upscale, "upscale_share"), ["--ckpt_path={weights}", "--images={images}", "--out={out}"]),
    ],
    ids=["compare", "export", "prepare", "synthetic", "upscale"],
)
def test_a_signal_ends_every_command(
    command: Callable[[list[str]], object],
    step: tuple[object, str],
    args: list[str],
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    names = {"out": tmp_path / "out", "weights": write_generator(tmp_path / "w.ckpt"), "images": tmp_path / "images"}
    monkeypatch.setattr(*step, lambda *_: signal.raise_signal(number))
    before = signal.getsignal(number)
    assert ended(command, [word.format(**names) for word in args]) == code
    assert signal.getsignal(number) == before
    printed = capsys.readouterr().err.splitlines()
    assert printed == [f"{'preempted' if code == 75 else 'interrupted'}; give the same command again"]


def test_a_closed_pipe_does_not_end_a_training(
    tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `superfer train ... 2>&1 | head -n 1`."""
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, name, os.fdopen(writer, "w"))
    run = train(classifier_args(tiny_ferplus, tmp_path, TINY))
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    sys.stdout.close()  # nothing is left in it that could fail at the very end


INTERRUPTED = """
import runpy, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name in ("torch", "numpy"):
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["compare"]
runpy.run_path(PATH, run_name="__main__")
"""


@pytest.mark.parametrize("file", ["train.py", "test.py", "superfer.py", "datamodules/synthetic/__main__.py"])
def test_ctrl_c_while_libraries_are_imported(file: str) -> None:
    code = INTERRUPTED.replace("PATH", repr(file))
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
