"""Faces on disk in every format that is read, for tests."""

import csv
import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.faces.annotations import CSV_HEADER


def points(seed: int = 0) -> NDArray[np.float64]:
    """68 zero-based points whose bounding box is exactly x 20-80, y 30-70."""
    found = np.random.default_rng(seed).uniform((20, 30), (80, 70), (68, 2))
    found[0], found[1] = (20, 30), (80, 70)
    return found


def write_pts(path: Path, landmarks: NDArray[np.float64]) -> None:
    rows = "\n".join(f"{x} {y}" for x, y in landmarks + 1)  # one-based
    path.write_text(f"version: 1\nn_points: 68\n{{\n{rows}\n}}\n")


def write_image(folder: Path, name: str, seed: int = 1) -> None:
    """A PNG of 100 x 100 random pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")


def write_face(folder: Path, name: str, landmarks: NDArray[np.float64] | None = None, seed: int = 1) -> None:
    write_image(folder, name, seed)
    write_pts(folder / f"{name}.pts", points() if landmarks is None else landmarks)


def write_pkl(path: Path, landmarks: dict[str, object], protocol: int = 4) -> None:
    """The authors' annotations."""
    entries = {name: {"landmark": values, "bbox": [20, 30, 80, 70]} for name, values in landmarks.items()}
    path.write_bytes(pickle.dumps(entries, protocol))


def write_csv(path: Path, landmarks: dict[str, NDArray[np.float64]]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(CSV_HEADER)
        rows.writerows([name, *values.ravel()] for name, values in landmarks.items())
