"""Built-in data: drawn faces on disk, as a folder of landmarked faces and as a look-alike of FER+.

Both have the file layout of the real data, so that everything downstream is exercised by them; neither says anything
about real faces, and each folder carries a `SYNTHETIC` marker that says so. Every landmarked face is a function of its
folder's seed and of its own number alone. The size of a split of the look-alike fixes the number of images per class,
so that no split lacks one; their order, intensities and votes are random.
"""

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datamodules.labels import CLASSES, SPLITS, VOTE_COLUMNS, Split
from datamodules.synthetic import SYNTHETIC_MARKER
from datamodules.synthetic.drawing import render_face
from storage.atomic import replace_folder

VERSION = 3  # raised when the same arguments give other bytes, so that older folders are written again

_DRAWN_SIZE = 64  # of a FER+ look-alike before it is reduced
_FACES_STREAM = 0  # second entry of the seed of a landmarked face; those of FER+ are in `plan_split`
VAL_SEED = 1_000_000  # added to the seed for the landmarked validation faces: people who are not in training
_NAMELESS = 200  # images per row of the CSV without one, as FER+ has them

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


def write_faces(root: str | Path, count: int, size: int, seed: int) -> bool:
    """Write landmarked colour faces: `face00000.png` and, one-based as in iBUG's files, `face00000.pts`.

    The images are `size` pixels wide, 16 to 2048. A folder written with the same arguments is left as it is; one
    written with others is replaced.

    Returns:
        Whether anything was written.

    Raises:
        FileExistsError: If `root` holds anything that this module did not write.
    """
    _check_at_least("count", count, 1)

    def fill(folder: Path) -> None:
        for index in range(count):
            rng = np.random.default_rng((seed, _FACES_STREAM, index))
            image, landmarks = render_face(size, CLASSES[index % len(CLASSES)], rng.uniform(0.2, 1.0), rng)
            (folder / f"face{index:05d}.png").write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
            lines = "".join(f"{x:.3f} {y:.3f}\n" for x, y in (landmarks + 1.0).tolist())
            (folder / f"face{index:05d}.pts").write_text(f"version: 1\nn_points: 68\n{{\n{lines}}}\n")

    return _write_folder(Path(root), {"kind": "faces", "count": count, "size": size, "seed": seed}, fill)


def write_ferplus(root: str | Path, counts: Mapping[Split, int], seed: int) -> bool:
    """Write a look-alike of FER+: `FER2013Train|Valid|Test/fer0000000.png` and `fer2013new.csv`.

    The images are 48x48, 8-bit gray. As in FER+, a few rows have no image, a few images show no face, and a few images
    of validation and test also occur in training. An existing folder is treated as by `write_faces`.

    Returns:
        Whether anything was written.
    """
    for split in SPLITS:
        _check_at_least(split, counts[split], MIN_IMAGES)

    def fill(folder: Path) -> None:
        rows: list[tuple[str | int, ...]] = [("Usage", "Image name", *VOTE_COLUMNS)]
        usages = ("Training", "PublicTest", "PrivateTest")
        number = 0
        for split, name, usage in zip(SPLITS, ("Train", "Valid", "Test"), usages, strict=True):
            images = folder / f"FER2013{name}"
            images.mkdir()
            for index, sample in enumerate(plan_split(split, counts, seed)):
                path = images / f"fer{number:07d}.png"
                _write_fer_image(path, sample, seed)
                rows.append((usage, path.name, *sample.votes))
                if index % _NAMELESS == 0:
                    rows.append((usage, "", *[0] * (len(VOTE_COLUMNS) - 1), NUM_VOTES))  # nobody saw a face
                number += 1
        with (folder / "fer2013new.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    return _write_folder(Path(root), {"kind": "ferplus", "counts": dict(counts), "seed": seed}, fill)


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}, expected at least {least}")


def _write_fer_image(path: Path, sample: Sample, seed: int) -> None:
    """Write a gray image, 48x48, of varying contrast, brightness and noise."""
    rng = np.random.default_rng((seed, sample.stream, sample.index))
    if sample.emotion is None:
        blots = rng.uniform(0, 255, (int(rng.integers(2, 9)),) * 2).astype(np.float32)
        gray = cv2.resize(blots, (_DRAWN_SIZE, _DRAWN_SIZE), interpolation=cv2.INTER_CUBIC)
    else:
        image, _ = render_face(_DRAWN_SIZE, sample.emotion, sample.intensity, rng)
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    contrast, mean, noise = rng.uniform((0.7, 85.0, 1.0), (1.3, 165.0, 7.0))
    small = cv2.resize(gray, (48, 48), interpolation=cv2.INTER_AREA)
    small = (small - small.mean()) * contrast + mean + noise * rng.standard_normal(small.shape, np.float32)
    path.write_bytes(cv2.imencode(".png", small.clip(0, 255).astype(np.uint8))[1].tobytes())


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


def _write_folder(root: Path, arguments: dict[str, Any], fill: Callable[[Path], None]) -> bool:
    """Have `fill` write a folder completely or not at all, unless its marker records the same arguments."""
    _check_at_least("seed", arguments["seed"], 0)
    record = json.dumps({"synthetic": True, "version": VERSION, **arguments}) + "\n"
    marker = root / SYNTHETIC_MARKER
    written = marker.read_text() if marker.is_file() else ""
    if written == record:
        return False
    ours = written.startswith("{")  # other folders of generated data have an empty marker
    if not ours and root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty and was not written by this program; give an empty or new folder")

    def write(folder: Path) -> None:
        fill(folder)
        (folder / SYNTHETIC_MARKER).write_text(record)

    replace_folder(root, write)
    return True
