"""Measure accuracies per run and arm, and differences between arms.

Shapes: k runs of one arm, n images that count.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comparison.reading import RULES, SPLITS, Predictions, Rule, Run, Split
from comparison.statistics import Estimate, Mean, difference, mean_of, wilson_interval
from datamodules.labels import CLASSES

Arms = dict[str, list[Run]]
ACCURACY, FINAL_EPOCH = "accuracy", "accuracy after the final epoch"


@dataclass(frozen=True)
class Accuracy:
    """Accuracy in [0, 1] of one run (Wilson interval over images), or mean of an arm's runs (over seeds and images)."""

    arm: str
    seeds: list[int]
    split: Split
    n: int
    estimate: Estimate


@dataclass(frozen=True)
class Difference:
    """How far `second` is ahead of `first` in a measure, in [-1, 1], each as the mean of its runs.

    `mean` is None for measures that are not a mean over images.
    """

    first: str
    second: str
    first_seeds: list[int]
    second_seeds: list[int]
    split: Split
    measure: str
    n: int
    first_value: float
    second_value: float
    mean: Mean | None

    @property
    def value(self) -> float:
        """`second` - `first`."""
        return self.second_value - self.first_value


def group_by_arm(runs: Sequence[Run]) -> Arms:
    """Group runs by arm: arms in the order in which they are first named, the runs of each by seed."""
    arms: Arms = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return {arm: sorted(members, key=lambda run: run.seed) for arm, members in arms.items()}


def measure_accuracies(arms: Arms, rule: Rule) -> list[Accuracy]:
    """Measure every run on every tested split, and the mean of an arm that has several runs."""
    found = []
    for (arm, runs), split in itertools.product(arms.items(), SPLITS):
        tested = {run.seed: run.tested[split] for run in runs if split in run.tested}
        right = {seed: one.right(rule)[one.labels[rule] >= 0] for seed, one in tested.items()}
        right = {seed: row for seed, row in right.items() if row.size}
        for seed, row in right.items():
            found.append(Accuracy(arm, [seed], split, row.size, wilson_interval(int(row.sum()), row.size)))
        if len(right) > 1:
            mean = mean_of(np.array(list(right.values()))).interval()
            mean = Estimate(mean.value, max(mean.low, 0.0), min(mean.high, 1.0))
            found.append(Accuracy(arm, list(right), split, found[-1].n, mean))
    return found


def measure_differences(arms: Arms, rule: Rule) -> list[Difference]:
    """Compare every later arm with the first on every split that both were tested on, the test split first.

    The first difference of two arms on a split is that of their accuracy; what may hide behind it follows.
    """
    found = []
    first, *others = arms
    for second, split in itertools.product(others, reversed(SPLITS)):
        a, b = ([run for run in arms[arm] if split in run.tested] for arm in (first, second))
        if a and b:
            seeds_a, seeds_b = ([run.seed for run in runs] for runs in (a, b))
            for measure, n, values, mean in [*_accuracies(a, b, split, rule), *_figures(a, b, split, rule)]:
                found.append(Difference(first, second, seeds_a, seeds_b, split, measure, n, *values, mean))
    return found


_Measured = tuple[str, int, tuple[float, float], Mean | None]  # measure, n, value of either arm, their difference


def _accuracies(first: Sequence[Run], second: Sequence[Run], split: Split, rule: Rule) -> Iterator[_Measured]:
    """Compare how often two arms are right, on each group of images that has any."""
    for name, of_rule, counted in _groups(first[0].tested[split], rule):
        if n := int(counted.sum()):
            a, b = (np.array([run.tested[split].right(of_rule)[counted] for run in runs]) for runs in (first, second))
            same_seeds = [run.seed for run in first] == [run.seed for run in second]
            yield name, n, (float(a.mean()), float(b.mean())), difference(a, b, same_seeds)


def _groups(images: Predictions, rule: Rule) -> Iterator[tuple[str, Rule, np.ndarray]]:
    """Name groups of images: the rule that gives their labels, and bool N, which of them count."""
    labels = images.labels[rule]
    (other,) = set(RULES) - {rule}
    yield ACCURACY, rule, labels >= 0
    yield "accuracy on images that are not in training", rule, (labels >= 0) & ~images.in_train
    yield f"accuracy by the {other} rule", other, images.labels[other] >= 0
    no_majority = (images.labels["argmax"] >= 0) & (images.labels["majority"] < 0)
    yield "accuracy on images without a majority", "argmax", no_majority
    for index, name in enumerate(CLASSES):
        yield f"recall of {name}", rule, labels == index


def _figures(first: Sequence[Run], second: Sequence[Run], split: Split, rule: Rule) -> Iterator[_Measured]:
    """Compare the means of figures that each run has of its own, and that are not means over images."""
    reports = [[run.tested[split].results["rules"][rule]["all"] for run in runs] for runs in (first, second)]
    if n := reports[0][0]["n"]:
        for name, measure in _FIGURES.items():
            a, b = (float(np.mean([measure(report) for report in of_arm])) for of_arm in reports)
            yield name, n, (a, b), None
        if split == "val" and rule == "majority":  # as validation during training counts
            a, b = (float(np.mean([_last(run.curves["val/acc"]) for run in runs])) for runs in (first, second))
            yield FINAL_EPOCH, n, (a, b), None


def _macro_recall(report: dict[str, Any]) -> float:
    """Return the mean recall of the classes that have images."""
    return float(
        np.mean([report["recall"][name] for name, row in zip(CLASSES, report["confusion"], strict=True) if sum(row)])
    )


# From metrics_{split}.json, whose figures have been found to follow from the predictions.
_FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "macro recall": _macro_recall,
    "macro F1": lambda report: float(report["macro_f1"]),
    "calibration error (ECE)": lambda report: float(report["ece"]),
}


def _last(curve: dict[int, float]) -> float:
    return curve[max(curve)]
