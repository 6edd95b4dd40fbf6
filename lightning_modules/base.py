"""What every training shares: its optimiser, its learning rate, and what commands and callbacks may ask of it.

The learning rate is a function of the training's progress, not a scheduler object that remembers its length, so that a
run can be resumed with another number of epochs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Optimization:
    """An optimiser, and its learning rate from batch to batch.

    Args:
        name: `adam`, `adamw`, or `sgd` with Nesterov momentum 0.9.
        lr: highest learning rate.
        weight_decay: of convolutions and linear layers; biases, normalisation and slopes have none.
        schedule: after the warm-up, `constant`; `cosine`, falling to 0; `multistep`, halved at each milestone;
            or `onecycle`, whose warm-up is half a cosine, too (Smith and Topin, 2018).
        warmup: fraction of the training in which the rate rises.
        milestones: batches after which `multistep` acts.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-4
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "onecycle", "multistep"] = "constant"
    warmup: float = 0.0
    milestones: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"optimizer.lr is {self.lr}, expected a positive number")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optimizer.weight_decay is {self.weight_decay}, expected 0 or more")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"optimizer.warmup is {self.warmup}, expected 0 up to, but not including, 1")

    @property
    def needs_end(self) -> bool:
        """Whether the rate depends on the length of the training."""
        return self.schedule in ("cosine", "onecycle") or self.warmup > 0

    def build(self, parameters: Iterable[nn.Parameter], trainer: L.Trainer) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Return the optimiser, and a scheduler to be stepped after every batch."""
        groups: list[Any] = [parameter for parameter in parameters if parameter.requires_grad]
        if self.weight_decay:
            decayed, others = ([p for p in groups if (p.ndim > 1) is large] for large in (True, False))
            groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others}]
        kinds: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        momentum = {"momentum": 0.9, "nesterov": True} if self.name == "sgd" else {}
        optimizer = kinds[self.name](groups, lr=self.lr, weight_decay=0.0, **momentum)
        length = max(1, trainer.estimated_stepping_batches) if self.needs_end else math.inf
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, length))

    def factor(self, step: int, length: float) -> float:
        """Return the share of `lr` after `step` of `length` optimiser steps."""
        if self.schedule == "onecycle":
            top, last = self.warmup * length - 1, length - 1
            if step < top:
                return _half_cosine(1 / 25, 1, step / top)
            return _half_cosine(1, 4e-6, min(1.0, (step - top) / (last - top)))
        done = step / length
        if done < self.warmup:
            return (done + 1e-3) / (self.warmup + 1e-3)
        if self.schedule == "cosine":
            return _half_cosine(1, 0, min(1.0, (done - self.warmup) / (1 - self.warmup)))
        if self.schedule == "multistep":
            return 0.5 ** sum(step >= milestone for milestone in self.milestones)
        return 1.0


def check_end(trainer: L.Trainer) -> None:
    """Refuse a trainer without an end."""
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ValueError(
            "trainer.max_epochs and trainer.max_steps are -1 (no end), expected a limit, which the schedule needs"
        )


def _half_cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))


class Task(L.LightningModule):
    """A network in training.

    Attributes:
        monitored: metrics that may choose the best checkpoint, and whether their best value is the `max` or the `min`.
        not_averaged: prefixes of the weights that `callbacks.weight_average.WeightAverage` keeps as trained.
        optimizer: optimiser and schedule.
    """

    monitored: ClassVar[dict[str, str]] = {}
    not_averaged: tuple[str, ...] = ()
    optimizer: Optimization

    def check(self, data: L.LightningDataModule, trainer: L.Trainer) -> None:
        """Refuse with a ValueError, before anything starts, data or settings of the trainer that cannot work."""
        if self.optimizer.needs_end:
            check_end(trainer)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Train all parameters; the rate changes after every batch."""
        optimizer, scheduler = self.optimizer.build(self.parameters(), self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
