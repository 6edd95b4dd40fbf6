"""Learning-rate schedules as functions of the training's progress.

Functions, not scheduler objects that remember their length, so that a run can be resumed with another number of epochs.
"""

import math
from typing import Literal

import lightning as L


def training_length(trainer: L.Trainer) -> int:
    """Optimiser steps of the whole training.

    Raises:
        ValueError: The trainer has no end, so a schedule that falls to its end has no shape.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < math.inf:
        raise ValueError("the schedule needs the length of the training: set trainer.max_epochs or trainer.max_steps")
    return int(steps)


def warmup_then(
    schedule: Literal["cosine", "step"], warmup: float, milestones: tuple[float, ...], done: float
) -> float:
    """Factor of the learning rate after the fraction ``done`` of the training.

    Rises linearly during ``warmup``; then ``cosine`` falls to 0, ``step`` is divided by 10 at each milestone.
    """
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    if schedule == "step":
        return 0.1 ** sum(done >= milestone for milestone in milestones)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))


def one_cycle(step: int, length: int, warmup: float, start: float = 1 / 25, end: float = 4e-6) -> float:
    """Factor of the learning rate in a one-cycle schedule (Smith and Topin, 2018), both flanks half a cosine.

    Args:
        step: Optimiser steps done.
        length: Optimiser steps of the training.
        warmup: Fraction of the training in which the factor rises to 1.
        start: Factor of the first step.
        end: Factor of the last step.
    """
    top, last = warmup * length - 1, length - 1
    if step < top:
        return _half_cosine(start, 1, step / top)
    return _half_cosine(1, end, min(1.0, (step - top) / (last - top)))


def _half_cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))
