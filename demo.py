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
    print(f"\n$ python {name} {words}", flush=True)
    start = time.monotonic()
    result = command(shlex.split(words))
    print(f"({time.monotonic() - start:.0f} s)", flush=True)
    return result


def main() -> None:
    # Imported here: the processes that draw the faces import this file too, and need none of these.
    import compare
    from cli import test, train
    from datamodules import synthetic

    os.environ.setdefault("WANDB_MODE", "offline")
    start = time.monotonic()
    run("-m datamodules.synthetic", synthetic.main, "--root demo/data")
    generator = run("train.py", train, "--config configs/demo/generator.yaml")
    bilinear = run("train.py", train, "--config configs/demo/bilinear.yaml")
    dic = run("train.py", train, f"--config configs/demo/dic.yaml --data.upscaler.checkpoint {generator}")
    for folder in (bilinear, dic):
        for split in ("train", "val", "test"):
            run("test.py", test, f"--ckpt_path {folder} --split {split}")
    status = run("compare.py", compare.main, f"{bilinear} {dic} --output demo/comparison")
    if status:
        raise SystemExit(status)
    print(f"\nruns:\n  {generator}\n  {bilinear}\n  {dic}")
    print(f"figures: {Path('demo/comparison/figure1.png')}, {Path('demo/comparison/figure2.png')}")
    print(f"the demo took {(time.monotonic() - start) / 60:.1f} minutes; its faces are synthetic")


if __name__ == "__main__":
    main()
