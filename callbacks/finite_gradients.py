"""Stop a training whose numbers are no longer finite, before they are saved."""

import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer


class FiniteGradients(L.Callback):
    """Check the gradients of every optimiser step for NaN and infinity; a loss that is not finite shows in them.

    Their norm is logged as `grad_norm`, that of a second optimiser as `grad_norm-1`.

    On a CPU the run stops before the step. A GPU would have to wait for that in every step, so its norms are read
    when they are logged, every `trainer.log_every_n_steps` steps, and before anything is validated or saved: the run
    stops a few batches late, but weights that are not finite are never saved or validated.

    In half precision (`16-mixed`) infinite gradients are how the loss scale finds its value: the scaler skips such
    steps itself, until the scale is down to 1.

    Args:
        skip: skip such a step, warn and count it, instead of stopping the run; a GPU then does wait in every step.
            Running statistics that are no longer finite stop the run all the same.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.skipped = 0
        self._loss = torch.tensor(torch.nan)
        self._unread: list[tuple[str, Tensor]] = []  # where it was, and (norm, loss), still on the device

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach() * trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        number = trainer.optimizers.index(optimizer)
        pl_module.log(f"grad_norm-{number}" if number else "grad_norm", norm)
        place = f"batch {trainer.fit_loop.total_batch_idx} (epoch {trainer.current_epoch})"
        self._unread.append((place, torch.stack([norm, self._loss.to(norm)])))
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if not (self.skip or scaler or _reading_is_free(norm)):  # the scaler has waited already
            return
        problem = self._read()
        if problem is None or (scaler and scaler.get_scale() > 1):
            return
        broken = _broken_statistics(pl_module)
        if broken or not self.skip:
            _stop(trainer, problem + broken)
        self.skipped += 1
        warnings.warn(f"{problem}; skipped this step ({self.skipped} skipped so far)", stacklevel=1)
        for parameter in parameters:
            parameter.grad = None  # optimisers skip parameters without one

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if (every := trainer.log_every_n_steps) and trainer.global_step % every == 0:  # type: ignore[attr-defined]
            self._stop_if_not_finite(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_if_not_finite(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._stop_if_not_finite(trainer)

    def _stop_if_not_finite(self, trainer: L.Trainer) -> None:
        if problem := self._read():
            _stop(trainer, problem)

    def _read(self) -> str | None:
        """Read what has not been read yet, in one copy from the device; describe the first norm that is not finite."""
        places, values = [place for place, _ in self._unread], [value for _, value in self._unread]
        self._unread = []
        for place, (norm, loss) in zip(places, torch.stack(values).cpu().tolist() if values else [], strict=True):
            if not math.isfinite(norm):
                return f"the gradient's norm is {norm} in {place}: loss {loss:.4g}"
        return None


def _reading_is_free(value: Tensor) -> bool:
    return value.device.type == "cpu"


def _broken_statistics(module: L.LightningModule) -> str:
    """Name, for a message, running statistics that are not finite."""
    broken = [name for name, buffer in module.named_buffers() if not buffer.isfinite().all()]
    return f"; running statistics are not finite either: {', '.join(broken[:3])}" if broken else ""


def _stop(trainer: L.Trainer, problem: str) -> None:
    latest = Path(trainer.default_root_dir) / "checkpoints" / "latest.ckpt"
    last = f"the last good checkpoint is {latest}" if latest.is_file() else "there is no checkpoint yet"
    raise FloatingPointError(f"{problem}; {last}. A smaller learning rate may help")
