"""Measure what feeds the classifier, its training loop, and how long a command takes to its first batch; print JSON.

    python -m benchmarks.classifier [--rounds 5] [--faces 2048] [--precision bf16-mixed]

- `faces_per_s_and_core`: augmented faces, read and changed as a worker of the loader does it.
- `loop`: the time of a batch in `superfer train` (shipped configuration, callbacks and loader) to that of the same
  network, loss and optimiser on one resident batch, in turn in one process. 1 means that nothing is waited for.
- `start_s`: the imports, and from their end to the first batch; the faces are prepared.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import Clock, settings
from commands.libraries import keep_freed_memory
from commands.train import train
from datamodules.ferplus import FERPlusDataModule
from datamodules.synthetic.writing import write_ferplus
from lightning_modules.classifier import EmotionClassifier

CONFIGS = ("configs/classifier/bilinear.yaml", "configs/classifier/reduced.yaml", "configs/hardware/cpu.yaml")
BATCH, SIZES = 64, (96, 384)
WARM_UP = 6  # batches
START = """
import sys, time
start = time.perf_counter()
from commands.train import train
import callbacks.prediction_sheet, datamodules.ferplus, lightning_modules.classifier
from benchmarks.timing import Clock
imported = time.perf_counter()
sys.stdout = sys.stderr
train(sys.argv[1:])
print(imported - start, Clock.begun[0] - imported, file=sys.__stdout__)
"""


def faces_per_second(root: Path, size: int, count: int, rounds: int) -> float:
    """Return the median rate at which one process serves augmented faces in batches."""
    data = FERPlusDataModule(str(root), input_size=size, batch_size=BATCH, num_workers=0)
    data.setup("fit")
    dataset: Any = data.train_dataloader().dataset
    rates = []
    for number in range(rounds + 1):
        start = time.perf_counter()
        for first in range(0, count, BATCH):
            dataset.__getitems__([(number, index % len(dataset)) for index in range(first, first + BATCH)])
        rates.append(count / (time.perf_counter() - start))
    return round(float(np.median(rates[1:])))


def arguments(root: Path, batches: int, precision: str) -> list[str]:
    """Return the options of a training of one epoch at the full input size."""
    configs = [part for path in CONFIGS for part in ("--config", path)]
    short = [f"--trainer.limit_train_batches={batches}", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    quiet = ["--trainer.num_sanity_val_steps=0", "--trainer.callbacks+=benchmarks.timing.Clock"]
    place = [f"--data.root={root}", f"--runs={root / 'runs'}", "--data.early_epochs=0"]
    return [*configs, f"--trainer.precision={precision}", *place, *short, *quiet]


def trained(root: Path, batches: int, precision: str) -> float:
    """Return the seconds of a batch of `superfer train`."""
    Clock.done.clear()
    train(arguments(root, batches, precision))
    return (Clock.done[-1] - Clock.done[WARM_UP]) / (len(Clock.done) - 1 - WARM_UP)


def resident(root: Path, batches: int, precision: str) -> float:
    """Return the seconds of a batch that is there already, with nothing around it."""
    data = FERPlusDataModule(str(root), input_size=SIZES[0], batch_size=BATCH, num_workers=0)
    data.setup("fit")
    batch: Any = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    module = EmotionClassifier().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for number in range(batches):
        if number == WARM_UP + 1:
            start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = module._loss(module(batch["image"]), batch["target"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / (batches - 1 - WARM_UP)


def loop(root: Path, batches: int, rounds: int, precision: str) -> dict[str, float]:
    """Compare both, in turn."""
    seconds = []
    for number in range(rounds + 1):
        pair = [(run, run(root, batches, precision)) for run in ((trained, resident), (resident, trained))[number % 2]]
        seconds.append([dict(pair)[run] for run in (trained, resident)])
    times = np.array(seconds[1:])
    ratios = times[:, 0] / times[:, 1]
    values = {"seconds": np.median(times[:, 0]), "ratio": np.median(ratios)}
    values |= {"lowest": ratios.min(), "highest": ratios.max()}
    return {name: round(float(value), 4) for name, value in values.items()}


def start(root: Path, rounds: int, precision: str) -> dict[str, float]:
    """Return the median seconds of the imports and of all that comes before the first batch."""
    command = [sys.executable, "-c", START, *arguments(root, 1, precision)]
    runs = [subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout for _ in range(rounds + 1)]
    medians = np.median([[float(word) for word in run.split()] for run in runs[1:]], axis=0)
    return {name: round(float(value), 2) for name, value in zip(("imports", "to_first_batch"), medians, strict=True)}


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Measure everything on built-in faces."""
    with tempfile.TemporaryDirectory() as folder:
        root, batches = Path(folder), options.faces // BATCH
        write_ferplus(root, {"train": options.faces, "val": BATCH, "test": BATCH}, seed=0)
        result: dict[str, object] = {"settings": settings(), "options": vars(options)}
        result["loop"] = loop(root, batches, options.rounds, options.precision)
        result["start_s"] = start(root, options.rounds, options.precision)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        rates = {size: faces_per_second(root, size, options.faces, options.rounds) for size in SIZES}
        torch.set_num_threads(threads)
        return result | {"faces_per_s_and_core": rates}


def main(args: list[str] | None = None) -> None:
    """Parse the command line and print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--faces", type=int, default=2048)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="bf16-mixed")
    options = parser.parse_args(args)
    keep_freed_memory()
    os.environ["WANDB_MODE"] = "disabled"
    with redirect_stdout(sys.stderr):
        result = measure(options)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
