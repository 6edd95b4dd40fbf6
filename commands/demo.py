"""The whole comparison on built-in synthetic faces: `make demo` runs this.

Every step is a command of the README; here they run in one process, which saves importing torch eight times.
"""

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(name: str, command: Callable[[list[str]], Any], words: str) -> Any:
    """Prints a step as the user would type it, runs it and says how long it took."""
    print(f"\n$ {name} {words}", flush=True)
    start = time.monotonic()
    result = command(shlex.split(words))
    print(f"({time.monotonic() - start:.0f} s)", flush=True)
    return result


def demo() -> None:
    # Imported here: the processes that draw the faces import this file too, and need none of these.
    from commands.compare import compare
    from commands.test import test
    from commands.train import train
    from datamodules.synthetic.writing import main as write_synthetic

    os.environ.setdefault("WANDB_MODE", "offline")
    start = time.monotonic()
    run("-m datamodules.synthetic.writing", write_synthetic, "--root demo/data")
    generator = run("superfer train", train, "--config configs/demo/generator.yaml")
    bilinear = run("superfer train", train, "--config configs/demo/bilinear.yaml")
    dic = run("superfer train", train, f"--config configs/demo/dic.yaml --data.upscaler.checkpoint {generator}")
    for folder in (bilinear, dic):
        for split in ("train", "val", "test"):
            run("superfer test", test, f"--ckpt_path {folder} --split {split}")
    status = run("superfer compare", compare, f"{bilinear} {dic} --output demo/comparison")
    if status:
        raise SystemExit(status)
    print(f"\nruns:\n  {generator}\n  {bilinear}\n  {dic}")
    print(f"figures: {Path('demo/comparison/figure1.png')}, {Path('demo/comparison/figure2.png')}")
    print(f"the demo took {(time.monotonic() - start) / 60:.1f} minutes; its faces are synthetic")
