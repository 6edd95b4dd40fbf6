"""`superfer experiment`: what its file may say, and that kills change nothing in what comes out."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from commands import slots
from commands.cells import Cell, read_experiment
from commands.compare import compare
from commands.experiment import experiment
from commands.runs import Progress
from commands.test import test as run_test
from commands.train import train
from run_state.folder import status
from tests.tiny_runs import REPOSITORY, classifier_options

TINY = "--model=tests.tiny_runs.TinyClassifier"


def write(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def tiny(root: Path, runs: Path, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, object]:
    """An experiment that trains as little as possible; its arms are interpolations."""
    options = [option for option in classifier_options(root) if "max_epochs" not in option]
    base = [str(REPOSITORY / "configs/classifier/bilinear.yaml"), f"--runs={runs}", *options]
    base += [TINY, "--trainer.max_epochs=4", "--latest.minutes=0.001"]
    upscaler = "--data.upscaler datamodules.upscalers.InterpolationUpscaler"
    named = {arm: [f"--experiment={arm}", upscaler, f"--data.upscaler.mode {arm}"] for arm in arms}
    return {"base": base, "arms": named, "seeds": list(seeds), "test": ["test"], "compare": ["--no-faces"]}


def refusal(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        experiment([str(path), "--output", str(path.parent / "results"), *more])
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arm": {}}, "no key 'arm'; did you mean 'arms'?"),
        ({"seeds": [0, True]}, "seeds has True, expected integers"),
        ({"seeds": [0, 0]}, "seeds has 0 more than once"),
        ({"seeds": []}, "seeds is [], expected a list"),
        ({"test": ["tset"]}, "test has 'tset', expected some of train, val, test; did you mean 'test'?"),
        ({"arms": {"a b": []}}, "arms has the name 'a b', expected one plain word"),
        ({"arms": {"a": "--x 1"}}, "arms.a is '--x 1', expected a list"),
        ({"arms": {"a": ["--tags {gen}"]}, "stages": {"generator": []}}, "{gen} names no stage before it"),
        ({"arms": {"a": ["--model.arhc resnet18"]}}, "a, seed 0:"),
        ({"arms": {"a": [], "b": []}}, "a, seed 0 and b, seed 0 have the same settings"),
        ({"arms": {"a": [], "b": ["--experiment b"]}}, "the upscalers of a and b are both named 'bilinear'"),
        ({"compare": ["--rule majorty"]}, "did you mean 'majority'?"),
        ({"base": [], "arms": {}}, "neither arms nor stages"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    change: dict[str, object], words: str, tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tiny(tiny_ferplus, tmp_path / "runs", ["bilinear"], [0]) | change
    error = refusal(write(tmp_path / "x.yaml", **content), capsys)
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists(), "nothing is left behind"


def test_the_nearest_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as exit_:
        experiment(["configs/experiments/dmeo.yaml"])
    assert exit_.value.code == 2 and "did you mean 'configs/experiments/demo.yaml'?" in capsys.readouterr().err


def test_slots_share_out_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(slots, "_gpus", lambda: [])
    assert slots.share_out(None) == [{"OMP_NUM_THREADS": "8"}] and slots.share_out(3)[2] == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setattr(slots, "_gpus", lambda: ["2", "3", "5"])
    shares = [[slot["CUDA_VISIBLE_DEVICES"] for slot in slots.share_out(count)] for count in (None, 2, 4)]
    assert shares == [["2", "3", "5"], ["2,5", "3"], ["2", "3", "5", "2"]]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert slots.share_out(1) == [{"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "2,3,5"}]


def start(path: Path, output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(REPOSITORY / "superfer.py"), "experiment", str(path), "--slots", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [*command, "--output", str(output)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until_begun(runs: Path, checkpoints: int) -> None:
    """Wait for a run that has not ended although so many runs have a checkpoint."""
    end = time.monotonic() + 200
    while time.monotonic() < end:
        saved = {path.parents[1] for path in runs.glob("*/*/checkpoints/latest.ckpt")}
        unfinished = [path for path in runs.glob("*/*/run.json") if '"running"' in path.read_text()]
        if len(saved) >= checkpoints and unfinished:
            return
        time.sleep(0.01)
    raise TimeoutError


def outcome(runs: Path, output: Path) -> tuple[dict[str, str], object]:
    """Every prediction by arm and seed, and the accuracies of the comparison; a commit meanwhile changes the rest."""
    tested = {path.parent.name[-3:] + path.parents[1].name: path for path in runs.glob("*/*/predictions_test.csv")}
    predictions = {name: path.read_text() for name, path in sorted(tested.items())}
    return predictions, json.loads((output / "comparison.json").read_text())["accuracies"]


def by_hand(content: dict[str, object], path: Path, output: Path) -> None:
    """The same, as a person types it."""
    cells = read_experiment(write(path, **content)).cells
    runs = [str(train(cell.own_words)) for cell in cells]
    for run in runs:
        run_test(["--ckpt_path", run])
    compare([*runs, "--no-faces", "--output", str(output)])


def check_kills(root: Path, folder: Path, arms: Sequence[str], seeds: Sequence[int], kills: Sequence[int]) -> None:
    """Kill an experiment with all its processes when so many runs have begun; compare it with one that was not."""
    path = write(folder / "killed.yaml", **tiny(root, folder / "killed", arms, seeds))
    for checkpoints in kills:
        process = start(path, folder / "results")
        wait_until_begun(folder / "killed", checkpoints)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(path, folder / "results")
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    cells = len(arms) * len(seeds)
    assert len(list((folder / "killed").glob("*/*/run.json"))) == cells, "each is resumed in its folder"
    by_hand(tiny(root, folder / "whole", arms, seeds), folder / "whole.yaml", folder / "expected")
    killed, whole = (
        outcome(folder / runs, folder / results) for runs, results in (("killed", "results"), ("whole", "expected"))
    )
    assert killed == whole and len(whole[0]) == cells


def test_killed_twice(tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_kills(tiny_ferplus, tmp_path, ["bilinear", "bicubic"], [0, 1], kills=[1, 3])
    capsys.readouterr()
    experiment([str(tmp_path / "killed.yaml"), "--output", str(tmp_path / "results")])
    again = capsys.readouterr().out
    assert "4 of 4 cells are done" in again and "training\n" not in again, "what is done is skipped"


@pytest.mark.slow
def test_three_arms_with_three_seeds_killed_twice(tiny_ferplus: Path, tmp_path: Path) -> None:
    check_kills(tiny_ferplus, tmp_path, ["bilinear", "bicubic", "nearest"], [0, 1, 2], kills=[2, 6])


def test_a_failed_cell_does_not_stop_the_others(tiny_ferplus: Path, tmp_path: Path) -> None:
    content = tiny(tiny_ferplus, tmp_path / "runs", ["bilinear"], [0])
    stage = [*content["base"], "--experiment=stage", "--data.root=/nonexistent"]  # type: ignore[misc]
    content |= {"stages": {"first": stage}}
    content["arms"] |= {"second": ["--experiment=second", "--data.upscaler bicubic", "--data.cache_dir {first}"]}  # type: ignore[operator]
    process = start(write(tmp_path / "x.yaml", **content), tmp_path / "results")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "first: FAILED: error: /nonexistent" in output and "second, seed 0: FAILED: needs first" in output
    assert "bilinear, seed 0: done" in output and output.rstrip().splitlines()[-1].startswith("error: 2 of 3 cells")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_ends_the_cells_orderly(number: signal.Signals, code: int, tiny_ferplus: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal; a scheduler or the kernel may signal the runner alone."""
    content = tiny(tiny_ferplus, tmp_path / "runs", ["bilinear"], [0])
    content["base"].append("--trainer.max_epochs=10000")  # type: ignore[attr-defined]
    process = start(write(tmp_path / "x.yaml", **content), tmp_path / "results")
    wait_until_begun(tmp_path / "runs", 1)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert code < 0 or output.endswith("give the same command again\n")
    (run,) = (path.parent for path in (tmp_path / "runs").glob("*/*/run.json"))
    end = time.monotonic() + 60
    while status(run) == "running" and time.monotonic() < end:  # after the runner
        time.sleep(0.1)
    assert status(run) == "preempted"


class FakeCell(Cell):
    """A cell whose commands end in a second: those given, one after the other."""

    left: list[list[str]]
    known: Progress | None = None
    elsewhere = 0  # how often it is found to be trained by another process

    def next_command(self) -> list[str] | None:
        return self.left[0] if self.left else None

    def is_running(self) -> bool:
        object.__setattr__(self, "elsewhere", self.elsewhere - 1)
        return self.elsewhere >= 0

    def progress(self) -> Progress | None:
        return self.known


def fake(name: str, *left: str, epochs: int = 0, epoch_s: float | None = None, **stages: Cell) -> FakeCell:
    cell = FakeCell(name, name.split(",")[0], (), stages=stages)
    object.__setattr__(cell, "left", [["compare", f"/nonexistent/{word}"] for word in left])
    object.__setattr__(cell, "known", Progress(epochs, 10, epoch_s, 0.0, "val/acc", 0.5, 0.5))
    return cell


def order(runner: slots.Runner, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cells in the order in which they are begun; each command is done in no time."""
    begun = []

    def start(cell: FakeCell, *_: object) -> subprocess.Popen[bytes]:
        begun.append(cell.name)
        cell.left.pop(0)
        return subprocess.Popen(["true"])

    monkeypatch.setattr(runner, "_start", start)
    monkeypatch.setattr(slots, "_POLL_S", 0.05)
    runner.run()
    return begun


def test_the_longest_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = fake("stage", "x")
    cells = [
        stage,
        fake("short, seed 0", "x", epochs=5, epoch_s=1.0),
        fake("short, seed 1", "x"),  # 10 s, as its sister shows
        fake("long, seed 0", "x", "y", epochs=9, epoch_s=60.0),
        fake("done, seed 0"),
        fake("after, seed 0", "x", epoch_s=1000.0, stage=stage),
    ]
    runner = slots.Runner(cells, [{}], tmp_path)
    runner.print_plan()
    plan = capsys.readouterr().out.splitlines()
    assert "  done, seed 0   done" in plan and "  long, seed 0   to resume after epoch 9, about 60 s" in plan
    assert plan[-1] == "1 of 6 cells are done, about 3.5 h of training left"
    assert order(runner, monkeypatch) == [
        "stage", "after, seed 0", "long, seed 0", "long, seed 0", "short, seed 1", "short, seed 0"
    ]  # fmt: skip


def test_at_a_terminal_lines_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(slots, "_REDRAW_S", 0.0)
    order(slots.Runner([fake("a, seed 0", "x", epochs=3, epoch_s=60.0)], [{}], tmp_path), monkeypatch)
    shown = (
        "a, seed 0: epoch 3 of 10, val/acc 0.5000, 6 min left\n0 of 1 cells are done, about 7 min of training left\n"
    )
    assert capsys.readouterr().out.startswith(f"a, seed 0: training\n{shown}\x1b[2F\x1b[J")


def test_a_cell_that_another_process_trains_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [fake("a, seed 0", "x"), fake("b, seed 0", "x")]
    object.__setattr__(cells[0], "elsewhere", 5)
    assert order(slots.Runner(cells, [{}], tmp_path), monkeypatch) == ["b, seed 0", "a, seed 0"]


def test_a_command_without_effect_is_not_repeated(tmp_path: Path) -> None:
    cell = fake("a, seed 0", "x")
    object.__setattr__(cell, "left", [["--help"]])
    runner = slots.Runner([cell], [{}], tmp_path)
    runner.run()
    assert runner.failed == {cell: "`superfer --help` ended without a result"}
    assert (tmp_path / "a_s0.log").read_text().startswith("\n$ superfer --help\nusage: superfer VERB")
