"""Intervals and p-values against textbook values, hand calculations and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from comparison.statistics import mcnemar_exact, mean_t_interval, paired_bootstrap, welch_difference, wilson_interval


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
    assert estimate.low == pytest.approx(low, abs=6e-5)
    assert estimate.high == pytest.approx(high, abs=6e-5)


@pytest.mark.parametrize(
    ("correct", "total", "confidence"), [(2644, 3153, 0.95), (7, 7, 0.95), (0, 1, 0.9), (3, 8, 0.5)]
)
def test_wilson_interval_equals_scipy(correct: int, total: int, confidence: float) -> None:
    expected = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    estimate = wilson_interval(correct, total, confidence)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize(("correct", "total", "confidence"), [(1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 2, 1.0)])
def test_wilson_interval_refuses_impossible_input(correct: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"must be|need"):
        wilson_interval(correct, total, confidence)


def test_mcnemar_exact_by_hand_and_against_scipy() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 5) == 2 / 2**5
    assert mcnemar_exact(2, 8) == 2 * (1 + 10 + 45) / 2**10
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(120, 87) == mcnemar_exact(87, 120)
    assert mcnemar_exact(120, 87) == pytest.approx(stats.binomtest(87, 207, 0.5).pvalue, rel=1e-9)
    # More discordant images than a float's exponent has room for.
    assert mcnemar_exact(1400, 1290) == pytest.approx(stats.binomtest(1290, 2690, 0.5).pvalue, rel=1e-9)
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 3)


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
    assert estimate == paired_bootstrap(first, second)
    assert estimate != paired_bootstrap(first, second, seed=1)
    # Paired: two arms that err on the same images differ far more certainly than their accuracies alone would say.
    unpaired = math.sqrt(sum(p * (1 - p) / n for p in (2650 / n, 2710 / n)))
    assert standard_error < 0.95 * unpaired


def test_paired_bootstrap_equals_drawing_images_one_by_one() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.integers(0, 4, size=(2, 200)) / 3  # three runs per arm
    picks = generator.integers(0, 200, size=(20_000, 200))
    low, high = np.quantile((second - first)[picks].mean(axis=1), [0.05, 0.95])
    estimate = paired_bootstrap(first, second, resamples=20_000, confidence=0.9)
    assert estimate.value == pytest.approx((second - first).mean())
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.004)


def test_paired_bootstrap_of_equal_classifiers_is_exactly_zero() -> None:
    right = np.array([True, False, True])
    estimate = paired_bootstrap(right, right)
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)
    assert estimate.contains_zero


@pytest.mark.parametrize(("first", "second"), [([], []), ([1, 0], [1]), ([[1]], [[1]])])
def test_paired_bootstrap_refuses_what_is_not_paired(first: list[int], second: list[int]) -> None:
    with pytest.raises(ValueError, match="two equal, non-empty vectors"):
        paired_bootstrap(first, second)


def test_mean_t_interval_with_a_quantile_from_the_table() -> None:
    estimate = mean_t_interval([0.83, 0.84, 0.88])  # mean 0.85, sd sqrt(0.0007), t(0.975, 2) = 4.302653
    half = 4.302653 * math.sqrt(0.0007) / math.sqrt(3)
    assert estimate.value == pytest.approx(0.85)
    assert (estimate.low, estimate.high) == pytest.approx((0.85 - half, 0.85 + half), abs=1e-7)
    with pytest.raises(ValueError, match="at least two"):
        mean_t_interval([0.8])


def test_welch_difference_equals_scipy() -> None:
    first, second = [0.831, 0.842, 0.838], [0.846, 0.839, 0.851, 0.86, 0.842]
    expected = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    estimate = welch_difference(first, second)
    assert estimate.value == pytest.approx(0.8476 - 0.837)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    without_spread = welch_difference([0.5, 0.5], [0.75, 0.75])
    assert (without_spread.low, without_spread.high) == (0.25, 0.25)
    with pytest.raises(ValueError, match="two on each side"):
        welch_difference([0.8], [0.8, 0.9])
