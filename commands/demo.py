"""The whole comparison on built-in synthetic faces: `superfer demo`, or `make demo`.

It draws the faces and runs `configs/experiments/demo.yaml`, two cells at a time. Given again, it goes on where it was.
"""

import os
from collections.abc import Sequence

from commands.ending import Parser, orderly
from commands.experiment import experiment
from commands.synthetic import synthetic


@orderly()
def demo(args: Sequence[str] | None = None) -> None:
    """Draw faces, train a generator and the arms, test them on every split, and compare; all below `demo/`."""
    Parser(prog="superfer demo", description=(__doc__ or "").split("\n")[0]).parse_args(args)
    os.environ.setdefault("WANDB_MODE", "offline")
    synthetic(["--root", "demo/data", "--train", "600", "--val", "120", "--test", "120"])
    experiment(["configs/experiments/demo.yaml", "--slots", "2", "--output", "demo/comparison"])
    print("figures: demo/comparison/figure1.png, demo/comparison/figure2.png; the faces are synthetic")
