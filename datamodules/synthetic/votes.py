"""What the FER+ look-alike shows and how people would vote on it: contents, intensities and ten votes per image.

The number of images per class is fixed by the size of the split, so that no split lacks a class; their order, their
intensities and the votes are drawn. FER+ and its voting: Barsoum et al. 2016, "Training deep networks for facial
expression recognition with crowd-sourced label distribution".
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from datamodules.labels import CLASSES, Split

Content = Literal["face", "unclear", "nothing"]

NUM_VOTES = 10

_STREAMS: dict[Split, int] = {"train": 1, "val": 2, "test": 3}  # second entry of every image's seed

_PLAN_STREAM = 10  # added to a split's stream for the draws that concern the split as a whole

# Shares of the classes, in their order: as in FER+, but disgust, fear and contempt less rare.
_FREQUENCY = np.array([0.33, 0.265, 0.12, 0.11, 0.08, 0.03, 0.035, 0.03])

_CLEAR_PER_CLASS = 2  # images of each class in each split with full intensity and a clear majority

_NOTHING_SHARE = 0.01  # images without a face

_UNCLEAR_SHARE = 0.015  # images with a face on which no emotion is to be made out

_DUPLICATE_SHARE = 0.02  # validation and test images that also occur in training

MIN_IMAGES = 3 * len(CLASSES)  # the clear ones, and some others

# Whom the voters take a weak or unclear expression for: a row per true class, both in the order of CLASSES.
_CONFUSION = np.array(
    [
        [0.0, 2.0, 1.0, 3.0, 2.0, 0.2, 0.2, 1.5],
        [6.0, 0.0, 1.0, 0.3, 0.1, 0.1, 0.1, 1.0],
        [2.0, 2.0, 0.0, 0.3, 0.5, 0.1, 4.0, 0.1],
        [6.0, 0.2, 0.2, 0.0, 1.5, 0.6, 1.5, 0.6],
        [5.0, 0.3, 0.6, 1.5, 0.0, 2.0, 0.5, 1.0],
        [2.0, 0.2, 0.3, 1.0, 4.0, 0.0, 0.5, 1.0],
        [1.0, 0.2, 5.0, 2.0, 0.4, 0.4, 0.0, 0.1],
        [5.0, 1.5, 0.1, 0.6, 1.0, 0.7, 0.1, 0.0],
    ]
)


@dataclass(frozen=True)
class Sample:
    """One image of the look-alike.

    `stream` and `index` seed its drawing; `votes` are ten counts that sum to 10: CLASSES, unknown, NF.
    """

    stream: int
    index: int
    content: Content
    emotion: str
    intensity: float
    votes: tuple[int, ...]


def plan_split(split: Split, counts: Mapping[Split, int], seed: int) -> list[Sample]:
    """Decide on every image of a split, given the number of images of each, at least `MIN_IMAGES`."""
    stream = _STREAMS[split]
    rng = np.random.default_rng((seed, _PLAN_STREAM + stream))
    contents = _contents(counts[split])
    samples = []
    for index, position in enumerate(rng.permutation(len(contents))):
        content, label, clear = contents[position]
        intensity = 1.0 if clear else 0.15 + 0.85 * float(rng.beta(2.4, 1.5))
        votes = _clear_votes(label, rng) if clear else _votes(content, label, intensity, rng)
        samples.append(Sample(stream, index, content, CLASSES[label], intensity, votes))
    if split == "train":
        return samples
    train = [sample for sample in plan_split("train", counts, seed) if sample.content == "face"]
    replaceable = [sample.index for sample in samples if sample.intensity < 1.0 and sample.content == "face"]
    count = min(max(1, round(_DUPLICATE_SHARE * len(samples))), len(train))
    chosen = rng.choice(len(train), count, replace=False)
    for index, other in zip(rng.choice(replaceable, count, replace=False), chosen, strict=True):
        original = train[other]
        # Other people voted on the copy.
        votes = _votes("face", CLASSES.index(original.emotion), original.intensity, rng)
        samples[index] = replace(original, votes=votes)
    return samples


def _contents(count: int) -> list[tuple[Content, int, bool]]:
    """Return content, class and whether it is a clear case for every image of a split, sorted."""
    nothing, unclear = max(1, round(_NOTHING_SHARE * count)), max(1, round(_UNCLEAR_SHARE * count))
    clear = _CLEAR_PER_CLASS * len(CLASSES)
    wanted = _FREQUENCY / _FREQUENCY.sum() * (count - nothing - unclear)
    others = np.maximum(wanted - _CLEAR_PER_CLASS, 0)
    others *= (count - nothing - unclear - clear) / others.sum()
    number = np.floor(others).astype(int)
    number[np.argsort(number - others)[: count - nothing - unclear - clear - number.sum()]] += 1
    contents: list[tuple[Content, int, bool]] = []
    for label, more in enumerate(number.tolist()):
        contents.extend([("face", label, True)] * _CLEAR_PER_CLASS)
        contents.extend([("face", label, False)] * more)
    contents.extend(("unclear", index % len(CLASSES), False) for index in range(unclear))
    contents.extend([("nothing", 0, False)] * nothing)
    return contents


def _clear_votes(label: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw ten votes, at least eight of them for one class."""
    dissent = int(rng.integers(0, 3))
    votes = np.zeros(len(CLASSES) + 2, dtype=int)
    votes[: len(CLASSES)] = rng.multinomial(dissent, _CONFUSION[label] / _CONFUSION[label].sum())
    votes[label] += NUM_VOTES - dissent
    return tuple(votes.tolist())


def _votes(content: Content, label: int, intensity: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw ten votes: the weaker the expression, the more go to what it may be mistaken for."""
    chances = np.zeros(len(CLASSES) + 2)
    if content == "nothing":
        chances[-2:] = 0.2, 0.8
    elif content == "unclear":
        chances[: len(CLASSES)] = 0.4 * _FREQUENCY / _FREQUENCY.sum()
        chances[-2:] = 0.55, 0.05
    else:
        doubt = 0.06 + 0.7 * (1 - intensity)
        # What one face may be mistaken for differs from what its class may be.
        mistaken = _CONFUSION[label] * rng.exponential(1.0, len(CLASSES))
        chances[: len(CLASSES)] = 0.93 * doubt * mistaken / mistaken.sum()
        chances[-2:] = 0.07 * doubt, 0.003
        chances[label] = 1 - doubt
    return tuple(rng.multinomial(NUM_VOTES, chances / chances.sum()).tolist())
