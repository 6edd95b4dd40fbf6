"""The private attributes of other packages that this project depends on: each in a function with a test of its own."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.optim.swa_utils import AveragedModel


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Keep Lightning from replacing the handlers of SIGTERM and SIGUSR1.

    Nor need the ranks ask each other in every batch whether rank 0 had such a signal: their hosts wait for their GPUs.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def realign_logged_steps(trainer: L.Trainer) -> None:
    """Give the loggers the step of the first batch after a resume.

    Lightning counts a batch too many when a validation comes right before the checkpoint.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def expect_unused_parameters(strategy: Strategy) -> None:
    """Have DDP expect parameters without gradients, which a strategy that is built has no public setting for.

    False is overridden, since a strategy that is given by its class has it by default. `static_graph`, the other way,
    is left alone.
    """
    if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("static_graph"):
        strategy._ddp_kwargs["find_unused_parameters"] = True


def average_model(averaging: WeightAveraging) -> AveragedModel:
    """Return the averaged copy of the module, once training has been set up."""
    model = averaging._average_model
    assert model is not None
    return model


def blend(averages: list[Tensor], weights: list[Tensor], share: float) -> None:
    """Set each average to `share` of itself and the rest of its weight, all tensors in one launch."""
    copy(averages, torch._foreach_lerp(weights, averages, share))


def copy(targets: list[Tensor], sources: list[Tensor] | tuple[Tensor, ...]) -> None:
    """Copy each source into its target, in as few launches as their types allow."""
    if targets:
        torch._foreach_copy_(targets, sources)


def group_of_hosts(strategy: Strategy) -> Any:
    """Return a group of all ranks for tensors in main memory; called on every rank, a collective operation.

    NCCL takes tensors on GPUs only, and a host that reads one waits for all that its GPU was given. Lightning makes
    such a group, too, for barriers, without a timeout; this one has the strategy's.
    """
    if strategy.root_device.type == "cpu":
        return torch.distributed.group.WORLD
    return torch.distributed.new_group(backend="gloo", timeout=getattr(strategy, "_timeout", None))


def kill_wandb_service() -> None:
    """End W&B's own process at once; asked to, it would go on looking for its server for a minute."""
    import wandb

    connection = wandb.setup()._connection
    if connection and connection._proc:
        connection._proc._process.kill()
