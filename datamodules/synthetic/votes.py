"""What the images of the FER+ look-alike show, and ten simulated votes on each.

The size of a split fixes the number of images per class, so that no split lacks one; order, intensities and votes are
random. FER+ and its voting: see `datamodules.labels`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from datamodules.labels import CLASSES, VOTE_COLUMNS, Split

Content = Literal["clear", "face", "unclear", "nothing"]  # clear: a face at full intensity with a clear majority

NUM_VOTES = 10
MIN_IMAGES = 3 * len(CLASSES)  # the clear ones and some others

_STREAMS: dict[Split, int] = {"train": 1, "val": 2, "test": 3}  # second entry of every image's seed
_PLAN_STREAM = 10  # added to a split's stream for the draws about the split as a whole

# Shares of the classes, in their order: as in FER+, but disgust, fear and contempt less rare.
_FREQUENCY = np.array([0.33, 0.265, 0.12, 0.11, 0.08, 0.03, 0.035, 0.03])

_CLEAR_PER_CLASS = 2
_NOTHING_SHARE = 0.01  # images without a face
_UNCLEAR_SHARE = 0.015  # faces too blurred to show an emotion
_DUPLICATE_SHARE = 0.02  # validation and test images that also occur in training

# What voters mistake a weak expression for: a row per true class, a column per mistaken one.
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
    """One image: `stream` and `index` seed its drawing; `votes` are ten counts that sum to 10, for `VOTE_COLUMNS`."""

    stream: int
    index: int
    content: Content
    emotion: str
    intensity: float
    votes: tuple[int, ...]


def plan_split(split: Split, counts: Mapping[Split, int], seed: int) -> list[Sample]:
    """Plan the images of a split, given the number of images of each split, at least `MIN_IMAGES`."""
    stream = _STREAMS[split]
    rng = np.random.default_rng((seed, _PLAN_STREAM + stream))
    contents = _contents(counts[split])
    samples = []
    for index, position in enumerate(rng.permutation(len(contents))):
        content, label = contents[position]
        intensity = 1.0 if content == "clear" else 0.15 + 0.85 * rng.beta(2.4, 1.5)
        votes = _votes(content, label, intensity, rng)
        samples.append(Sample(stream, index, content, CLASSES[label], intensity, votes))
    if split != "train":
        train = [sample for sample in plan_split("train", counts, seed) if sample.content in ("clear", "face")]
        replaceable = [sample.index for sample in samples if sample.content == "face"]
        count = min(max(1, round(_DUPLICATE_SHARE * len(samples))), len(train))
        originals = rng.choice(len(train), count, replace=False)
        for index, original in zip(rng.choice(replaceable, count, replace=False), originals, strict=True):
            copy = train[original]
            votes = _votes("face", CLASSES.index(copy.emotion), copy.intensity, rng)  # by other people
            samples[index] = replace(copy, votes=votes)
    return samples


def _contents(count: int) -> list[tuple[Content, int]]:
    """Return content and class of every image of a split, sorted."""
    nothing, unclear = max(1, round(_NOTHING_SHARE * count)), max(1, round(_UNCLEAR_SHARE * count))
    faces = count - nothing - unclear
    others = faces - _CLEAR_PER_CLASS * len(CLASSES)
    share = np.maximum(_FREQUENCY * faces - _CLEAR_PER_CLASS, 0)
    share *= others / share.sum()
    number = np.floor(share).astype(int)
    number[np.argsort(number - share)[: others - number.sum()]] += 1
    contents: list[tuple[Content, int]] = []
    for label, more in enumerate(number):
        contents += [("clear", label)] * _CLEAR_PER_CLASS
        contents += [("face", label)] * more
    return contents + [("unclear", i % len(CLASSES)) for i in range(unclear)] + [("nothing", 0)] * nothing


def _votes(content: Content, label: int, intensity: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw ten votes: the weaker the expression, the more go to what it may be mistaken for."""
    if content == "clear":
        dissent = int(rng.integers(0, 3))
        votes = rng.multinomial(dissent, _CONFUSION[label] / _CONFUSION[label].sum())
        votes[label] += NUM_VOTES - dissent
        return (*votes.tolist(), 0, 0)
    chances = np.zeros(len(VOTE_COLUMNS))
    if content == "nothing":
        chances[-2:] = 0.2, 0.8
    elif content == "unclear":
        chances[:-2] = 0.4 * _FREQUENCY
        chances[-2:] = 0.55, 0.05
    else:
        doubt = 0.06 + 0.7 * (1 - intensity)
        # What one face may be mistaken for differs from what its class may be.
        mistaken = _CONFUSION[label] * rng.exponential(1.0, len(CLASSES))
        chances[:-2] = 0.93 * doubt * mistaken / mistaken.sum()
        chances[-2:] = 0.07 * doubt, 0.003
        chances[label] = 1 - doubt
    return tuple(rng.multinomial(NUM_VOTES, chances / chances.sum()).tolist())
