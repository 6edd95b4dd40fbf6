"""What the processes of a training tell each other."""

from typing import Any

import lightning as L
import torch


def gather(trainer: L.Trainer, own: Any) -> list[Any]:
    """Return an object of every rank, in their order; on every rank, a collective operation."""
    everybodys = [own] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(everybodys, own)
    return everybodys
