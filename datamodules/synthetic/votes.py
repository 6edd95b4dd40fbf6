"""What the images of the FER+ look-alike show, and ten simulated votes on each.

The size of a split fixes the number of images per class, so that no split lacks one; order, intensities and votes are
random. FER+ and its voting: see `datamodules.labels`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from datamodules.labels import CLASSES, SPLITS, VOTE_COLUMNS, Split

NUM_VOTES = 10
MIN_IMAGES = 3 * len(CLASSES)  # the clear ones and some others

# Shares of the classes, in their order: as in FER+, but disgust, fear and contempt less rare.
_FREQUENCY = np.array([0.33, 0.265, 0.12, 0.11, 0.08, 0.03, 0.035, 0.03])

_CLEAR_PER_CLASS = 2  # faces at full intensity on which all voters agree
_NOTHING_SHARE = 0.01  # images without a face
_DUPLICATE_SHARE = 0.02  # validation and test images that also occur in training


@dataclass(frozen=True)
class Sample:
    """One image: `stream` and `index` seed its drawing; `votes` are ten counts that sum to 10, for `VOTE_COLUMNS`."""

    stream: int
    index: int
    emotion: str | None  # None: no face
    intensity: float
    votes: tuple[int, ...]


def plan_split(split: Split, counts: Mapping[Split, int], seed: int) -> list[Sample]:
    """Plan the images of a split, given the number of images of each split, at least `MIN_IMAGES`."""
    stream = 1 + SPLITS.index(split)
    rng = np.random.default_rng((seed, 10 + stream))  # apart from those of the drawings
    nothing = max(1, round(_NOTHING_SHARE * counts[split]))
    others = counts[split] - nothing - _CLEAR_PER_CLASS * len(CLASSES)
    number = np.diff(np.rint(others * _FREQUENCY.cumsum()), prepend=0).astype(int)
    labels = [*np.repeat(range(len(CLASSES)), number), *[None] * nothing]
    faces = [(label, 0.15 + 0.85 * rng.beta(2.4, 1.5)) for label in labels]
    planned = [(label, 1.0) for label in range(len(CLASSES))] * _CLEAR_PER_CLASS + faces
    samples = []
    for index, place in enumerate(rng.permutation(len(planned))):
        label, intensity = planned[place]
        emotion = None if label is None else CLASSES[label]
        samples.append(Sample(stream, index, emotion, intensity, _votes(label, intensity, rng)))
    if split != "train":
        copies = [sample for sample in plan_split("train", counts, seed) if sample.emotion]
        replaced = [sample.index for sample in samples if sample.emotion and sample.intensity < 1]
        for index, copy in zip(replaced[: max(1, round(_DUPLICATE_SHARE * len(samples)))], copies, strict=False):
            votes = _votes(CLASSES.index(str(copy.emotion)), copy.intensity, rng)  # by other people
            samples[index] = replace(copy, votes=votes)
    return samples


def _votes(label: int | None, intensity: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw ten votes: the weaker the expression, the more go to other entries, above all to frequent emotions."""
    chances = np.zeros(len(VOTE_COLUMNS))
    if label is None:
        chances[-2:] = 0.2, 0.8  # unknown, no face
    else:
        doubt = 0.75 * (1 - intensity)
        # What one face may be mistaken for differs from what its class may be.
        chances[:-1] = rng.dirichlet(10 * np.append(_FREQUENCY, 0.1)) * doubt
        chances[label] += 1 - doubt
    return tuple(rng.multinomial(NUM_VOTES, chances).tolist())
