"""Time alternatives in turn, so that whatever else the machine does meets all of them alike."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch

PLAIN = "plain"


def in_turn(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Run all once per round, each round in the reverse order of the one before; a first round does not count.

    Args:
        runs: what to time; the one named `plain` is what the others are divided by.
        rounds: how many count.

    Returns:
        For each, the median of its `seconds`, and the median, the lowest and the highest of its `ratio` to the plain
        one's time in the same round: below 1 is faster.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in names:
            start = time.perf_counter()
            runs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
        names.reverse()
    return {name: _summary(np.array(times), np.array(seconds[PLAIN])) for name, times in seconds.items()}


def _summary(times: np.ndarray, plain: np.ndarray) -> dict[str, float]:
    ratios = times / plain
    values = {"seconds": np.median(times), "ratio": np.median(ratios), "lowest": ratios.min(), "highest": ratios.max()}
    return {name: round(float(value), 4) for name, value in values.items()}


def settings() -> dict[str, object]:
    """Return what timings depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "processor": ", ".join(sorted(models)) or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "amx_bf16": any("amx_bf16" in line for line in lines),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "malloc": {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "LD_PRELOAD"))}
        or "freed memory kept (mallopt), all sides",
    }


class Clock(L.Callback):
    """Note when each training batch begins and is done."""

    begun: ClassVar[list[float]] = []
    done: ClassVar[list[float]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun.append(time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        self.done.append(time.perf_counter())
