"""How fast a training is, whether it waits for its data, and how much memory it takes."""

import resource
import time
from typing import Any

import lightning as L
import torch


class Throughput(L.Callback):
    """Log once an epoch: `perf/images_per_s`, `perf/data_wait` and `perf/peak_memory_gb`.

    Images are those of all devices. The wait is the share of the time, [0, 1], in which a process has no batch: 0.05
    and less is good; more workers reduce it. Memory is the peak since the start, of what PyTorch has allocated on a GPU
    or, without one, of the process without its workers. Wait and memory are those of the process that is worst off.
    Speed and wait leave validation out.
    """

    def on_train_start(self, *_: Any) -> None:
        self._batches, self._busy, self._waited = 0, 0.0, 0.0
        self._free_since = time.monotonic()

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = time.monotonic()
        self._waited += self._began - self._free_since

    def on_train_batch_end(self, *_: Any) -> None:
        self._free_since = time.monotonic()
        self._busy += self._free_since - self._began
        self._batches += 1

    def on_validation_end(self, *_: Any) -> None:
        self._free_since = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._batches:
            images = self._batches * trainer.datamodule.batch_size  # type: ignore[attr-defined]
            seconds = self._busy + self._waited
            worst = {"perf/data_wait": self._waited / seconds, "perf/peak_memory_gb": _peak_memory(pl_module.device)}
            pl_module.log("perf/images_per_s", images / seconds)
            pl_module.log_dict(worst, reduce_fx="max", sync_dist=True)
        self.on_train_start()


def _peak_memory(device: torch.device) -> float:  # GB
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
