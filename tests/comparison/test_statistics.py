"""Intervals and p-values against published values, hand calculations and a plain bootstrap."""

import math

import numpy as np
import pytest

from comparison.statistics import (
    Estimate,
    mcnemar_exact,
    mean_t_interval,
    paired_bootstrap,
    welch_difference,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17, 1998, table I, method 3 (score method without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_gives_newcombes_published_values(correct: int, total: int, low: float, high: float) -> None:
    estimate = wilson_interval(correct, total)
    assert estimate.value == correct / total
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("correct", "total"), [(0, 1), (1, 1), (7, 7), (3153, 3153), (28558, 28558), (1, 28558)])
def test_wilson_interval_contains_its_value(correct: int, total: int) -> None:
    estimate = wilson_interval(correct, total)
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert estimate.low < estimate.high


def test_mcnemar_exact_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 5) == 2 / 2**5
    assert mcnemar_exact(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 2**10, rel=1e-12)
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(120, 87) == mcnemar_exact(87, 120)
    # More differing images than the exponent of a float has room for: summed exactly, in integers.
    exact = 2 * sum(math.comb(2690, k) for k in range(1291)) / (1 << 2690)
    assert mcnemar_exact(1400, 1290) == pytest.approx(exact, rel=1e-9)


def _outcomes(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_first, only_second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_paired_bootstrap_agrees_with_the_normal_approximation() -> None:
    first, second = _outcomes(both=2400, only_first=250, only_second=310, neither=193)
    n = 3153
    estimate = paired_bootstrap(first, second)
    assert estimate.value == pytest.approx(60 / n, abs=1e-15)
    standard_error = math.sqrt((560 - 60**2 / n) / n**2)
    assert estimate.low == pytest.approx(60 / n - 1.959964 * standard_error, abs=0.05 * standard_error)
    assert estimate.high == pytest.approx(60 / n + 1.959964 * standard_error, abs=0.05 * standard_error)
    assert not estimate.contains_zero
    assert estimate == paired_bootstrap(first, second), "the same input gives the same interval"


def test_paired_bootstrap_equals_drawing_images_one_by_one() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.integers(0, 4, size=(2, 200)) / 3  # three runs per arm
    picks = generator.integers(0, 200, size=(20_000, 200))
    low, high = np.quantile((second - first)[picks].mean(axis=1), [0.025, 0.975])
    estimate = paired_bootstrap(first, second)
    assert estimate.value == pytest.approx((second - first).mean())
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.005)


def test_paired_bootstrap_of_equal_classifiers_is_exactly_zero() -> None:
    right = np.array([True, False, True])
    assert paired_bootstrap(right, right) == Estimate(0.0, 0.0, 0.0)
    assert paired_bootstrap(right, right).contains_zero


def test_mean_t_interval_with_a_quantile_from_the_table() -> None:
    estimate = mean_t_interval([0.83, 0.84, 0.88])  # mean 0.85, sd sqrt(0.0007), t(0.975, 2) = 4.302653
    half = 4.302653 * math.sqrt(0.0007) / math.sqrt(3)
    assert estimate.value == pytest.approx(0.85)
    assert (estimate.low, estimate.high) == pytest.approx((0.85 - half, 0.85 + half), abs=1e-7)
    assert mean_t_interval([0.75, 0.75]) == Estimate(0.75, 0.75, 0.75)


def test_welch_difference_by_hand() -> None:
    # Written out: variances 3.1e-5 over 3 and 6.83e-5 over 5 seeds give 5.7546 degrees of freedom, t(0.975) = 2.4728.
    first, second = [0.831, 0.842, 0.838], [0.846, 0.839, 0.851, 0.86, 0.842]
    estimate = welch_difference(first, second)
    assert estimate.value == pytest.approx(0.8476 - 0.837)
    assert (estimate.low, estimate.high) == pytest.approx((-0.0015106860695064, 0.0227106860695061), abs=1e-12)


def test_intervals_over_seeds_end_where_accuracies_end() -> None:
    # Without the ends: 0.97 +- 12.706205 * 0.02, and 0.94 +- more than that.
    assert mean_t_interval([0.95, 0.99]) == Estimate(0.97, pytest.approx(0.97 - 0.02 * 12.706205), 1.0)
    assert mean_t_interval([0.0, 0.1]) == Estimate(0.05, 0.0, pytest.approx(0.05 + 0.05 * 12.706205))
    assert welch_difference([0.01, 0.05], [0.95, 0.99]).high == 1.0
    assert welch_difference([0.95, 0.99], [0.01, 0.05]).low == -1.0


@pytest.mark.filterwarnings("error")
def test_welch_difference_without_spread() -> None:
    assert welch_difference([0.5, 0.5], [0.75, 0.75]) == Estimate(0.25, 0.25, 0.25)
    one_sided = welch_difference([0.5, 0.5], [0.75, 0.76])  # one degree of freedom: t(0.975, 1) = 12.706205
    assert (one_sided.low, one_sided.high) == pytest.approx((0.255 - 0.005 * 12.706205, 0.255 + 0.005 * 12.706205))
