"""Which settings may differ when a run is resumed or tested."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

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
