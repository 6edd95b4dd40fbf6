"""Keep in the checkpoint what each process has of its own: random numbers, and metrics of the epoch under way."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from torchmetrics import Metric

from run_state.lightning_internals import realign_logged_steps
from run_state.ranks import gather

MetricStates = dict[str, dict[str, Any]]


class ProcessState(L.Callback):
    """Save every rank's state, and put it back when training starts, after everything that draws before.

    Comes after all callbacks that draw random numbers in `on_train_start`, and before those that log at the start of a
    batch.
    """

    def __init__(self) -> None:
        self._trainer: L.Trainer | None = None
        self._loaded: list[dict[str, Any]] = []
        self._first_batch = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._trainer = trainer if stage == "fit" else None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all ranks; called on every rank when a checkpoint is saved."""
        if self._trainer is None:
            return {}
        own = {
            "python": random.getstate(),
            "numpy": [getattr(part, "tolist", lambda part=part: part)() for part in np.random.get_state()],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "metrics": {
                name: {state: value.detach().cpu().clone() for state, value in metric.metric_state.items()}  # type: ignore[union-attr]
                for name, metric in _training_metrics(self._trainer.lightning_module)
            },
        }
        return {"ranks": gather(self._trainer, own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called when a run is resumed."""
        self._loaded = state_dict.get("ranks", [])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        world, saved = trainer.world_size, len(self._loaded)
        if saved == world:
            own = self._loaded[trainer.global_rank]
            random.setstate(own["python"])
            np.random.set_state(tuple(own["numpy"]))
            torch.set_rng_state(own["torch"])
            if own["cuda"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(own["cuda"])
            _restore_metrics(pl_module, own["metrics"])
        elif saved and trainer.is_global_zero:
            _restore_metrics(pl_module, _sum_over_ranks([rank["metrics"] for rank in self._loaded]))
            print(
                f"resuming with {world} process{'es' * (world > 1)} a run saved with {saved}: batches are identical, "
                "but results are not bit-exact (rounding, unsynchronised batch norm, mixup and dropout)",
                flush=True,
            )
        self._loaded = []
        self._first_batch = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._first_batch:
            realign_logged_steps(trainer)
            self._first_batch = False


def _training_metrics(module: L.LightningModule) -> list[tuple[str, Metric]]:
    """Metrics that run over an epoch of training; those of validation are done with when a checkpoint is written."""
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, Metric)]
    return [(name, metric) for name, metric in found if name.startswith("train_")]


def _restore_metrics(module: L.LightningModule, states: MetricStates) -> None:
    for name, metric in _training_metrics(module):
        metric.reset()
        for state, value in states.get(name, {}).items():
            setattr(metric, state, value.to(module.device))


def _sum_over_ranks(ranks: list[MetricStates]) -> MetricStates:
    """What one process would have counted; all training metrics here keep sums."""
    return {
        name: {state: sum(rank[name][state] for rank in ranks) for state in states} for name, states in ranks[0].items()
    }
