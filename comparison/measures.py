"""Measure accuracies per run and arm, and differences between arms.

Shapes: R runs of one arm, n images that count under the chosen label rule.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comparison.reading import SPLITS, SUBSETS, Rule, Run, Split, Subset
from comparison.statistics import (
    Estimate,
    mcnemar_exact,
    mean_t_interval,
    paired_bootstrap,
    welch_difference,
    wilson_interval,
)

Arms = dict[str, list[Run]]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy in [0, 1] of one run (interval over images), or mean of an arm's runs (interval over seeds)."""

    arm: str
    seeds: list[int]
    split: Split
    images: Subset
    n: int
    estimate: Estimate


@dataclass(frozen=True)
class Difference:
    """`second - first` in [-1, 1] on the same n images, of two runs or of the means of two arms."""

    first: str
    second: str
    first_seeds: list[int]
    second_seeds: list[int]
    split: Split
    images: Subset
    n: int
    over_images: Estimate  # with the paired bootstrap's interval
    over_seeds: Estimate | None = None  # the same with Welch's t-interval, if both sides have several runs
    only_first: int | None = None  # images that only the first run gets right; None for means
    only_second: int | None = None
    mcnemar_p: float | None = None  # exact, two-sided; None for means


def group_by_arm(runs: Sequence[Run]) -> Arms:
    """Group runs by arm: arms in the order in which they are first named, the runs of each by seed."""
    arms: Arms = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return {arm: sorted(members, key=lambda run: run.seed) for arm, members in arms.items()}


def measure_accuracies(arms: Arms, rule: Rule) -> list[Accuracy]:
    """Measure every run on every tested split, and the mean of an arm that has several runs."""
    found = []
    for (arm, runs), split, images in itertools.product(arms.items(), SPLITS, SUBSETS):
        right = _right(runs, split, rule, images)
        for seed, row in right.items():
            found.append(Accuracy(arm, [seed], split, images, row.size, wilson_interval(int(row.sum()), row.size)))
        if len(right) > 1:
            over_seeds = mean_t_interval([float(row.mean()) for row in right.values()])
            found.append(Accuracy(arm, list(right), split, images, found[-1].n, over_seeds))
    return found


def measure_differences(arms: Arms, rule: Rule) -> list[Difference]:
    """Compare every later arm with the first: their means, or their only runs."""
    found = []
    first, *others = arms
    for second, split, images in itertools.product(others, SPLITS, SUBSETS):
        a, b = (_right(arms[arm], split, rule, images) for arm in (first, second))
        if a and b:
            right = [np.array(list(rows.values())) for rows in (a, b)]
            n = right[0].shape[1]
            found.append(Difference(first, second, list(a), list(b), split, images, n, **_compare(*right)))
    return found


def verdict(difference: Difference) -> str:
    """Say in one sentence what a comparison of two arms shows, and what it cannot show."""
    arms, seeds = (difference.second, difference.first), (len(difference.second_seeds), len(difference.first_seeds))
    better, worse = arms if difference.over_images.value >= 0 else arms[::-1]
    points = f"{100 * abs(difference.over_images.value):.2f} points"
    if difference.over_images.contains_zero:
        finding = f"no difference between {worse} and {better} is shown (the interval over images contains 0)"
    elif difference.over_seeds is None:
        finding = (
            f"this {better} run is better than this {worse} run by {points} on these images (the interval over images "
            "excludes 0)"
        )
    elif difference.over_seeds.contains_zero:
        finding = (
            f"{better} is {points} ahead of {worse}, but the interval over seeds ({seeds[0]} and {seeds[1]}) contains "
            "0: seeds alone could explain a difference this large"
        )
    else:
        finding = f"{better} is better than {worse} by {points} on these images (both intervals exclude 0)"
    return finding + ("; one seed cannot show whether the upscaler makes a difference." if min(seeds) == 1 else ".")


def _right(runs: Sequence[Run], split: Split, rule: Rule, images: Subset) -> dict[int, np.ndarray]:
    """Return, by the seed of each tested run, bool n: whether it is right on each image that counts; n > 0."""
    tested = {run.seed: run.tested[split] for run in runs if split in run.tested}
    right = {seed: found.right(rule)[found.counted(rule, images)] for seed, found in tested.items()}
    return {seed: row for seed, row in right.items() if row.size}


def _compare(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Return the fields of `Difference` that follow from bool R,n of each arm."""
    fields: dict[str, Any] = {"over_images": paired_bootstrap(first.mean(axis=0), second.mean(axis=0))}
    if min(len(first), len(second)) > 1:
        fields["over_seeds"] = welch_difference(first.mean(axis=1).tolist(), second.mean(axis=1).tolist())
    elif len(first) == len(second):
        only = int((first & ~second).sum()), int((second & ~first).sum())
        fields |= {"only_first": only[0], "only_second": only[1], "mcnemar_p": mcnemar_exact(*only)}
    return fields
