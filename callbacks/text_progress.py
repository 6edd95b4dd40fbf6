"""Progress as plain lines, for output that goes to a file."""

import time
from typing import Any

import lightning as L


class LogLines(L.Callback):
    """Prints a line every ``every`` batches and one with the metrics after each epoch, on rank 0.

    Args:
        every: Batches between two lines.
    """

    def __init__(self, every: int = 100) -> None:
        self.every = every
        self._since: tuple[float, int] | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._since is None:  # the first batch of an epoch, or of what is left of it in a continued run
            self._since = (time.monotonic(), batch_idx)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and self._since and (batch_idx + 1) % self.every == 0:
            start, done = self._since
            rate = (batch_idx + 1 - done) / (time.monotonic() - start)
            self._since = (time.monotonic(), batch_idx + 1)
            print(
                f"epoch {trainer.current_epoch}, batch {batch_idx + 1}/{trainer.num_training_batches}, "
                f"{rate:.2f} batches/s",
                flush=True,
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = None
        metrics = trainer.callback_metrics  # a collective operation: on every rank
        if trainer.is_global_zero:
            # What is logged per batch and per epoch appears as NAME, NAME_step and NAME_epoch.
            shown = {
                name: float(value)
                for name, value in sorted(metrics.items())
                if not name.endswith(("_step", "_epoch")) and "recall" not in name
            }
            print(f"epoch {trainer.current_epoch}: " + "  ".join(f"{k} {v:.4g}" for k, v in shown.items()), flush=True)
