"""Find the landmarks of a folder of images: in `.pts` files, in the DIC authors' `.pkl`, or in a CSV.

- `NAME.pts` beside every image, in the format of the iBUG annotations (lines `version: 1`, `n_points: 68`, `{`, 68 of
  `x y`, `}`), **one-based**: 1.0 is the first pixel's centre.
- The `.pkl` of the authors of DIC, for CelebA and Helen: a pickled dictionary of image names, with or without suffix,
  to `{"landmark": 68 x 2 numbers, "bbox": ...}`. Landmarks are (x, y) in pixels, **zero-based**; the box is not used.
- A CSV with the header `name,x0,y0,...,x67,y67`, one row per face, **zero-based** pixels as well.

What is wrong with one face is found when that face is read, so that it alone is left out; what is wrong with the whole
file or folder is an error at once.
"""

import hashlib
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.heatmaps import NUM_LANDMARKS
from storage.pickles import load_plain_pickle
from storage.reading import csv_rows, read_text

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
CSV_HEADER = ("name", *(f"{axis}{point}" for point in range(NUM_LANDMARKS) for axis in "xy"))
_PTS = re.compile(r"\s*version:\s*1\s+n_points:\s*\d+\s*\{(.*)\}\s*", re.DOTALL)

ReadLandmarks = Callable[[], NDArray[np.float64]]  # 68,2 zero-based pixels, or a FaceError


class FaceError(ValueError):
    """One face cannot be used for a reason (such faces are counted by it); the message names the file or entry."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class FaceFiles:
    """Images and what reads their landmarks, by the image's name without suffix; either may lack what the other has."""

    images: dict[str, Path]
    landmarks: dict[str, ReadLandmarks]


def find_faces(root: Path, annotations: Path | None = None) -> FaceFiles:
    """List a folder of face images with their landmarks, from a `.pkl` or `.csv`, or from `.pts` files beside them."""
    files = [Path(entry) for entry in _list(root)]
    images = _by_name((path.name, path) for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
    readers = {".pkl": _read_pkl, ".csv": _read_csv}
    landmarks: dict[str, ReadLandmarks]
    if annotations is None:
        landmarks = {path.stem: partial(read_pts, path) for path in files if path.suffix.lower() == ".pts"}
    elif annotations.suffix.lower() not in readers or not annotations.is_file():
        raise ValueError(f"landmarks not found: {annotations.resolve()}, expected a .pkl or .csv file")
    else:
        landmarks = _by_name(readers[annotations.suffix.lower()](annotations))
    if not landmarks:
        raise ValueError(f"{annotations or root.resolve()}: no landmarks, expected NAME.pts beside NAME.jpg, or a file")
    return FaceFiles(images, landmarks)


def identify_files(root: Path) -> str:
    """Hash the names, sizes and times of a folder's images and `.pts` files."""
    stats = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in _list(root)]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def _list(root: Path) -> list[os.DirEntry[str]]:
    """Images and `.pts` files by name; reading a named pipe would block forever."""
    if not root.is_dir():
        raise ValueError(f"folder of faces not found: {root.resolve()}")
    suffixes = (*IMAGE_SUFFIXES, ".pts")
    with os.scandir(root) as entries:
        files = [entry for entry in entries if entry.is_file() and entry.name.lower().endswith(suffixes)]
    return sorted(files, key=lambda entry: entry.name)


def _by_name(entries: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Entries by file name without suffix; a suffix that is not an image's belongs to the name."""
    by_name: dict[str, Any] = {}
    for file_name, entry in entries:
        stem, suffix = os.path.splitext(file_name)
        name = stem if suffix.lower() in IMAGE_SUFFIXES else file_name
        if name in by_name:
            raise ValueError(f"two entries for the face {name!r}, the second is {file_name}; keep one of them")
        by_name[name] = entry
    return by_name


def as_landmarks(values: Any, where: str) -> NDArray[np.float64]:
    """Return 68 pairs of finite numbers, or of their texts, as float64 68,2; raise a FaceError that names `where`."""
    points: list[tuple[float, float]] = []
    try:
        for pair in values:  # never as one array: lists of the same lists would explode
            x, y = map(_number, pair)
            if not math.isfinite(x + y):
                raise ValueError(f"found {x}, {y}")
            points.append((x, y))
    except (TypeError, ValueError, OverflowError) as error:
        found = f"{where}, point {len(points)}: {str(error)[:100]}"
        raise FaceError("unreadable landmarks", f"{found}, expected two finite numbers") from error
    if len(points) != NUM_LANDMARKS:
        raise FaceError("wrong number of landmarks", f"{where}: found {len(points)} points, expected {NUM_LANDMARKS}")
    return np.array(points)


def _number(value: Any) -> float:
    if isinstance(value, str) and (not value.isascii() or "_" in value):  # which Python would take for digits
        raise ValueError(f"found {reprlib.repr(value)}")
    return float(value)


def read_pts(path: Path) -> NDArray[np.float64]:
    """Read landmarks of the iBUG format: float64 68,2, (x, y) in image pixels, zero-based (the file's minus one)."""
    try:
        text = read_text(path)
        parts = _PTS.fullmatch(text)
        if parts is None:
            raise ValueError(f"found {reprlib.repr(text)}")
    except (OSError, ValueError) as error:
        expected = "'version: 1 n_points: 68 {...}'"
        raise FaceError("unreadable landmarks", f"{path}: {error}, expected {expected}") from error
    return as_landmarks([line.split() for line in parts[1].splitlines() if line.strip()], str(path)) - 1


def _read_pkl(path: Path) -> Iterator[tuple[str, ReadLandmarks]]:
    entries = load_plain_pickle(path)
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise ValueError(f"{path}: expected a dictionary of image name -> {{'landmark': ..., 'bbox': ...}}")
    for name, entry in entries.items():
        values = entry.get("landmark") if isinstance(entry, dict) else None
        yield name, partial(as_landmarks, values, f"{path}, entry {name!r}")


def _read_csv(path: Path) -> Iterator[tuple[str, ReadLandmarks]]:
    rows = csv_rows(path)
    _, header = next(rows, ("", []))
    if tuple(header) != CSV_HEADER:
        raise ValueError(f"{path}, line 1: found {reprlib.repr(','.join(header))}, expected name,x0,y0,...,x67,y67")
    for place, (name, *cells) in rows:
        # One text: 200,000 faces are 250 MB, and gigabytes as separate words.
        yield name, partial(_parse_row, ",".join(cells), place)


def _parse_row(text: str, where: str) -> NDArray[np.float64]:
    words = text.split(",")
    return as_landmarks([words[at : at + 2] for at in range(0, len(words), 2)], where)
