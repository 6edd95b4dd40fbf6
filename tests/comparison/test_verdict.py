"""How often the verdict is wrong, and how often it finds what is there, on simulated runs; and what it says."""

import numpy as np
import pytest
from scipy import stats

from comparison.measures import Difference
from comparison.statistics import Mean, crossed, parts_of
from comparison.verdict import judge

# As on FER+'s validation split (3,199 images, accuracy 86.5 %): two runs of one arm disagree about 4.5 % of
# the images, two of different arms about 5.1 %, and the accuracies of an arm's runs have a standard deviation of 0.35
# points.
IMAGES, ACCURACY, SEED_SD = 3199, 0.865, 0.0023  # of the 0.35 points, 0.265 are the images' share
SAME_ARM, OTHER_ARM = 0.9662, 0.9566  # correlations of how easy an image is for two runs

# By runs per arm, whether the arms share seeds, and the share of luck that is the seeds', in percent: a difference is
# claimed where there is none, one of 0.5 points, and one of 1 point; equivalence within 0.5 points is claimed where
# there is no difference, and one of 0.5 points.
DOCUMENTED = {
    (2, False, 0.0): (5.7, 15.6, 39.5, 5.6, 2.3),
    (2, True, 0.5): (4.2, 13.6, 38.0, 9.3, 3.0),
    (3, False, 0.0): (5.0, 24.4, 70.5, 7.2, 2.3),
    (3, True, 0.0): (5.0, 20.1, 53.3, 9.5, 3.7),
    (3, True, 0.5): (4.5, 28.2, 67.2, 15.9, 3.5),
    (5, False, 0.0): (4.5, 40.0, 93.0, 17.2, 3.3),
    (5, True, 0.0): (4.3, 34.1, 86.4, 16.6, 3.6),
    (5, True, 0.5): (4.7, 46.8, 95.8, 33.4, 3.9),
    (10, False, 0.0): (4.2, 63.4, 99.6, 51.7, 5.3),
    (10, True, 0.0): (3.9, 60.6, 99.5, 48.6, 5.1),
    (10, True, 0.5): (4.7, 72.6, 99.9, 66.6, 4.8),
}


def simulate(
    sets: int, runs: int, images: int = IMAGES, difference: float = 0.0, of_seed: float = 0.0, number: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Answers sets,runs,images of two arms: right where an image is easy enough for a run.

    With fewer images, seeds matter more, so that both have the same share in the uncertainty. `of_seed` is the share of
    a run's luck that is its seed's and the same in both arms.
    """
    generator = np.random.default_rng([runs, images, number])

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal((sets, *shape), dtype=np.float32)

    seed_sd = SEED_SD * (IMAGES / images) ** 0.5 / stats.norm.pdf(stats.norm.ppf(ACCURACY))
    image, luck, luck_with_image = normal(1, images), normal(runs, 1), normal(runs, images) if of_seed else 0
    arms = []
    for accuracy in (ACCURACY - difference / 2, ACCURACY + difference / 2):
        ease = OTHER_ARM**0.5 * image + (SAME_ARM - OTHER_ARM) ** 0.5 * normal(1, images)
        ease = ease + seed_sd * (of_seed**0.5 * luck + (1 - of_seed) ** 0.5 * normal(runs, 1))
        own = of_seed**0.5 * luck_with_image + (1 - of_seed) ** 0.5 * normal(runs, images)
        arms.append(ease + (1 - SAME_ARM) ** 0.5 * own > -stats.norm.ppf(accuracy))
    return arms[0], arms[1]


def shares(first: np.ndarray, second: np.ndarray, same_seeds: bool, margin: float = 0.005) -> tuple[float, float]:
    """In percent, how often a difference and how often equivalence is claimed."""
    value, variance, degrees = crossed(parts_of(first, second, same_seeds))
    error = np.sqrt(variance)
    differs = 2 * stats.t.sf(np.abs(value) / error, degrees) <= 0.05
    equivalent = stats.t.sf((margin - np.abs(value)) / error, degrees) <= 0.05
    return 100 * float(differs.mean()), 100 * float(equivalent.mean())


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
@pytest.mark.parametrize("of_seed", [None, 0.3])
def test_false_alarms_are_as_rare_as_promised(runs: int, of_seed: float | None) -> None:
    arms = simulate(3000, runs, images=250, of_seed=of_seed or 0.0)
    differs, _ = shares(*arms, same_seeds=of_seed is not None)
    assert 3.5 <= differs <= 6.5


def rates(runs: int, same_seeds: bool, of_seed: float) -> tuple[float, ...]:
    """What `DOCUMENTED` holds, from 4,000 comparisons on as many images as FER+ has."""
    found = []
    for truth in (0.0, 0.005, 0.01):
        sets = [simulate(50, runs, difference=truth, of_seed=of_seed, number=number) for number in range(80)]
        found.append([float(rate) for rate in np.mean([shares(*arms, same_seeds) for arms in sets], axis=0)])
    (alarms, equal), (half, too_equal), (whole, _) = found
    return alarms, half, whole, equal, too_equal


@pytest.mark.slow
@pytest.mark.parametrize("design", DOCUMENTED)
def test_rates_in_the_documentation(design: tuple[int, bool, float]) -> None:
    assert rates(*design) == pytest.approx(DOCUMENTED[design], abs=0.3)


def measured(
    second: str, value: float, error: float, seeds: tuple[int, int] = (5, 5), degrees: float = 8
) -> Difference:
    """The accuracies of an arm and of bilinear, in points, on the test split."""
    mean = Mean(value / 100, error / 100, degrees, "seeds and images")
    first_seeds, second_seeds = (list(range(count)) for count in seeds)
    ends = (0.84, 0.84 + value / 100)
    return Difference("bilinear", second, first_seeds, second_seeds, "test", "accuracy", 3153, *ends, mean)


WHERE = "On the test split (3,153 images, 5 seeds per arm), "
SENTENCES = {
    (0.8, 0.2): (
        "better",
        "dic is more accurate than bilinear by 0.80 points (95 % interval 0.34 to 1.26, p = 0.0039).",
    ),
    (-0.8, 0.2): (
        "better",
        "bilinear is more accurate than dic by 0.80 points (95 % interval 0.34 to 1.26, p = 0.0039).",
    ),
    (0.2, 0.05): (
        "better",
        "dic is more accurate than bilinear by 0.20 points (95 % interval 0.08 to 0.32, p = 0.0039); the "
        "difference is smaller than the margin of 0.5 points.",
    ),
    (-0.1, 0.15): (
        "equivalent",
        "dic and bilinear are equally accurate to within the margin of 0.5 points: dic - bilinear is -0.10 points "
        "(90 % interval -0.38 to +0.18, p = 0.014).",
    ),
    (0.3, 0.3): (
        "no difference shown",
        "no difference between dic and bilinear is shown: dic - bilinear is +0.30 points (95 % interval -0.39 to "
        "+0.99). This does not mean that there is none: a comparison of this size would detect a true difference of "
        "1.0 points with 80 % probability.",
    ),
}


@pytest.mark.parametrize("figures", SENTENCES)
def test_what_several_seeds_show(figures: tuple[float, float]) -> None:
    (verdict,) = judge([measured("dic", *figures)], 0.005, {"dic": None})
    assert (verdict.outcome, verdict.sentence) == (SENTENCES[figures][0], WHERE + SENTENCES[figures][1])


def test_one_seed_and_arms_that_differ_in_more_are_never_called_better() -> None:
    clear = measured("dic", 5.0, 0.1, seeds=(1, 3))
    (verdict,) = judge([clear], 0.005, {"dic": None})
    assert (verdict.outcome, verdict.p_difference) == ("cannot tell", None)
    assert verdict.sentence.startswith("On the test split (3,153 images, 3 and 1 seeds), the effect of")
    (verdict,) = judge([measured("dic", 5.0, 0.1)], 0.005, {"dic": "the arms differ in model.depth"})
    assert (verdict.outcome, verdict.p_difference) == ("not comparable", None)
    assert verdict.sentence == "dic and bilinear are not comparable: the arms differ in model.depth."


@pytest.mark.parametrize(("value", "error", "outcome"), [(0.5, 0.2, "better"), (0.0, 0.25, "equivalent")])
def test_several_arms_have_to_show_more_together(value: float, error: float, outcome: str) -> None:
    (alone,) = judge([measured("dic", value, error)], 0.005, {"dic": None})
    both = judge([measured(arm, value, error) for arm in ("dic", "lanczos")], 0.005, {"dic": None, "lanczos": None})
    assert alone.outcome == outcome
    assert [(verdict.second, verdict.outcome) for verdict in both] == [
        ("dic", "no difference shown"),
        ("lanczos", "no difference shown"),
    ]
    assert both[0].p_difference == pytest.approx(min(2 * (alone.p_difference or 0), 1))
    assert both[0].p_equivalence == pytest.approx(min(2 * (alone.p_equivalence or 0), 1))


def test_an_arm_without_the_split_is_not_passed_over() -> None:
    doubts = {"bilinear": None, "dic": None, "other": None}
    sentences = [verdict.sentence for verdict in judge([measured("dic", 0.8, 0.2)], 0.005, doubts)]
    assert sentences[1:] == ["other and bilinear are not comparable: test both on the test split."]
    (nothing, _) = judge([], 0.005, doubts)
    assert nothing.sentence == "dic and bilinear are not comparable: they share no tested split."
