"""Find what runs differ in besides the upscaler; if there is anything, a comparison gives no verdict."""

from collections.abc import Iterator, Sequence
from typing import Any

from comparison.reading import Run
from run_state.folder import status
from run_state.may_differ import flatten, may_differ

# Facts of the starts of a training and of its tests, as run.json and metrics_{split}.json name them.
_OF_A_TEST = ("git_commit", "git_dirty", "versions.torch", "precision", "device")
_OF_A_TRAINING = (*_OF_A_TEST, "devices", "max_epochs", "max_steps", "allowed_changes")

Confounder = tuple[str, str]  # what differs, and a sentence about it


def find_confounders(runs: Sequence[Run]) -> list[Confounder]:
    """List what, besides the upscaler, could explain a difference between the runs."""
    return [*_checkpoints(runs), *_settings(runs), *_facts(runs)]


def _checkpoints(runs: Sequence[Run]) -> Iterator[Confounder]:
    names = sorted({found.checkpoint for run in runs for found in run.tested.values()})
    if len(names) > 1:
        yield "checkpoint", f"different checkpoints were tested: {', '.join(names)}."
    for run in runs:
        steps = {split: found.global_step for split, found in run.tested.items()}
        if len(set(steps.values())) > 1:
            shown = ", ".join(f"{split} at step {step}" for split, step in steps.items())
            yield "checkpoint", f"the splits of {run.folder} were not tested with one checkpoint: {shown}; test again."
        changed = ", ".join(split for split, found in run.tested.items() if found.is_stale)
        if changed:
            yield "checkpoint", f"the checkpoint of {run.folder} has changed since its test on {changed}; test again."
        if (end := status(run.folder)) != "finished":
            yield "status", f"{run.folder} is not finished: its status is {end}."


def _settings(runs: Sequence[Run]) -> Iterator[Confounder]:
    """Name the settings that differ although they should not (`run_state.may_differ`)."""
    flat = [flatten(run.config) for run in runs]
    for name in sorted(set().union(*flat)):
        if not may_differ(name, "compare"):
            values = [[repr(config.get(name))] for config in flat]
            yield from _differing(name, f"the arms should differ only in the upscaler, but {name}", values, runs)


def _facts(runs: Sequence[Run]) -> Iterator[Confounder]:
    """Name what differs between the starts of all trainings, or between all tests."""
    trained = [[flatten(start) for start in since_the_beginning(run)] for run in runs]
    tested = [[flatten(found.results) for found in run.tested.values()] for run in runs]
    for stage, names, facts in (("training", _OF_A_TRAINING, trained), ("test", _OF_A_TEST, tested)):
        for name in names:
            values = [list(dict.fromkeys(str(one.get(name)) for one in each)) for each in facts]
            yield from _differing(f"{name} of the {stage}", f"{name} of the {stage}", values, runs)


def _differing(what: str, words: str, values: list[list[str]], runs: Sequence[Run]) -> Iterator[Confounder]:
    if len({value for each in values for value in each}) > 1:
        shown = (f"{' and '.join(each)} in {run.folder}" for each, run in zip(values, runs, strict=True))
        yield what, f"{words} is {', '.join(shown)}."


def since_the_beginning(run: Run) -> list[dict[str, Any]]:
    """Return the starts that led to the weights; a start without a checkpoint began from scratch."""
    starts: list[dict[str, Any]] = run.info["starts"]
    first = max((number for number, start in enumerate(starts) if not start.get("checkpoint")), default=0)
    return starts[first:]
