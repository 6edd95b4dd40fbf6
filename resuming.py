"""What continuing a run takes: the newest checkpoint that is whole, and no file from outside the run folder."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from datamodules.files import write_atomically
from models.checkpoints import CheckpointError, read_checkpoint
from run_folders import chosen_folder, find_checkpoint

# Settings that name weights to start from. A continued run keeps but does not follow them: its own checkpoint has all
# weights, and the files may be gone. (Frozen perceptual features from a file, DICGAN's perceptual_weights, are read
# from that file again.)
NEUTRAL = {"initial_weights": None, "hourglass_weights": None, "weights": "none"}
MAY_CHANGE = (  # without another result, or on purpose
    "config",
    "data.init_args.num_workers",
    "finite",
    "latest",
    "runs",
    "tags",
    *(
        f"trainer.{name}"
        for name in (
            "accelerator",
            "devices",
            "enable_model_summary",
            "enable_progress_bar",
            "log_every_n_steps",
            "logger",
            "max_epochs",
            "max_time",
            "num_nodes",
            "profiler",
            "strategy",
        )
    ),
)
FIXED = "trainer.max_steps"  # whatever is allowed: Lightning would leave out the rest of the epoch that was the last
TEST_MAY_CHANGE = (  # where and how fast; check_same_data sees to the pixels
    *(f"data.init_args.{name}" for name in ("root", "cache_dir", "test_split", "batch_size", "upscaler")),
    "best",
    "experiment",
    "model.init_args.weights",
    "trainer",
)
ADDED = {"data.init_args.heatmap_sigma": 1.0}  # settings that older runs do not name, and what they had
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
            if "loops" not in read_checkpoint(checkpoint):
                raise CheckpointError(f"{checkpoint} is not the checkpoint of a training")
            return checkpoint
        except CheckpointError as error:
            if checkpoint == there[-1]:
                raise
            print(f"warning: {error}; continuing from an earlier one", file=sys.stderr, flush=True)
    return find_checkpoint(run, NEWEST_FIRST)  # says where it was looked for


def newest_run(experiment: Path, seed: int, config: dict[str, Any], allowed: Sequence[str] = ()) -> Path | None:
    """The newest run below ``runs/<experiment>`` with this seed and configuration that can be continued, or None."""
    found = sorted(experiment.glob(f"*_s{seed}/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    said = False
    for path in found:
        run = path.parent
        if chosen_folder() not in (None, run.resolve()):
            continue
        if not any((run / "checkpoints" / name).is_file() for name in NEWEST_FIRST):
            continue
        try:
            changed = changed_settings(run, config, allowed)
            if not changed:
                return run
            if not said:
                print(f"{run}, the newest run, has other settings: {'; '.join(changed)}", file=sys.stderr, flush=True)
                said = True
        except (ValueError, OSError) as error:
            print(f"warning: {error}; passed over", file=sys.stderr, flush=True)
    return None


def changed_settings(run: Path, config: dict[str, Any], allowed: Sequence[str] = ()) -> list[str]:
    """How a configuration differs from that of a run, but for what may change.

    Args:
        run: its folder.
        config: what is configured now, as plain types.
        allowed: further names that may change, with all that is below them.

    Returns:
        Sentences such as "seed_everything is 1, was 0".

    Raises:
        ValueError: its configuration is damaged.
    """
    try:
        saved = _flat(yaml.safe_load((run / "config.yaml").read_text()) or {})
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{run / 'config.yaml'} cannot be read ({' '.join(str(error).split())[:200]})") from error
    now = _flat(config)
    saved |= {name: value for name, value in ADDED.items() if name in now and name not in saved}
    free = (*MAY_CHANGE, *allowed)
    return [
        f"{name} is {_shown(now, name)}, was {_shown(saved, name)}"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
        and (name == FIXED or not any(f"{name}.".startswith(f"{prefix}.") for prefix in free))
    ]


def _shown(settings: dict[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "not set"


def check_names(allowed: Sequence[str], config: dict[str, Any]) -> None:
    """Refuses names of settings that do not exist.

    Raises:
        ValueError: names the first.
    """
    settings = _flat(config)
    for name in allowed:
        if not any(f"{setting}.".startswith(f"{name}.") for setting in settings):
            raise ValueError(
                f"--allow_change {name}: there is no such setting; names are as in config.yaml, for instance "
                "model.init_args.learning_rate"
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
        )
    return found


def forget_beyond(run: Path, checkpoint: Path) -> None:
    """Removes the rows of ``metrics.csv`` that were logged after the checkpoint: they will be logged again.

    Raises:
        ValueError: the file is no CSV.
    """
    path = run / "metrics.csv"
    steps = read_checkpoint(checkpoint).get("global_step")
    if not path.is_file() or not isinstance(steps, int):
        return
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it, or move it away to log anew") from error
    # A row that was being written when the power went has cells missing.
    whole = [row for row in rows if None not in row and None not in row.values() and str(row.get("step")).isdigit()]
    kept = [row for row in whole if int(row["step"]) < steps]
    if len(kept) == len(rows):
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(kept)
    write_atomically(path, text.getvalue())
