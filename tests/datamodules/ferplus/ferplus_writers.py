"""Writes small FER+ data sets in the layouts that the real one comes in."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ENTRIES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
FOLDERS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}


class Sample(NamedTuple):
    usage: str
    name: str
    votes: tuple[int, ...]
    image: np.ndarray


def votes(**counts: int) -> tuple[int, ...]:
    """Ten votes by entry: ``votes(happiness=7, unknown=3)``."""
    return tuple(counts.get(entry, 0) for entry in ENTRIES)


def face(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 48), dtype=np.uint8)


# Images of all splits, kept and left out for every reason; some are pixel-identical.
MIXED = [
    Sample("Training", "fer0000000.png", votes(happiness=8, neutral=2), face(0)),
    Sample("Training", "fer0000001.png", votes(fear=6, surprise=4), face(1)),
    Sample("Training", "fer0000002.png", votes(neutral=4, anger=6), face(2)),
    Sample("Training", "fer0000003.png", votes(NF=10), face(3)),
    Sample("PublicTest", "fer0000004.png", votes(anger=5, sadness=5), face(4)),
    Sample("PublicTest", "fer0000005.png", votes(anger=10), face(1)),
    Sample("PrivateTest", "fer0000006.png", votes(fear=10), face(0)),  # both rules keep it
    Sample("PrivateTest", "fer0000007.png", votes(fear=5, neutral=5), face(1)),  # argmax keeps it
    Sample("PrivateTest", "fer0000008.png", votes(unknown=5, neutral=5), face(8)),  # argmax keeps it
    Sample("PrivateTest", "fer0000009.png", votes(unknown=6, neutral=4), face(9)),  # neither does
    Sample("PrivateTest", "fer0000010.png", votes(happiness=6, unknown=4), face(2)),
]


def write_votes(root: Path, samples: Sequence[Sample]) -> Path:
    path, header = root / "fer2013new.csv", ["Usage", "Image name", *ENTRIES]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *([sample.usage, sample.name, *sample.votes] for sample in samples)])
    return path


def write_kaggle(root: Path, samples: Sequence[Sample], name: str = "fer2013.csv") -> Path:
    """Pixels and votes as CSVs; ``icml_face_data.csv`` has its columns in another order, with spaces."""
    header = ["emotion", " Usage", " pixels"] if name == "icml_face_data.csv" else ["emotion", "pixels", "Usage"]
    with (root / name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for sample in samples:
            cells = {"emotion": 3, "Usage": sample.usage, "pixels": " ".join(map(str, sample.image.ravel()))}
            writer.writerow([cells[column.strip()] for column in header])
    write_votes(root, samples)
    return root


def write_folders(root: Path, samples: Sequence[Sample]) -> Path:
    """PNG files by name, as Microsoft's generator writes them: a later row with the same name overwrites."""
    for sample in samples:
        if sample.name:
            folder = root / FOLDERS[sample.usage]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.image).save(folder / sample.name)
    write_votes(root, samples)
    return root


def write_label_csv(root: Path, usage: str, rows: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """The older votes, without a header: name, face box, ten votes."""
    with (root / FOLDERS[usage] / "label.csv").open("w", newline="") as file:
        csv.writer(file).writerows([name, "(0, 0, 48, 48)", *counts] for name, counts in rows)
