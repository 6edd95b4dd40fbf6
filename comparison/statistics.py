"""Intervals and tests for accuracies measured on a finite number of images, with a finite number of seeds.

Two uncertainties are kept apart. *Over images*: another sample of faces would have given another accuracy (Wilson
interval of one accuracy, paired bootstrap and McNemar's test of two). *Over seeds*: another training run would have
given another network (t-intervals over at least two runs, cut off where no accuracy can lie). Everything is
deterministic.

References:
    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
    Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12, 1947.
    B. Efron, R. Tibshirani, An introduction to the bootstrap, 1993, chapter 13 (percentile interval).
    B. L. Welch, The generalization of Student's problem when several variances are involved, Biometrika 34, 1947.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval, all in the unit of the value."""

    value: float
    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        """Whether 0 is inside the interval or on its edge."""
        return self.low <= 0.0 <= self.high


def wilson_interval(correct: int, total: int) -> Estimate:
    """Return the accuracy in [0, 1] with its Wilson interval, which stays inside [0, 1] and is sensible at 0 and 1."""
    low, high = stats.binomtest(correct, total).proportion_ci(CONFIDENCE, method="wilson")
    share = correct / total
    # At 0 and 1 one bound equals the share; rounding must not put it on the other side.
    return Estimate(share, min(share, float(low)), max(share, float(high)))


def paired_bootstrap(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Return the mean of `second - first` over images with the bootstrap's percentile interval, in [-1, 1].

    Both are N scores in [0, 1], one per image, in the same order: the share of an arm's runs that were right.
    Drawing n images with replacement only decides how often each distinct difference is drawn, and these counts are
    multinomial: all resamples are one call over the few distinct values (-1, 0, 1 for one run per arm).
    """
    difference = np.asarray(second, dtype=np.float64) - first
    # Shares such as 2/3 - 1/3 differ in their last bits; rounding merges equal differences.
    values, counts = np.unique(np.round(difference, 9), return_counts=True)
    n = difference.size
    draws = np.random.default_rng(0).multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.quantile(draws @ values / n, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Estimate(float(difference.mean()), float(low), float(high))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test; 1 if the classifiers never differ.

    If both are equally accurate, an image that exactly one of them gets right is as likely to be either's.
    """
    differing = only_first + only_second
    return float(stats.binomtest(min(only_first, only_second), differing).pvalue) if differing else 1.0


def mean_t_interval(values: Sequence[float]) -> Estimate:
    """Return the mean accuracy over at least two seeds with Student's t-interval, cut off at 0 and 1."""
    mean = float(np.mean(values))
    if np.ptp(values) == 0.0:  # scipy returns NaN
        return Estimate(mean, mean, mean)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return Estimate(mean, max(float(low), 0.0), min(float(high), 1.0))


def welch_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Return mean(`second`) - mean(`first`) of accuracies with Welch's t-interval, cut off at -1 and 1.

    Each side has at least two seeds; their spreads may differ.
    """
    difference = float(np.mean(second) - np.mean(first))
    if np.ptp(first) == np.ptp(second) == 0.0:  # scipy returns NaN
        return Estimate(difference, difference, difference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side without spread is no loss of precision
        low, high = stats.ttest_ind(second, first, equal_var=False).confidence_interval(CONFIDENCE)
    return Estimate(difference, max(float(low), -1.0), min(float(high), 1.0))
