"""One table says what may differ on resume, in a test, and between arms."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from run_state.may_differ import MAY_DIFFER, Purpose, changed_settings, flatten, may_differ, refuse_changes

RUN: dict[str, Any] = {
    "seed_everything": 0,
    "experiment": "x",
    "data": {
        "init_args": {"batch_size": 8, "label_mode": "majority", "num_workers": 2, "augmentation": {"shift": 0.1}}
    },
    "model": {"init_args": {"optimizer": {"lr": 0.1}}},
    "trainer": {"max_epochs": 2, "max_steps": -1, "precision": "32-true", "devices": 1, "callbacks": []},
    "best": {"monitor": "val/acc"},
}


@pytest.mark.parametrize(
    ("name", "resume", "test", "compare"),
    [
        ("seed_everything", False, False, True),
        ("data.init_args.batch_size", False, True, False),
        ("data.init_args.label_mode", False, False, False),
        ("data.init_args.augmentation.shift", False, False, False),
        ("data.init_args.num_workers", True, True, True),
        ("data.init_args.upscaler.init_args.color", False, True, True),
        ("model.init_args.optimizer.lr", False, False, False),
        ("trainer.max_epochs", True, True, False),
        ("trainer.max_steps", False, True, False),
        ("trainer.precision", False, True, False),
        ("trainer.gradient_clip_val", False, True, False),
        ("trainer.accumulate_grad_batches", False, True, False),
        ("trainer.callbacks", False, True, False),
        ("trainer.devices", True, True, True),
        ("best.monitor", False, True, False),
        ("latest.minutes", True, True, True),
    ],
)
def test_what_may_differ(name: str, resume: bool, test: bool, compare: bool) -> None:
    purposes: tuple[Purpose, ...] = ("resume", "test", "compare")
    assert [may_differ(name, purpose) for purpose in purposes] == [resume, test, compare]


def test_names_are_whole_words_and_purposes_are_known() -> None:
    assert not may_differ("data.init_args.rooted", "resume")
    assert {purpose for purposes in MAY_DIFFER.values() for purpose in purposes.split()} == {
        "resume",
        "test",
        "compare",
    }


def test_changes_are_named_with_both_values() -> None:
    now = yaml.safe_load(yaml.safe_dump(RUN))
    assert changed_settings(RUN, now, "resume") == []
    now["data"]["init_args"] |= {"num_workers": 0, "batch_size": 4, "new": 1}
    del now["best"]
    assert changed_settings(RUN, now, "resume") == [
        "best.monitor is not set, was 'val/acc'",
        "data.init_args.batch_size is 4, was 8",
        "data.init_args.new is 1, was not set",
    ]
    assert changed_settings(RUN, now, "test") == ["data.init_args.new is 1, was not set"]
    assert changed_settings(RUN, now, "resume", ["best", "data.init_args.new", "data.init_args.batch_size"]) == []


def test_refusals(tmp_path: Path) -> None:
    now = yaml.safe_load(yaml.safe_dump(RUN))
    now["trainer"]["max_steps"] = 9
    with pytest.raises(ValueError, match=r"cannot resume .*trainer\.max_steps is 9, was -1; to change one on purpose"):
        refuse_changes(tmp_path, RUN, now, "resume", ["trainer", "seed_everything"])
    with pytest.raises(ValueError, match=r"--allow_change model\.lr: there is no such setting"):
        refuse_changes(tmp_path, RUN, RUN, "resume", ["model.lr"])
    refuse_changes(tmp_path, RUN, RUN, "resume", ["model.init_args.optimizer.lr"])


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
