"""Which values of settings make sense, where their types allow more: refused before anything is made."""

import math
import re
import sys
from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace

from run_state.folder import is_follower

_COUNT = (lambda value: value >= 1, "at least 1")
_END = (lambda value: value == -1 or value >= 1, "at least 1, or -1 for no end")
_SOME = (lambda value: value > 0, "more than 0")
_AMOUNT = (lambda value: 0 <= value < math.inf, "0 or more")
_NAME = (lambda value: re.fullmatch(r"\w[\w.-]*", value), "a plain name of letters, digits, '_', '.' and '-'")

# Settings as they are named in config.yaml. Numbers that a setting does not have to be are not looked at.
RANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "data.init_args.early_epochs": _AMOUNT,
    "data.init_args.min_face_size": _AMOUNT,
    "data.init_args.num_workers": (lambda value: 0 <= value <= 512, "0 to 512"),
    "data.init_args.val_min_face_size": _AMOUNT,
    "experiment": _NAME,
    "latest.minutes": _AMOUNT,
    "runs": (bool, "a folder"),
    "trainer.accumulate_grad_batches": _COUNT,
    "trainer.check_val_every_n_epoch": _COUNT,
    "trainer.gradient_clip_val": _AMOUNT,
    "trainer.limit_train_batches": _SOME,
    "trainer.limit_val_batches": _SOME,
    "trainer.log_every_n_steps": _COUNT,
    "trainer.max_epochs": _END,
    "trainer.max_steps": _END,
    "trainer.num_sanity_val_steps": (lambda value: value >= -1, "0 or more, or -1 for all"),
    "trainer.val_check_interval": _SOME,
}


def check_ranges(config: Namespace) -> None:
    """Refuse a setting out of its range."""
    for name, (makes_sense, expected) in RANGES.items():
        value = config.get(name)
        compared = str if name in ("experiment", "runs") else int | float
        if isinstance(value, compared) and not makes_sense(value):
            raise ValueError(f"{name} is {value!r}, expected {expected}")
    least, end = config.trainer.min_epochs, config.trainer.max_epochs
    if 0 < (end or 0) < (least or 0):
        raise ValueError(f"trainer.min_epochs is {least}, expected at most max_epochs, {end}")


def check_batches(trainer: Namespace, batches: int) -> None:
    """Refuse settings of the trainer that do not go with the number of batches in an epoch.

    Warn of a training that ends before its first validation: no checkpoint is the best one then.
    """
    limit, interval = trainer.limit_train_batches, trainer.val_check_interval
    used = batches if limit is None else min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if not used:
        raise ValueError(f"trainer.limit_train_batches is {limit}, which leaves none of {batches} batches")
    if trainer.check_val_every_n_epoch and isinstance(interval, int) and interval > used:
        raise ValueError(f"trainer.val_check_interval is {interval}, expected at most the {used} batches of an epoch")
    every, end = trainer.check_val_every_n_epoch, trainer.max_epochs
    if 0 < (end or 0) < (every or 0) and not is_follower():
        print(
            f"warning: trainer.check_val_every_n_epoch is {every} and max_epochs {end}: nothing will be validated, "
            "and there will be no best.ckpt",
            file=sys.stderr,
            flush=True,
        )
