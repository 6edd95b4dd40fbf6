"""Say in one sentence what a comparison of two arms shows, and what it cannot show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from comparison.measures import ACCURACY, Difference
from comparison.statistics import CONFIDENCE, POWER, Mean, holm
from datamodules.labels import SPLIT_TITLES

Outcome = Literal["better", "equivalent", "no difference shown", "cannot tell", "not comparable"]

_ALPHA = 1 - CONFIDENCE
# Two one-sided tests at _ALPHA: equivalent means that this interval lies within the margin.
_CONFIDENCE_OF_EQUIVALENCE = 1 - 2 * _ALPHA


@dataclass(frozen=True)
class Verdict:
    """What is known about the accuracies of two arms.

    The p-values are adjusted for the number of arms (Holm), and None where nothing can be claimed.
    """

    first: str
    second: str
    outcome: Outcome
    sentence: str
    p_difference: float | None = None
    p_equivalence: float | None = None


def judge(differences: Sequence[Difference], margin: float, doubts: Mapping[str, str | None]) -> list[Verdict]:
    """Judge every later arm against the first, by their accuracy on the first split in `differences`.

    Args:
        differences: of all arms, in the order of `measure_differences`.
        margin: the largest difference in [0, 1] that does not matter.
        doubts: by arm, why it cannot be compared with the first, or None.
    """
    main = differences[0].split if differences else None
    headlines = {d.second: (d, d.mean) for d in differences if d.split == main and d.measure == ACCURACY and d.mean}
    claims = [
        arm for arm, (d, _) in headlines.items() if not doubts[arm] and min(len(d.first_seeds), len(d.second_seeds)) > 1
    ]
    means = [headlines[arm][1] for arm in claims]
    p_difference = dict(zip(claims, holm([mean.p_zero() for mean in means]), strict=True))
    p_equivalence = dict(zip(claims, holm([mean.p_beyond(margin) for mean in means]), strict=True))
    verdicts = []
    for arm, (d, mean) in headlines.items():
        ps = p_difference.get(arm), p_equivalence.get(arm)
        outcome: Outcome
        if doubts[arm]:
            outcome, sentence = "not comparable", f"{arm} and {d.first} are not comparable: {doubts[arm]}."
        elif arm not in claims:
            outcome, sentence = "cannot tell", _one_seed(d, mean)
        else:
            outcome, sentence = _claim(d, mean, margin, p_difference[arm], p_equivalence[arm])
        verdicts.append(Verdict(d.first, arm, outcome, sentence, *ps))
    first, *others = doubts
    for arm in others:
        if arm not in headlines:
            missing = f"test both on the {SPLIT_TITLES[main]} split" if main else "they share no tested split"
            verdicts.append(Verdict(first, arm, "not comparable", f"{arm} and {first} are not comparable: {missing}."))
    return verdicts


def _claim(d: Difference, mean: Mean, margin: float, p_difference: float, p_equivalence: float) -> tuple[Outcome, str]:
    """Return what two arms of several seeds show."""
    limit, signed = f"the margin of {100 * margin:g} points", f"{d.second} - {d.first} is"
    if p_difference <= _ALPHA:
        better, worse = (d.second, d.first) if d.value >= 0 else (d.first, d.second)
        size = _points(replace(mean, value=abs(mean.value)), CONFIDENCE, "", f", p = {p_difference:.2g}")
        end = f"; the difference is smaller than {limit}" if p_equivalence <= _ALPHA else ""
        return "better", f"{_where(d)}, {better} is more accurate than {worse} by {size}{end}."
    if p_equivalence <= _ALPHA:
        size = _points(mean, _CONFIDENCE_OF_EQUIVALENCE, "+", f", p = {p_equivalence:.2g}")
        same = f"{d.second} and {d.first} are equally accurate to within {limit}"
        return "equivalent", f"{_where(d)}, {same}: {signed} {size}."
    return "no difference shown", (
        f"{_where(d)}, no difference between {d.second} and {d.first} is shown: {signed} "
        f"{_points(mean, CONFIDENCE, '+')}. This does not mean that there is none: a comparison of this size would "
        f"detect a true difference of {100 * mean.smallest_shown():.1f} points with {100 * POWER:.0f} % probability."
    )


def _one_seed(d: Difference, mean: Mean) -> str:
    return (
        f"{_where(d)}, the effect of the upscaler cannot be told from chance in training: an arm has only one seed. "
        f"Between these runs, {d.second} - {d.first} is {_points(mean, CONFIDENCE, '+', ', over images only')}. Train "
        "at least 3 seeds of each arm."
    )


def _where(d: Difference) -> str:
    second, first = len(d.second_seeds), len(d.first_seeds)
    seeds = f"{second} and {first} seeds" if second != first else f"{first} seed{'s' * (first > 1)} per arm"
    return f"On the {SPLIT_TITLES[d.split]} split ({d.n:,} images, {seeds})"


def _points(mean: Mean, confidence: float, sign: str, more: str = "") -> str:
    """Return a difference in points with its interval."""
    interval = mean.interval(confidence)
    value, low, high = (f"{100 * x:{sign}z.2f}" for x in (interval.value, interval.low, interval.high))
    return f"{value} points ({100 * confidence:.0f} % interval {low} to {high}{more})"
