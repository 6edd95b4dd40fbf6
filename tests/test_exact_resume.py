"""A run that was stopped anywhere and resumed has the weights, bit by bit, and the curves of one that was not."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from commands.train import train
from storage.checkpoints import read_checkpoint
from tests.stopping import KilledError
from tests.tiny_runs import choose_by_step, classifier_args, config, generator_options, read_csv
from tests.torture import difference, outcome

WHOLE = ["--trainer.limit_train_batches=1.0", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]
NOW = "--latest.minutes=0"  # a checkpoint at the start of every batch
TINY = "--model=tests.tiny_runs.TinyClassifier"
Arguments = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Arguments], Path]:
    """Runs that nobody stopped, trained once for all tests that compare with them."""
    runs: dict[str, Path] = {}

    def run(name: str, arguments: Arguments) -> Path:
        if name not in runs:
            runs[name] = train(arguments(tmp_path_factory.mktemp("undisturbed")))
        return runs[name]

    return run


def stop(folder: Path, **place: object) -> list[str]:
    """Arguments that stop a training once."""
    given = [f"--trainer.callbacks.{name}={value}" for name, value in place.items()]
    return ["--trainer.callbacks+=tests.stopping.Stop", f"--trainer.callbacks.marker={folder / 'stopped'}", *given]


def stopped_and_resumed(arguments: Arguments, folder: Path, **place: object) -> Path:
    with pytest.raises(KilledError):
        train([*arguments(folder), *stop(folder, **place)])
    (run,) = folder.glob("*/*")
    return train(["--resume", str(run)])


def classifier(root: Path, *options: str) -> Arguments:
    mixup = ["--model.mixup=0.4"]  # draws from PyTorch's generator
    return lambda runs: [*classifier_args(root, runs, TINY, *WHOLE, *mixup), *options]


def generator(faces: Path, stage: str, *options: str) -> Arguments:
    def arguments(runs: Path) -> list[str]:
        given = [*config(f"generator/{stage}_small"), f"--runs={runs}", *generator_options(faces, stage)]
        return [*given, *WHOLE, *options]

    return arguments


CLASSIFIER = {  # options, and where it dies: of eight batches, four an epoch
    "mid-epoch": ([NOW], {"batches": 2}),
    "within a step": ([NOW], {"step": 6}),
    "shipped interval": ([], {"batches": 7}),
    "first batch": ([], {"step": 0}),
    "workers": ([NOW, "--data.num_workers=2"], {"batches": 7}),
    "epoch's first batch": ([NOW, "--data.num_workers=2"], {"batches": 5}),
    "accumulation": ([NOW, "--trainer.accumulate_grad_batches=2"], {"batches": 7}),
    "accumulation with a rest": ([NOW, "--trainer.accumulate_grad_batches=3"], {"batches": 7}),
    "after a validation": ([NOW, "--trainer.val_check_interval=2"], {"batches": 3}),
    "before a validation": ([NOW, "--trainer.val_check_interval=2"], {"batches": 6}),
    "last batch, after a validation": ([NOW, "--trainer.val_check_interval=3"], {"step": 7}),
    "epochs of one batch": ([NOW, "--trainer.limit_train_batches=1"], {"step": 1}),
    "validation every second epoch": ([NOW, "--trainer.check_val_every_n_epoch=2"], {"batches": 5}),
    "validation at half an epoch": ([NOW, "--trainer.val_check_interval=0.5"], {"batches": 7}),
    "in validation": ([NOW], {"epoch": 1}),
    "loaders made anew": ([NOW, "--trainer.reload_dataloaders_every_n_epochs=1"], {"batches": 6}),
    "sanity check": ([NOW, "--trainer.num_sanity_val_steps=2"], {"batches": 6}),
}


@pytest.mark.parametrize("case", CLASSIFIER)
def test_classifier(
    case: str, tiny_ferplus: Path, tmp_path: Path, undisturbed: Callable[[str, Arguments], Path]
) -> None:
    options, place = CLASSIFIER[case]
    arguments = classifier(tiny_ferplus, *options)
    schedule = [option for option in options if option.startswith("--trainer")]
    whole = undisturbed(f"classifier {schedule}", classifier(tiny_ferplus, *schedule))
    assert difference(outcome(whole), outcome(stopped_and_resumed(arguments, tmp_path, **place))) is None


@pytest.mark.parametrize(("stage", "place"), [("hourglass", "batches"), ("dic", "batches"), ("dicgan", "step")])
def test_generator(
    stage: str, place: str, tiny_faces: Path, tmp_path: Path, undisturbed: Callable[[str, Arguments], Path]
) -> None:
    """As shipped: averaged weights, schedules, frozen hourglass, validation every few epochs."""
    whole = undisturbed(stage, generator(tiny_faces, stage))
    run = stopped_and_resumed(generator(tiny_faces, stage, NOW), tmp_path, **{place: 9})
    assert difference(outcome(whole), outcome(run)) is None
    steps = [int(row["step"]) for row in read_csv(run / "metrics.csv") if row["train/g/heatmap"]]
    assert steps == list(range(12))  # every batch once


COUNTED = ["--trainer.max_steps=15", "--trainer.max_epochs=-1", "--trainer.check_val_every_n_epoch=null"]


@pytest.mark.parametrize("batches", [5, 7, 10])
def test_training_counted_in_batches(
    batches: int, tiny_faces: Path, tmp_path: Path, undisturbed: Callable[[str, Arguments], Path]
) -> None:
    """As the published generator configurations are: validations ignore the epochs (of six batches)."""
    counted = [*COUNTED, "--trainer.val_check_interval=4"]
    whole = undisturbed("counted", generator(tiny_faces, "dic", *counted))
    run = stopped_and_resumed(generator(tiny_faces, "dic", *counted, NOW), tmp_path, batches=batches)
    assert difference(outcome(whole), outcome(run)) is None
    assert [row["step"] for row in read_csv(run / "metrics.csv") if row["val/psnr_y"]] == ["3", "7", "11"]
    end = read_checkpoint(run / "checkpoints" / "latest.ckpt")
    assert end["global_step"] == 15
    trained = end["current_model_state"]["net.conv_in.0.weight"]  # beside the average, after the last batch, too
    assert not torch.equal(trained, end["state_dict"]["net.conv_in.0.weight"])


@pytest.mark.parametrize("steps", [4, 6], ids=["epoch-end", "mid-epoch"])
def test_only_the_best_checkpoint_is_left(
    steps: int,
    tiny_ferplus: Path,
    tmp_path: Path,
    undisturbed: Callable[[str, Arguments], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is written during a validation, if that is the best so far."""
    options = ["--trainer.val_check_interval=2"]
    whole = undisturbed(f"classifier {options}", classifier(tiny_ferplus, *options))
    options = [*options, *choose_by_step(monkeypatch, "max")]  # the last validation is the best
    arguments = classifier(tiny_ferplus, *options)
    with pytest.raises(KilledError):
        train([*arguments(tmp_path), *stop(tmp_path, batches=steps + 1)])
    (run,) = tmp_path.glob("*/*")
    for name in ("latest", "previous"):
        (run / "checkpoints" / f"{name}.ckpt").unlink(missing_ok=True)
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == steps
    train(["--resume", str(run)])
    weights = [read_checkpoint(path / "checkpoints" / "latest.ckpt")["state_dict"] for path in (whole, run)]
    assert difference(*weights) is None


CLOCK: dict[str, Sequence[str]] = {
    "epochs": (),
    "batches": ("--trainer.max_steps=12", "--trainer.max_epochs=-1"),
    "before a validation": ("--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=9"),
    "within an accumulation": ("--trainer.accumulate_grad_batches=2",),
}


@pytest.mark.parametrize("case", CLOCK)
def test_stopped_by_the_clock_and_resumed(
    case: str, tiny_faces: Path, tmp_path: Path, undisturbed: Callable[[str, Arguments], Path]
) -> None:
    """`trainer.max_time` ends a run in mid-epoch, between two checkpoints."""
    arguments = generator(tiny_faces, "dic", *CLOCK[case])
    whole = undisturbed(f"clock {case}", arguments)
    run = train([*arguments(tmp_path), *stop(tmp_path, batches=9, how="clock")])
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    step = read_checkpoint(run / "checkpoints" / "latest.ckpt")["global_step"]
    assert step == (5 if case == "within an accumulation" else 9), "batches of the training"
    train(["--resume", str(run)])
    assert difference(outcome(whole), outcome(run)) is None


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ([], {"batches": 6, "how": "SIGUSR1"}),
        ([], {"batches": 6, "how": "SIGTERM"}),
        (["--trainer.accumulate_grad_batches=2"], {"batches": 7, "how": "SIGTERM"}),
        ([], {"epoch": 1, "how": "SIGTERM"}),
    ],
    ids=["SIGUSR1", "SIGTERM", "accumulation", "validation"],
)
def test_preempted_run_saves_asks_to_be_started_again_and_goes_on(
    options: list[str],
    place: dict[str, Any],
    tiny_ferplus: Path,
    tmp_path: Path,
    undisturbed: Callable[[str, Arguments], Path],
) -> None:
    whole = undisturbed(f"classifier {options}", classifier(tiny_ferplus, *options))
    number = signal.Signals[place["how"]]
    before = signal.getsignal(number)
    arguments = classifier(tiny_ferplus, *options, "--data.num_workers=2")
    with pytest.raises(SystemExit) as stopped:
        train([*arguments(tmp_path), *stop(tmp_path, **place)])
    assert stopped.value.code == 75 and signal.getsignal(number) == before
    (run,) = tmp_path.glob("*/*")
    assert json.loads((run / "run.json").read_text())["status"] == "preempted"
    if not options and "batches" in place:
        assert read_checkpoint(run / "checkpoints" / "latest.ckpt")["global_step"] == 6
    train(["--resume", str(run)])
    assert difference(outcome(whole), outcome(run)) is None
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_stopped_in_mid_epoch_by_a_validation(
    tiny_ferplus: Path, tmp_path: Path, undisturbed: Callable[[str, Arguments], Path]
) -> None:
    """As `EarlyStopping` does: a resumed run trains the rest of the epoch."""
    options = ["--trainer.val_check_interval=2"]
    arguments = classifier(tiny_ferplus, *options)
    run = train([*arguments(tmp_path), *stop(tmp_path, epoch=0, how="clock")])
    assert read_checkpoint(run / "checkpoints" / "latest.ckpt")["global_step"] == 2
    train(["--resume", str(run)])
    assert difference(outcome(undisturbed(f"classifier {options}", arguments)), outcome(run)) is None


def test_prolonged(tiny_ferplus: Path, tmp_path: Path) -> None:
    """A run that had finished goes on with the next epoch."""
    run = train(classifier(tiny_ferplus)(tmp_path))
    train(["--resume", str(run), "--trainer.max_epochs=3"])
    assert [row["epoch"] for row in read_csv(run / "metrics.csv") if row["val/acc"]] == ["0", "1", "2"]
    assert read_checkpoint(run / "checkpoints" / "latest.ckpt")["global_step"] == 12


def test_differences_are_found() -> None:
    first = {"a": [torch.zeros(2), {"b": 1}]}
    assert difference(first, {"a": [torch.zeros(2), {"b": 1}]}) is None
    assert difference(first, {"a": [torch.tensor([0.0, 1e-30]), {"b": 1}]}) == "/a/0"
    assert difference(first, {"a": [torch.zeros(2), {"b": 2}]}) == "/a/1/b"
    assert difference(first, {"a": [torch.zeros(2)]}) == "/a"
