"""Measure accuracies per run and arm, and differences between arms.

Shapes: R runs of one arm, n images that count under the chosen label rule.
"""

import json
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
from run_state.settings import flatten, may_differ

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
    """`second - first` in [-1, 1] on the same n images, of two runs or of the means of two arms.

    Attributes:
        over_images: the difference with the paired bootstrap's interval.
        over_seeds: the same with Welch's t-interval; None unless both arms have several runs and this is their means.
        only_first: images that only the first run gets right; None for means.
        only_second: images that only the second run gets right; None for means.
        mcnemar_p: exact two-sided p-value; None for means.
        decides: whether this is the comparison of the arms as a whole: of the means, or of the only runs.
    """

    first: str
    second: str
    first_seeds: list[int]
    second_seeds: list[int]
    split: Split
    images: Subset
    n: int
    over_images: Estimate
    over_seeds: Estimate | None = None
    only_first: int | None = None
    only_second: int | None = None
    mcnemar_p: float | None = None
    decides: bool = False


def group_by_arm(runs: Sequence[Run]) -> Arms:
    """Group runs by arm: arms in the order in which they are first named, the runs of each by seed."""
    arms: Arms = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return {arm: sorted(members, key=lambda run: run.seed) for arm, members in arms.items()}


def measure_accuracies(arms: Arms, rule: Rule) -> list[Accuracy]:
    """Measure every run on every tested split, and the mean of an arm that has several runs."""
    found = []
    for arm, runs in arms.items():
        for split, images in _parts():
            seeds, right = _right(runs, split, rule, images)
            if right.size == 0:
                continue
            n = right.shape[1]
            for seed, row in zip(seeds, right, strict=True):
                found.append(Accuracy(arm, [seed], split, images, n, wilson_interval(int(row.sum()), n)))
            if len(seeds) > 1:
                found.append(Accuracy(arm, seeds, split, images, n, mean_t_interval(right.mean(axis=1).tolist())))
    return found


def measure_differences(arms: Arms, rule: Rule) -> list[Difference]:
    """Compare every later arm with the first: run by run for equal seeds, then the means.

    Two arms of one run each give one comparison, whatever the seeds, and no separate mean.
    """
    found = []
    first, *others = arms
    for second in others:
        for split, images in _parts():
            seeds_a, right_a = _right(arms[first], split, rule, images)
            seeds_b, right_b = _right(arms[second], split, rule, images)
            if right_a.size == 0 or right_b.size == 0:
                continue
            place = (split, images, right_a.shape[1])
            single = len(seeds_a) == len(seeds_b) == 1
            for i, seed_a in enumerate(seeds_a):
                for j, seed_b in enumerate(seeds_b):
                    if single or seed_a == seed_b:
                        pair = _compare_runs(right_a[i], right_b[j])
                        found.append(Difference(first, second, [seed_a], [seed_b], *place, **pair, decides=single))
            if not single:
                over_images = paired_bootstrap(right_a.mean(axis=0), right_b.mean(axis=0))
                means = right_a.mean(axis=1).tolist(), right_b.mean(axis=1).tolist()
                over_seeds = welch_difference(*means) if min(len(seeds_a), len(seeds_b)) > 1 else None
                found.append(Difference(first, second, seeds_a, seeds_b, *place, over_images, over_seeds, decides=True))
    return found


def verdict(difference: Difference) -> str:
    """Say in one sentence what a comparison of two arms shows, and what it cannot show."""
    points = 100 * abs(difference.over_images.value)
    better, worse = difference.second, difference.first
    if difference.over_images.value < 0:
        better, worse = worse, better
    counts = len(difference.second_seeds), len(difference.first_seeds)
    if difference.over_images.contains_zero:
        finding = f"no difference between {worse} and {better} is shown (the interval over images contains 0)"
    elif difference.over_seeds is not None and difference.over_seeds.contains_zero:
        finding = (
            f"{better} is {points:.2f} points ahead of {worse}, but the interval over seeds ({counts[0]} and "
            f"{counts[1]}) contains 0: seeds alone could explain a difference this large"
        )
    elif difference.over_seeds is not None:
        finding = f"{better} is better than {worse} by {points:.2f} points on these images (both intervals exclude 0)"
    else:
        finding = (
            f"this {better} run is better than this {worse} run by {points:.2f} points on these images (the interval "
            "over images excludes 0)"
        )
    limit = "; one seed cannot show whether the upscaler makes a difference" if min(counts) == 1 else ""
    return f"{finding}{limit}."


def config_differences(runs: Sequence[Run]) -> list[str]:
    """Say in which settings the runs differ although they should not (`run_state.settings`), one line per setting."""
    flat = [flatten(run.config) for run in runs]
    lines = []
    for key in sorted(set().union(*flat)):
        values = {json.dumps(config.get(key), default=str) for config in flat}
        if len(values) > 1 and not may_differ(key, "compare"):
            shown = (f"{config.get(key)!r} in {run.folder}" for run, config in zip(runs, flat, strict=True))
            lines.append(f"{key} is {', '.join(shown)}")
    return lines


def _parts() -> list[tuple[Split, Subset]]:
    """Splits and subsets to report; nothing would be left of the training split without training images."""
    return [(split, images) for split in SPLITS for images in SUBSETS if split != "train" or images == "all"]


def _right(runs: Sequence[Run], split: Split, rule: Rule, images: Subset) -> tuple[list[int], np.ndarray]:
    """Seeds of the runs tested on `split`, and bool R,n: whether each is right on each image that counts."""
    seeds = [run.seed for run in runs if split in run.tested]
    tested = [run.tested[split] for run in runs if split in run.tested]
    return seeds, np.array([t.right(rule)[t.counted(rule, images)] for t in tested])


def _compare_runs(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Fields of `Difference` that follow from two bool vectors of n images."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return {
        "over_images": paired_bootstrap(first, second),
        "only_first": only_first,
        "only_second": only_second,
        "mcnemar_p": mcnemar_exact(only_first, only_second),
    }
