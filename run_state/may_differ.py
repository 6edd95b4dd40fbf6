"""Which settings may differ when a run is resumed or tested, and between the arms of a comparison: one table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from run_state.names import did_you_mean

Purpose = Literal["resume", "test", "compare"]

# Setting, as it is named in config.yaml, with all that is below it: for what it may differ. What is not named must not
# differ. Where the data lie and what upscales them is free where their fingerprints are compared instead.
MAY_DIFFER: dict[str, str] = {
    "best": "test",
    "config": "resume test compare",
    "data.init_args.batch_size": "test",
    "data.init_args.cache_dir": "resume test compare",
    "data.init_args.num_workers": "resume test compare",
    "data.init_args.root": "resume test compare",
    "data.init_args.seed": "compare",
    "data.init_args.test_split": "resume test compare",
    "data.init_args.upscaler": "test compare",
    "experiment": "test compare",
    "finite": "resume test compare",
    "latest": "resume test compare",
    "runs": "resume test compare",
    "seed_everything": "compare",
    "tags": "resume test compare",
    "trainer": "test",
    "trainer.accelerator": "resume compare",
    "trainer.benchmark": "resume compare",
    "trainer.devices": "resume compare",
    "trainer.enable_model_summary": "resume compare",
    "trainer.enable_progress_bar": "resume compare",
    "trainer.log_every_n_steps": "compare",
    "trainer.logger": "resume compare",
    "trainer.max_epochs": "resume",
    "trainer.max_time": "resume",
    "trainer.num_nodes": "resume compare",
    "trainer.profiler": "resume compare",
    "trainer.strategy": "resume compare",
}
NEVER_ON_RESUME = "trainer.max_steps"  # Lightning would leave out the rest of the epoch that was the last
# Weights to start from. A resumed or tested run keeps these settings but does not follow them: its checkpoint has all
# weights, and the files may be gone. (Frozen features from a file are read again.)
INITIAL_WEIGHTS = ("initial_weights", "hourglass_weights")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a configuration by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        below = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{name}.") if below else {f"{prefix}{name}": value}
    return flat


def may_differ(name: str, purpose: Purpose, allowed: Sequence[str] = ()) -> bool:
    """Whether a setting (dotted, as in config.yaml) may differ; `allowed` names further ones that may."""
    if purpose == "resume" and name == NEVER_ON_RESUME:
        return False
    free = (*(setting for setting, purposes in MAY_DIFFER.items() if purpose in purposes.split()), *allowed)
    return any(f"{name}.".startswith(f"{setting}.") for setting in free)


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], purpose: Purpose, allowed: Sequence[str] = ()
) -> list[str]:
    """Say how a configuration differs from that of a run, as "seed_everything is 1, was 0"."""
    first, second = flatten(before), flatten(now)
    shown = [{name: repr(value) for name, value in settings.items()} for settings in (first, second)]
    return [
        f"{name} is {shown[1].get(name, 'not set')}, was {shown[0].get(name, 'not set')}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name) and not may_differ(name, purpose, allowed)
    ]


def refuse_changes(
    run: Path, before: Mapping[str, Any], now: Mapping[str, Any], purpose: Purpose, allowed: Sequence[str] = ()
) -> None:
    """Refuse to resume or test a run with other settings than its checkpoint was trained with (`before`)."""
    settings = flatten(now)
    for name in allowed:
        if not any(f"{setting}.".startswith(f"{name}.") for setting in settings):
            meant = did_you_mean(name, settings) or "; expected a name as in config.yaml"
            raise ValueError(f"--allow_change {name}: there is no such setting{meant}")
    changes = changed_settings(before, now, purpose, allowed)
    if changes:
        shown = "; ".join(changes[:2]) + (f"; and {len(changes) - 2} more" if len(changes) > 2 else "")
        hint = "the checkpoint was trained with the latter"
        if purpose == "resume":
            hint = f"to change one on purpose, pass --allow_change NAME (never {NEVER_ON_RESUME})"
        raise ValueError(f"cannot {purpose} with different settings: {shown}; {hint}: {run}")
