"""Intervals and p-values against statsmodels, published values, hand calculations and brute force."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import mixedlm, ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from comparison.statistics import Estimate, Mean, crossed, difference, holm, mean_of, wilson_interval


def _crossed_data(k: int, n: int, seed_sd: float, image_sd: float, rest_sd: float, shift: float = 0.0) -> np.ndarray:
    """Answers k,n of one set of runs with random effects of seeds and images."""
    generator = np.random.default_rng(7)
    effects = generator.normal(0, seed_sd, (k, 1)) + generator.normal(0, image_sd, n)
    return np.asarray(effects + generator.normal(0, rest_sd, (k, n)) + shift)


def _as_table(data: np.ndarray) -> pd.DataFrame:
    seeds, images = np.indices(data.shape)
    return pd.DataFrame({"y": data.ravel(), "seed": seeds.ravel(), "image": images.ravel(), "all": 1})


def test_the_variance_is_that_of_the_analysis_of_variance() -> None:
    data = _crossed_data(4, 12, seed_sd=0.3, image_sd=0.5, rest_sd=0.4)
    squares = anova_lm(ols("y ~ C(seed) + C(image)", _as_table(data)).fit())["mean_sq"]
    value, variance, degrees = crossed([data])
    seeds, images, rest = squares["C(seed)"], squares["C(image)"], squares["Residual"]
    assert value == pytest.approx(data.mean())
    assert variance == pytest.approx((seeds + images - rest) / data.size, rel=1e-12)
    assert degrees == pytest.approx(3 * (seeds + images - rest) / seeds, rel=1e-12)


def test_the_error_is_that_of_a_mixed_model_with_crossed_random_effects() -> None:
    data = _crossed_data(4, 12, seed_sd=0.3, image_sd=0.5, rest_sd=0.4)
    components = {"seed": "0 + C(seed)", "image": "0 + C(image)"}
    fit = mixedlm("y ~ 1", _as_table(data), groups="all", vc_formula=components, re_formula="0").fit()
    assert mean_of(data).error == pytest.approx(fit.bse["Intercept"], rel=1e-3)


def test_without_an_effect_of_images_it_is_students_test_over_seeds() -> None:
    first, second = (_crossed_data(5, 8, 0.3, 0, 0)[order] for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]))
    second = second + np.array([[0.1], [0.3], [0.2], [0.4], [0.0]])
    accuracies = first.mean(axis=1), second.mean(axis=1)
    unpaired = stats.ttest_ind(accuracies[1], accuracies[0])
    assert difference(first, second, same_seeds=False).p_zero() == pytest.approx(unpaired.pvalue)
    paired, expected = difference(first, second, same_seeds=True), stats.ttest_rel(accuracies[1], accuracies[0])
    low, high = expected.confidence_interval()
    assert paired.interval() == Estimate(paired.value, pytest.approx(low), pytest.approx(high))


def test_one_seed_is_students_test_over_images() -> None:
    first, second = (_crossed_data(1, 60, 0, 1, 0, shift) for shift in (0.0, 0.2))
    second = second * np.linspace(0.5, 1.5, 60)
    mean = difference(first, second, same_seeds=True)
    expected = stats.ttest_rel(second[0], first[0])
    assert mean.covers == "images"
    assert (mean.p_zero(), mean.degrees) == (pytest.approx(expected.pvalue), 59)


def test_two_shared_seeds_are_too_few_to_pair() -> None:
    first, second = _crossed_data(2, 30, 0.3, 0.5, 0.4), _crossed_data(2, 30, 0.2, 0.5, 0.1)
    mean = difference(first, second, same_seeds=True)
    assert mean == difference(first, second, same_seeds=False) and mean.degrees >= 2


@pytest.mark.parametrize("number", [0, 3, 4, 5])
def test_relabelling_all_runs_gives_the_same_p_value(number: int) -> None:
    """A permutation test knows no distribution: where images add nothing, it sees what Student's t sees."""
    generator = np.random.default_rng(number)
    accuracy = generator.normal(0.86, 0.01, (10, 1)) + np.repeat([[0.0], [0.01]], 5, axis=0)
    right = generator.random((10, 2000)) < accuracy
    means, observed = right.mean(axis=1), abs(right[5:].mean() - right[:5].mean())
    choices = [np.isin(np.arange(10), chosen) for chosen in itertools.combinations(range(10), 5)]
    as_far = [abs(means[chosen].mean() - means[~chosen].mean()) >= observed - 1e-12 for chosen in choices]
    p_value = difference(right[:5], right[5:], same_seeds=False).p_zero()
    assert p_value == pytest.approx(np.mean(as_far), abs=0.015)


def test_exchanging_the_arms_image_by_image_gives_the_same_p_value() -> None:
    """Where seeds add nothing, the sign of every image's difference is left to chance."""
    generator = np.random.default_rng(4)
    per_image = generator.choice([-1.0, 0.0, 1.0], 500, p=[0.05, 0.87, 0.08])
    second = np.tile(per_image, (3, 1))
    mean = difference(np.zeros((3, 500)), second, same_seeds=True)
    signs = generator.choice([-1.0, 1.0], (20_000, 500))
    brute_force = np.mean(np.abs(signs @ per_image) >= abs(per_image.sum()) - 1e-9)
    assert mean.p_zero() == pytest.approx(brute_force, abs=0.01)


def test_equivalence_is_schuirmanns_test() -> None:
    data = _crossed_data(1, 80, 0, 1, 0, 0.1)
    mean = mean_of(data)
    p, *_ = DescrStatsW(data[0]).ttost_mean(-0.3, 0.3)
    assert mean.p_beyond(0.3) == pytest.approx(p)
    edge = mean.interval(0.9)
    assert mean.p_beyond(max(-edge.low, edge.high)) == pytest.approx(0.05), "the 90 % interval reaches the margin"


@pytest.mark.parametrize("runs", [3, 5, 30])
def test_the_smallest_difference_that_can_be_shown_is_that_of_statsmodels(runs: int) -> None:
    mean = Mean(0.0, 0.01, runs - 1, "seeds and images")
    effect = mean.smallest_shown() / (0.01 * math.sqrt(runs))
    assert TTestPower().power(effect, runs, alpha=0.05) == pytest.approx(0.8, abs=1e-6)


def test_holm_is_statsmodels() -> None:
    p_values = [0.04, 0.01, 0.03, 0.2, 0.01]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([0.03]) == [0.03] and holm([]) == []


@pytest.mark.filterwarnings("error")
def test_runs_that_agree_in_everything_leave_nothing_to_chance() -> None:
    right = np.array([[True, False, True, True]] * 3)
    same = difference(right, right, same_seeds=False)
    assert (same.value, same.error, same.p_zero(), same.p_beyond(0.005)) == (0, 0, 1, 0)
    assert same.interval() == Estimate(0, 0, 0) and same.smallest_shown() == 0
    opposite = difference(right & False, right | True, same_seeds=True)
    assert (opposite.value, opposite.p_zero(), opposite.p_beyond(0.005)) == (1, 0, 1)


@pytest.mark.filterwarnings("error")
def test_equal_accuracies_by_chance_are_not_taken_for_certainty() -> None:
    right = np.ones((2, 40), bool)
    right[0, :3] = right[1, 3:6] = False  # equally many, other images
    mean = mean_of(right)
    assert mean.error == pytest.approx(math.sqrt(3 / 40 / 2 / 39), rel=0.1)
    assert mean.degrees < 3


def test_the_arm_with_fewer_seeds_has_the_say() -> None:
    data = _crossed_data(12, 50, 0.3, 0, 0.01)
    _, variance, degrees = crossed([data[:10], -data[10:]])
    seeds = data[:10].mean(axis=1).var(ddof=1) / 10 + data[10:].mean(axis=1).var(ddof=1) / 2
    assert degrees == pytest.approx(2 * variance / seeds)


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
