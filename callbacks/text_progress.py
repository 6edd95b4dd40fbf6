"""Progress as plain lines, for output that goes to a file."""

import re
import time
from typing import Any

import lightning as L

EVERY = 100  # batches


class TextProgress(L.Callback):
    """Print a line every `EVERY` batches, and the metrics after each epoch, on rank 0."""

    def __init__(self) -> None:
        self._since: tuple[float, int] | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._since is None:  # the first batch of an epoch, or of what is left of it in a resumed run
            self._since = (time.monotonic(), batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = batch_idx + 1
        if trainer.is_global_zero and self._since and done % EVERY == 0:
            start, before = self._since
            self._since = (time.monotonic(), done)
            rate = (done - before) / (self._since[0] - start)
            place = f"epoch {trainer.current_epoch}, batch {done}/{trainer.num_training_batches}"
            print(f"{place}, {rate:.2f} batches/s", flush=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = None
        metrics = trainer.callback_metrics  # a collective operation: on every rank
        if trainer.is_global_zero:
            # What is logged per batch and per epoch appears as NAME, NAME_step and NAME_epoch.
            hidden = re.compile(r"recall|_step$|_epoch$")
            figures = "  ".join(f"{name} {metrics[name]:.4g}" for name in sorted(metrics) if not hidden.search(name))
            print(f"epoch {trainer.current_epoch}: {figures}", flush=True)
