"""Recompute every figure of a test from its predictions, with PyTorch, which the rest of a comparison does without."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from comparison.reading import RULES, SUBSETS, Run
from datamodules.labels import CLASSES
from metrics.classification import classification_report
from run_state.may_differ import flatten

_TOLERANCE = 1e-6  # float32 rounding of a share; one image of 30,000 is 3e-5


def check_figures(runs: Sequence[Run]) -> None:
    """Raise a ValueError for results whose figures do not follow from their predictions."""
    for run in runs:
        for (split, found), rule, subset in itertools.product(run.tested.items(), RULES, SUBSETS):
            labels = np.where(found.counted(rule, subset), found.labels[rule], -1)
            report = classification_report(torch.from_numpy(found.probabilities), torch.from_numpy(labels), CLASSES)
            stored = flatten(found.results)
            for name, value in flatten({"rules": {rule: {subset: report}}}).items():
                if not _close(stored.get(name), value):
                    path = run.folder / f"metrics_{split}.json"
                    figures = f"{name} is {str(stored.get(name))[:100]}, but the predictions give {value}"
                    raise ValueError(f"{path} does not match predictions_{split}.csv: {figures}; test the run again")


def _close(stored: Any, value: Any) -> bool:
    try:
        given, computed = np.array(stored, float), np.array(value, float)
    except (TypeError, ValueError):
        return False
    return given.shape == computed.shape and bool(np.allclose(given, computed, rtol=0, atol=_TOLERANCE))
