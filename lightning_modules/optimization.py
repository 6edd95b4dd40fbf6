"""Learning-rate schedules as functions of the training's progress.

Functions, not scheduler objects that remember their length, so that a run can be resumed with another number of epochs.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import lightning as L
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

NO_END = "the schedule needs the length of the training: set trainer.max_epochs or trainer.max_steps (-1 means no end)"


@dataclass(frozen=True)
class Adam:
    """Adam, and its learning rate from batch to batch.

    Args:
        learning_rate: the start of `multistep`, the peak of `onecycle`.
        schedule: `multistep` (as published for DIC: halved at each milestone) or `onecycle` (warm-up, then cosine to
            nearly zero; for short trainings).
        milestones: batches after which `multistep` halves the rate.
        warmup_fraction: part of the training in which `onecycle` rises to its peak.
        betas: decay rates of the moments.

    Raises:
        ValueError: an argument is out of its range.
    """

    learning_rate: float = 1e-4
    schedule: Literal["multistep", "onecycle"] = "multistep"
    milestones: tuple[int, ...] = (10_000, 20_000, 40_000, 80_000)
    warmup_fraction: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 < self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must lie between 0 and 1, got {self.warmup_fraction}")

    def check(self, trainer: L.Trainer) -> None:
        """Refuse a trainer whose end the schedule has to know, and that has none; called before anything starts."""
        if self.schedule == "onecycle":
            check_end(trainer)

    def build(
        self, parameters: Iterable[nn.Parameter], length: Callable[[], int]
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """The optimiser, and a scheduler to be stepped after every batch; `length` is asked for `onecycle` only."""
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate, betas=self.betas)
        if self.schedule == "multistep":
            return optimizer, MultiStepLR(optimizer, milestones=list(self.milestones), gamma=0.5)
        batches = length()
        return optimizer, LambdaLR(optimizer, lambda step: one_cycle(step, batches, self.warmup_fraction))


def check_end(trainer: L.Trainer) -> None:
    """Refuse a trainer without an end; called before anything starts.

    Raises:
        ValueError: as `training_length`.
    """
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ValueError(NO_END)


def training_length(trainer: L.Trainer) -> int:
    """Optimiser steps of the whole training.

    Raises:
        ValueError: The trainer has no end, so a schedule that falls to its end has no shape.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < math.inf:
        raise ValueError(NO_END)
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
