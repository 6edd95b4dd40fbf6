"""Means over seeds and images together, and what can be concluded from them.

An accuracy measured on a finite number of images, with a finite number of seeds, is uncertain for two reasons: another
sample of faces would have given another accuracy, and so would another training run. Every run answers the same images,
so seeds and images are *crossed* random effects. For answers x[s, i] of k runs to n images, the mean has the variance

    (MS_seeds + MS_images - MS_rest) / (k n)

with the mean squares of the two-way analysis of variance without replication: the two uncertainties add, and what both
contain (seed x image) counts once. The seeds are few, so Student's t takes the place of the normal distribution, with
the degrees of freedom of the seeds times the ratio of the whole variance to that of the seeds. Satterthwaite's rule has
the square of that ratio, with which two or three seeds give up to 8 % false alarms (`tests/comparison/test_verdict.py`
measures those of the rule used here).

Shapes: k runs, n images; more dimensions in front are independent data sets.

References:
    H. Scheffé, The analysis of variance, 1959, chapters 4 and 7 (two-way layout, random effects).
    D. J. Schuirmann, A comparison of the two one-sided tests procedure and the power approach for assessing the
        equivalence of average bioavailability, J. Pharmacokinetics and Biopharmaceutics 15, 1987.
    S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian J. of Statistics 6, 1979.
    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8
# Two pairs of runs leave one degree of freedom, and the interval would be 12.7 standard errors wide on either side:
# taking the runs as independent is safe, because runs that share a seed can hardly be more different for it.
LEAST_PAIRS = 3


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval, all in the unit of the value."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """A mean, or a difference of two, that follows Student's t-distribution around the truth.

    Attributes:
        value: in the unit of the answers.
        error: standard error, in the same unit.
        degrees: degrees of freedom.
        covers: what another sample of would have given another value; with one seed in an arm, only the images.
    """

    value: float
    error: float
    degrees: float
    covers: Literal["seeds and images", "images"]

    def interval(self, confidence: float = CONFIDENCE) -> Estimate:
        """Return the value with its interval."""
        half = float(stats.t.ppf(0.5 + confidence / 2, self.degrees)) * self.error
        return Estimate(self.value, self.value - half, self.value + half)

    def p_zero(self) -> float:
        """Return the two-sided p-value of the hypothesis that the truth is 0."""
        return 2 * self._above(abs(self.value))

    def p_beyond(self, margin: float) -> float:
        """Return the p-value of the hypothesis that the truth is at least `margin` from 0: two one-sided tests."""
        return self._above(margin - abs(self.value))

    def smallest_shown(self, power: float = POWER) -> float:
        """Return the smallest true value that a sample of this size shows to be other than 0 with probability `power`.

        It follows from the non-central t-distribution and takes the standard error for the true one.
        """
        limit = stats.t.ppf(0.5 + CONFIDENCE / 2, self.degrees)
        missed = optimize.brentq(lambda shift: stats.nct.sf(limit, self.degrees, shift) - power, 0, 3 * limit)
        return float(missed) * self.error

    def _above(self, distance: float) -> float:
        """Return the probability that chance alone puts the value more than `distance` above the truth."""
        if self.error == 0:  # all answers agree
            return 0.5 if distance == 0 else float(distance < 0)
        return float(stats.t.sf(distance / self.error, self.degrees))


def mean_of(right: np.ndarray) -> Mean:
    """Return the mean of the answers k,n of an arm's runs, over seeds and images."""
    return _mean([right])


def difference(first: np.ndarray, second: np.ndarray, same_seeds: bool) -> Mean:
    """Return the mean of `second` minus that of `first`, over seeds and images.

    Args:
        first: answers k,n of one arm's runs, as numbers.
        second: those of the other's, to the same images.
        same_seeds: whether row s is of the same seed in both. From `LEAST_PAIRS` seeds on, the runs are then paired,
            so what a seed does to both arms cancels out.
    """
    return _mean(parts_of(first, second, same_seeds))


def parts_of(first: np.ndarray, second: np.ndarray, same_seeds: bool) -> list[np.ndarray]:
    """Return the independent sets of runs whose means add up to the difference of two arms: pairs, or both arms."""
    paired = same_seeds and first.shape[-2] >= LEAST_PAIRS
    second = second.astype(float)
    return [second - first] if paired else [second, -first.astype(float)]


def _mean(parts: Sequence[np.ndarray]) -> Mean:
    if min(len(part) for part in parts) == 1:
        per_image = sum(part.mean(axis=0, dtype=float) for part in parts)
        n = len(per_image)
        error = float(per_image.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
        return Mean(float(per_image.mean()), error, max(n - 1, 1), "images")
    value, variance, degrees = crossed(parts)
    return Mean(float(value), math.sqrt(variance), float(degrees), "seeds and images")


def crossed(parts: Sequence[np.ndarray]) -> tuple[Any, Any, Any]:
    """Return the sum of the means of independent sets of runs, its variance and its degrees of freedom.

    Args:
        parts: arrays ...,k,n with k > 1, each of runs of its own; the images are the same in all of them.
    """
    counts, n = [part.shape[-2] for part in parts], parts[0].shape[-1]
    per_image = sum(part.mean(axis=-2, dtype=float) for part in parts)  # ...,n
    # The mean squares over (k n): each contains the variance of the rest, seed x image.
    images = per_image.var(axis=-1, ddof=1) / n
    of_runs = [part.mean(axis=-1, dtype=float).var(axis=-1, ddof=1) for part in parts]
    seeds = sum(variance / k for variance, k in zip(of_runs, counts, strict=True))
    within = [part.var(axis=-2, ddof=1).mean(axis=-1) for part in parts]
    rest = sum((w - s) / (k * (n - 1)) for w, s, k in zip(within, of_runs, counts, strict=True))
    seeds = np.where(seeds > 0, seeds, rest)  # few runs can be equally accurate by chance
    variance = seeds + np.maximum(images - rest, 0)
    # Where one arm has fewer seeds, its degrees count for both: they are the ones that are missing.
    degrees = len(parts) * (min(counts) - 1)
    ratio = np.divide(variance, seeds, out=np.full_like(variance, np.inf), where=seeds > 0)
    return per_image.mean(axis=-1), variance, np.minimum(degrees * ratio, max(n - 1, degrees))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's method: all claims at once are wrong with at most the chance of one alone."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def wilson_interval(correct: int, total: int) -> Estimate:
    """Return the accuracy in [0, 1] with its Wilson interval, which stays inside [0, 1] and is sensible at 0 and 1."""
    low, high = stats.binomtest(correct, total).proportion_ci(CONFIDENCE, method="wilson")
    share = correct / total
    # At 0 and 1 one bound equals the share; rounding must not put it on the other side.
    return Estimate(share, min(share, float(low)), max(share, float(high)))
