"""Intervals and tests for accuracies that were measured on a finite number of images, with a finite number of seeds.

Two different uncertainties are kept apart. *Over images*: another sample of faces would have given another accuracy
(Wilson interval of one accuracy, paired bootstrap and McNemar's test of two). *Over seeds*: another training run would
have given another network (t-interval over runs). Everything is numpy on small arrays and deterministic.

References:
    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
    Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12, 1947.
    B. Efron, R. Tibshirani, An introduction to the bootstrap, 1993, chapter 13 (percentile interval).
    B. L. Welch, The generalization of Student's problem when several variances are involved, Biometrika 34, 1947.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

CONFIDENCE = 0.95

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its interval, all in the unit of the value."""

    value: float
    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        """Whether 0 is inside the interval or on its edge."""
        return self.low <= 0.0 <= self.high


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, it must be between 0 and 1 (both excluded)")


def wilson_interval(correct: int, total: int, confidence: float = CONFIDENCE) -> Estimate:
    """Accuracy with its Wilson score interval, which stays inside [0, 1] and is sensible at 0 % and 100 %.

    Args:
        correct: number of right answers, 0 to ``total``.
        total: number of images, at least 1.
        confidence: coverage, between 0 and 1.

    Returns:
        Accuracy and interval, in [0, 1].

    Raises:
        ValueError: if the counts are impossible or ``confidence`` is out of range.
    """
    _check_confidence(confidence)
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} right of {total} images: need total >= 1 and 0 <= correct <= total")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / total
    scale = 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    # At the extremes the bound equals the share; rounding must not put it on the other side.
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean of ``second - first`` over images, with the percentile interval of the bootstrap over images.

    Drawing n images with replacement only decides how often each distinct value of the difference is drawn, and these
    counts are multinomial: so all resamples are one call over the few distinct values (-1, 0, 1 for one run per arm).

    Args:
        first: N scores in [0, 1], one per image: right or wrong, or the share of an arm's runs that were right.
        second: N scores of the other classifier, of the same images in the same order.
        resamples: number of bootstrap samples.
        seed: of the resampling; the same input gives the same interval.
        confidence: coverage, between 0 and 1.

    Returns:
        Difference and interval, in [-1, 1].

    Raises:
        ValueError: if the arrays are empty, not one-dimensional or of different length, or a setting is out of range.
    """
    _check_confidence(confidence)
    scores = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if scores[0].ndim != 1 or scores[0].shape != scores[1].shape or scores[0].size == 0:
        raise ValueError(f"scores of shape {scores[0].shape} and {scores[1].shape}: need two equal, non-empty vectors")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, it must be at least 1")
    difference = scores[1] - scores[0]
    # Shares such as 2/3 - 1/3 differ in their last bits; rounding merges what is the same difference.
    values, counts = np.unique(np.round(difference, 9), return_counts=True)
    n = difference.size
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.quantile(draws @ values / n, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(float(difference.mean()), float(low), float(high))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test.

    Under the hypothesis of equal accuracy, an image that exactly one classifier gets right is equally likely to be
    either's: the smaller of both counts is binomial with probability 1/2.

    Args:
        only_first: images that only the first classifier gets right.
        only_second: images that only the second one gets right.

    Returns:
        p-value in (0, 1]; 1 when the classifiers never differ.

    Raises:
        ValueError: if a count is negative.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts {only_first} and {only_second} must not be negative")
    n, k = only_first + only_second, min(only_first, only_second)
    term = total = 1  # binomial(n, 0); integers, so no count is too large to be exact
    for i in range(k):
        term = term * (n - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / (1 << n))


def _critical_t(degrees: float, confidence: float) -> float:
    return float(stdtrit(degrees, 0.5 + confidence / 2))


def mean_t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean over seeds with Student's t-interval.

    Raises:
        ValueError: for fewer than two values, which say nothing about their spread.
    """
    _check_confidence(confidence)
    if len(values) < 2:
        raise ValueError(f"{len(values)} value(s): an interval over seeds needs at least two")
    sample = np.asarray(values, dtype=np.float64)
    half = _critical_t(sample.size - 1, confidence) * sample.std(ddof=1) / math.sqrt(sample.size)
    mean = float(sample.mean())
    return Estimate(mean, mean - float(half), mean + float(half))


def welch_difference(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Difference of the means of ``second`` and ``first`` with Welch's t-interval (unequal spread, any two counts).

    Raises:
        ValueError: for fewer than two values on a side.
    """
    _check_confidence(confidence)
    if min(len(first), len(second)) < 2:
        raise ValueError(f"{len(first)} and {len(second)} value(s): an interval over seeds needs two on each side")
    samples = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    difference = float(samples[1].mean() - samples[0].mean())
    squared = [float(sample.var(ddof=1)) / sample.size for sample in samples]  # squared standard errors
    if sum(squared) == 0.0:  # no spread on either side: the formula for the degrees of freedom is 0/0
        return Estimate(difference, difference, difference)
    degrees = sum(squared) ** 2 / sum(s**2 / (sample.size - 1) for s, sample in zip(squared, samples, strict=True))
    half = _critical_t(degrees, confidence) * math.sqrt(sum(squared))
    return Estimate(difference, difference - half, difference + half)
