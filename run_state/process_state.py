"""What each process has of its own and a checkpoint must keep: random numbers and running metrics."""

from typing import Any

import lightning as L
import torch
from torchmetrics import Metric

from run_state.data_position import epoch_is_over


class RankState(L.Callback):
    """Keeps in the checkpoint what each process has of its own: random numbers, and metrics of the epoch under way."""

    def __init__(self) -> None:
        self._trainer: L.Trainer | None = None
        self._loaded: list[dict[str, Any]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._trainer = trainer if stage == "fit" else None

    def state_dict(self) -> dict[str, Any]:
        """Called on every rank when a checkpoint is saved."""
        if self._trainer is None:
            return {}
        own = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "metrics": {
                name: {state: _on_cpu(getattr(metric, state)) for state in metric._defaults}
                | {"_update_count": metric._update_count}
                for name, metric in _training_metrics(self._trainer.lightning_module)
                if not epoch_is_over(self._trainer)
            },
        }
        ranks = [own]
        if self._trainer.world_size > 1:
            ranks = [own] * self._trainer.world_size
            torch.distributed.all_gather_object(ranks, own)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called when a run is resumed; the state is put in place when training starts, after all that draws before."""
        self._loaded = state_dict.get("ranks", [])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        world, saved = trainer.world_size, len(self._loaded)
        if saved == world:
            own = self._loaded[trainer.global_rank]
            torch.set_rng_state(own["torch"])
            if own["cuda"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(own["cuda"])
            _put_metrics(pl_module, own["metrics"])
        elif saved and trainer.is_global_zero:
            _put_metrics(pl_module, _added([rank["metrics"] for rank in self._loaded]))
            print(
                f"saved by {saved} process{'es' * (saved > 1)}, continued by {world}: the same images in every batch; "
                "sums are rounded in another order, batch normalisation that is not synchronised sees other shares, "
                "and mixup and dropout draw other numbers",
                flush=True,
            )
        self._loaded = []


def _put_metrics(module: L.LightningModule, states: dict[str, dict[str, Any]]) -> None:
    """Continues the training metrics of ``module`` from saved states, by name."""
    for name, metric in _training_metrics(module):
        for state, value in states.get(name, {}).items():
            setattr(metric, state, value.to(module.device) if isinstance(value, torch.Tensor) else value)
        metric._computed = None


def _added(ranks: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What one process would have counted; all training metrics here keep sums."""
    return {
        name: {state: sum(rank[name][state] for rank in ranks) for state in states} for name, states in ranks[0].items()
    }


def _training_metrics(module: L.LightningModule) -> list[tuple[str, Metric]]:
    """Metrics whose states run over an epoch of training; those of validation are done with when a file is written."""
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, Metric)]
    return [(name, metric) for name, metric in found if name.startswith("train_")]


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
