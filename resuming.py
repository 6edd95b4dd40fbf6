"""What continuing a run takes: the newest checkpoint that is whole, and no file from outside the run folder."""

import sys
from pathlib import Path

import yaml

from models.checkpoints import CheckpointError, read_checkpoint
from run_folders import find_checkpoint

NEWEST_FIRST = ("latest.ckpt", "previous.ckpt", "best.ckpt")


def newest_whole(run: Path) -> Path:
    """The checkpoint to continue from; one that is damaged is named, and the one before it taken.

    Raises:
        FileNotFoundError: There is none.
        models.checkpoints.CheckpointError: All are damaged.
    """
    there = [path for name in NEWEST_FIRST if (path := run / "checkpoints" / name).is_file()]
    for checkpoint in there:
        try:
            read_checkpoint(checkpoint)
            return checkpoint
        except CheckpointError as error:
            if checkpoint == there[-1]:
                raise
            print(f"warning: {error}; continuing from an earlier one", file=sys.stderr, flush=True)
    return find_checkpoint(run, NEWEST_FIRST)  # says where it was looked for


def nothing_to_start_from(run: Path) -> list[str]:
    """Overrides with which a run needs no weights of an earlier stage: its own checkpoint has them all.

    Only frozen perceptual features from a file (DICGAN with ``perceptual_weights``) are read from that file again.
    """
    config = yaml.safe_load((run / "config.yaml").read_text())
    given = config.get("model", {}).get("init_args", {})
    neutral = {"initial_weights": "null", "weights": "none"}
    return [f"--model.{name}={value}" for name, value in neutral.items() if name in given]
