"""The whole comparison on built-in synthetic faces: `superfer demo`, or `make demo`.

Every step is a command of the README; here they run in one process, which saves importing PyTorch eight times.
"""

import os
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

from commands.compare import compare
from commands.ending import Parser, orderly
from commands.synthetic import synthetic
from commands.test import test
from commands.train import train


@orderly()
def demo(args: Sequence[str] | None = None) -> None:
    """Draw faces, train a generator and both arms, test them on every split, and compare; all below `demo/`."""
    Parser(prog="superfer demo", description=(__doc__ or "").split("\n")[0]).parse_args(args)
    os.environ.setdefault("WANDB_MODE", "offline")
    start = time.monotonic()
    _run("python -m datamodules.synthetic", synthetic, "--root demo/data")
    generator = _run("superfer train", train, "--config configs/demo/generator.yaml")
    bilinear = _run("superfer train", train, "--config configs/demo/bilinear.yaml")
    dic = _run("superfer train", train, f"--config configs/demo/dic.yaml --data.upscaler.checkpoint {generator}")
    for run in (bilinear, dic):
        for split in ("train", "val", "test"):
            _run("superfer test", test, f"--ckpt_path {run} --split {split}")
    _run("superfer compare", compare, f"{bilinear} {dic} --output demo/comparison")
    print(f"\nruns:\n  {generator}\n  {bilinear}\n  {dic}")
    print("figures: demo/comparison/figure1.png, demo/comparison/figure2.png")
    print(f"the demo took {(time.monotonic() - start) / 60:.1f} minutes; its faces are synthetic")


def _run(name: str, command: Callable[[list[str]], Any], words: str) -> Any:
    """Print a step as one would type it, run it, and say how long it took."""
    print(f"\n$ {name} {words}", flush=True)
    start = time.monotonic()
    result = command(shlex.split(words))
    print(f"({time.monotonic() - start:.0f} s)", flush=True)
    return result
