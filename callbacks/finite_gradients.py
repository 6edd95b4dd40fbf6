"""Stop a training whose numbers are no longer finite, before they reach the weights."""

import warnings
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer


class FiniteGradients(L.Callback):
    """Check the gradients for NaN and infinity before every optimiser step; a loss that is not finite shows in them.

    Their norm is logged as `grad_norm`, that of a second optimiser as `grad_norm-1`.

    In half precision (`16-mixed`) infinite gradients are how the loss scale finds its value: the scaler skips such
    steps itself, until the scale is down to 1.

    Args:
        skip: skip such a step, warn and count it, instead of stopping the run. Running statistics that are no longer
            finite stop it all the same.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.skipped = 0
        self._loss = torch.tensor(torch.nan)

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()  # still a tensor: reading it would make a GPU wait

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        number = trainer.optimizers.index(optimizer)
        pl_module.log(f"grad_norm-{number}" if number else "grad_norm", norm)
        if norm.isfinite():
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() > 1:
            return
        losses = {"loss": self._loss * trainer.accumulate_grad_batches}
        losses |= {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        message = (
            f"the gradient's norm is {norm.item()} in batch {trainer.fit_loop.total_batch_idx} (epoch "
            f"{trainer.current_epoch}): {', '.join(f'{name} {value:.4g}' for name, value in losses.items())}"
        )
        broken = [name for name, buffer in pl_module.named_buffers() if not buffer.isfinite().all()]
        if broken:
            message += f"; running statistics are not finite either: {', '.join(broken[:3])}"
        if broken or not self.skip:
            latest = Path(trainer.default_root_dir) / "checkpoints" / "latest.ckpt"
            last = f"the last good checkpoint is {latest}" if latest.is_file() else "there is no checkpoint yet"
            raise FloatingPointError(f"{message}; {last}. A smaller learning rate may help")
        self.skipped += 1
        warnings.warn(f"{message}; skipped this step ({self.skipped} skipped so far)", stacklevel=1)
        for parameter in parameters:
            parameter.grad = None  # optimisers skip parameters without one
