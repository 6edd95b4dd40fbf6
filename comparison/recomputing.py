"""Recompute every figure of a test from its predictions; needs PyTorch, without which a comparison starts."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from comparison.reading import RULES, SUBSETS, TOLERANCE, Run
from datamodules.labels import CLASSES
from metrics.classification import classification_report
from run_state.may_differ import flatten


def check_figures(runs: Sequence[Run]) -> None:
    """Refuse results whose figures are not those of their predictions.

    Raises:
        ValueError: A figure differs.
    """
    for run in runs:
        for (split, found), rule, subset in itertools.product(run.tested.items(), RULES, SUBSETS):
            labels = np.where(found.counted(rule, subset), found.labels[rule], -1)
            report = classification_report(torch.from_numpy(found.probabilities), torch.from_numpy(labels), CLASSES)
            stored = flatten(found.results["rules"][rule][subset])
            for name, value in flatten(report).items():
                if not _close(stored.get(name), value):
                    raise ValueError(
                        f"{run.folder / f'metrics_{split}.json'} does not match predictions_{split}.csv: "
                        f"rules.{rule}.{subset}.{name} is {stored.get(name)}, but the predictions give {value}; test "
                        "the run again"
                    )


def _close(stored: Any, value: Any) -> bool:
    try:
        given, computed = np.array(stored, float), np.array(value, float)
    except (TypeError, ValueError):
        return False
    return given.shape == computed.shape and bool(np.allclose(given, computed, rtol=0, atol=TOLERANCE))
