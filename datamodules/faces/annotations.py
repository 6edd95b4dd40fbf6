"""Where the landmarks of a folder of images come from: `.pts` files, an annotation `.pkl`, or a CSV.

- `NAME.pts` beside every image, one-based (`datamodules.faces.cropping`).
- The `.pkl` of the authors of DIC, for CelebA and Helen: a pickled dictionary of image names, with or without suffix,
  to `{"landmark": 68 x 2 numbers, "bbox": ...}`. Landmarks are (x, y) in pixels of the image, **zero-based**; the box
  is not used.
- A CSV with the header `name,x0,y0,...,x67,y67`, one row per face, **zero-based** pixels as well.

What is wrong with one face (its numbers, its image) is found when that face is read, so that it can be left out; what
is wrong with the whole file or folder is an error at once.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from datamodules.faces.cropping import IMAGE_SUFFIXES, FaceError, ReadLandmarks, read_pts
from models.heatmaps import NUM_LANDMARKS
from storage.pickles import load_plain_pickle

CSV_HEADER = ("name", *(f"{axis}{point}" for point in range(NUM_LANDMARKS) for axis in "xy"))

_T = TypeVar("_T")


@dataclass(frozen=True)
class FaceFiles:
    """Images and landmarks by the image's name without suffix; either may lack what the other has.

    Attributes:
        images: where each image is.
        landmarks: what reads the landmarks of each face.
        source: folder of the images, and the annotation file if there is one, for messages.
    """

    images: dict[str, Path]
    landmarks: dict[str, ReadLandmarks]
    source: str


def find_faces(root: Path, annotations: Path | None = None) -> FaceFiles:
    """List a folder of face images with their landmarks.

    Args:
        root: folder of the images.
        annotations: `.pkl` or `.csv` with the landmarks; None: `.pts` files beside the images.

    Raises:
        ValueError: folder or file is missing, holds no landmarks, is damaged as a whole, or has one name twice.
    """
    if not root.is_dir():
        raise ValueError(f"folder of faces not found: {root.resolve()}")
    files = sorted(path for path in root.iterdir() if path.is_file())  # a named pipe would not end
    images = _by_name((path.name, path) for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
    landmarks: dict[str, ReadLandmarks]
    if annotations is None:
        landmarks = {path.stem: partial(read_pts, path) for path in files if path.suffix.lower() == ".pts"}
        if not landmarks:
            raise ValueError(f"no .pts files in {root.resolve()}; expected NAME.pts beside NAME{IMAGE_SUFFIXES[0]}")
        return FaceFiles(images, landmarks, str(root))
    if not annotations.is_file():
        raise ValueError(f"file of landmarks not found: {annotations.resolve()}")
    readers = {".pkl": _read_pkl, ".csv": _read_csv}
    if annotations.suffix.lower() not in readers:
        raise ValueError(f"{annotations}: landmarks are read from {' or '.join(readers)} files")
    landmarks = _by_name(readers[annotations.suffix.lower()](annotations))
    if not landmarks:
        raise ValueError(f"{annotations}: holds no face")
    return FaceFiles(images, landmarks, f"{root} with {annotations}")


def _by_name(entries: Iterable[tuple[str, _T]]) -> dict[str, _T]:
    """Entries by file name without suffix; a suffix that is none of an image belongs to the name."""
    found: dict[str, _T] = {}
    first: dict[str, str] = {}
    for file_name, entry in entries:
        stem, dot, suffix = file_name.rpartition(".")
        name = stem if dot + suffix.lower() in IMAGE_SUFFIXES else file_name
        if name in found:
            raise ValueError(f"two entries for one face: {first[name]} and {file_name}; keep one of them")
        found[name], first[name] = entry, file_name
    return found


def as_landmarks(values: object, where: str) -> NDArray[np.float64]:
    """Check 68 landmarks, float64 68,2.

    Raises:
        FaceError: they are not 68 pairs of finite numbers; the message begins with `where`.
    """
    rows = values if isinstance(values, (list, tuple)) else ()
    deep = any(isinstance(row, (list, tuple)) and any(isinstance(x, (list, tuple)) for x in row) for row in rows)
    try:
        if deep:  # lists of the same lists grow beyond all memory when they become an array
            raise ValueError
        points = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise FaceError("unreadable landmarks", f"{where}: the landmarks are not pairs of numbers") from None
    if points.shape != (NUM_LANDMARKS, 2):
        shape = " x ".join(map(str, points.shape)) or "one number"
        raise FaceError("wrong number of landmarks", f"{where}: found {shape}, expected {NUM_LANDMARKS} x 2 numbers")
    if not np.isfinite(points).all():
        raise FaceError("unreadable landmarks", f"{where}: some landmarks are not finite")
    return points


def _read_pkl(path: Path) -> Iterator[tuple[str, ReadLandmarks]]:
    entries = load_plain_pickle(path)
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise ValueError(f"{path}: expected a dictionary of image name -> {{'landmark': ..., 'bbox': ...}}")
    for name, entry in entries.items():
        values = entry.get("landmark") if isinstance(entry, dict) else None
        yield name, partial(as_landmarks, values, f"{path}, entry {name!r}")


def _read_csv(path: Path) -> Iterator[tuple[str, ReadLandmarks]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = tuple(next(rows, ()))
            if header != CSV_HEADER:
                raise ValueError(f"{path}, line 1: found {','.join(header[:4])!r}..., expected name,x0,y0,...,x67,y67")
            for row in rows:
                if row:
                    yield row[0], _row_reader(row[1:], f"{path}, line {rows.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV of landmarks ({error})") from error


def _row_reader(words: list[str], where: str) -> ReadLandmarks:
    """Numbers are kept instead of their texts: 200,000 faces are 220 MB then, and not gigabytes."""
    if len(words) % 2:
        message = f"{where}: found {len(words)} numbers, expected {2 * NUM_LANDMARKS}"
        return partial(_raise, FaceError("wrong number of landmarks", message))
    try:
        points = np.array(words, dtype=np.float64).reshape(-1, 2)
    except ValueError:
        return partial(_raise, FaceError("unreadable landmarks", f"{where}: holds something that is not a number"))
    return partial(as_landmarks, points, where)


def _raise(error: FaceError) -> NDArray[np.float64]:
    raise error
