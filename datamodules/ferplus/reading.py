"""Read the raw FER+ files: the CSVs of pixels and votes, and the folders of PNG files.

Anything wrong with a file raises a `ValueError` that names the file, the line and the value.
"""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.labels import VOTE_COLUMNS
from storage.images import open_image
from storage.reading import csv_rows, read_bytes

FACE_SIZE = 48
VOTES_FILE = "fer2013new.csv"
FOLDERS = ("FER2013Train", "FER2013Valid", "FER2013Test")
_USAGES = ("Training", "PublicTest", "PrivateTest")
_MOST_VOTES = 1000


class VoteRow(NamedTuple):
    """The votes for one image."""

    place: str  # file and line, for messages
    name: str  # empty for rows without an image
    votes: list[int]  # in the order of VOTE_COLUMNS
    split: int  # index into FOLDERS and SPLITS


Images = list[tuple[VoteRow, np.ndarray]]  # the pixels are uint8 48,48


def read_kaggle(pixels_path: Path, votes_path: Path) -> Images:
    """Join the pixels of `fer2013.csv` or `icml_face_data.csv` and the votes by row, skipping rows without a name."""
    rows = _read_votes(votes_path)
    records = _records(pixels_path, ("emotion", "pixels", "Usage"))  # FER+ replaces FER2013's own label, emotion
    faces = [(place, _usage(place, cells["Usage"]), _pixels(place, cells["pixels"])) for place, cells in records]
    if len(faces) != len(rows):
        raise ValueError(f"{pixels_path} has {len(faces)} rows, {votes_path} has {len(rows)}; expected equally many")
    for row, (place, split, _) in zip(rows, faces, strict=True):
        if split != row.split:
            usage = f"Usage is {_USAGES[split]!r}, expected {_USAGES[row.split]!r} as in {row.place}"
            raise ValueError(f"{place}: {usage}; the rows of both files must be in the same order")
    return [(row, image) for row, (_, _, image) in zip(rows, faces, strict=True) if row.name]


def read_folders(root: Path) -> Images:
    """Join the PNG files and the votes by name, in the order of names.

    Of two rows with one name the later one counts, since its pixels overwrote the earlier file.
    """
    present = [split for split, folder in enumerate(FOLDERS) if (root / folder).is_dir()]
    if (root / VOTES_FILE).is_file():
        rows = _read_votes(root / VOTES_FILE)
    else:
        rows = [row for split in present for row in _read_older_votes(root, split)]
        warnings.warn(
            f"{root}: no {VOTES_FILE}; using the older votes of label.csv, which differ in 1,602 rows", stacklevel=3
        )
    labelled = {(row.split, row.name): row for row in rows if row.name and row.split in present}
    for split in present:
        for path in (root / FOLDERS[split]).glob("*.png"):
            if (split, path.name) not in labelled:
                raise ValueError(f"{path}: image without a row of votes")
    ordered = [labelled[key] for key in sorted(labelled)]
    with ThreadPoolExecutor() as pool:
        return list(zip(ordered, pool.map(partial(_read_png, root), ordered), strict=True))


def _records(path: Path, columns: tuple[str, ...], header: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV with their places, by column; Kaggle's two files have two orders, and spaces."""
    rows = csv_rows(path)
    if header:
        found = tuple(name.strip() for name in next(rows, ("", []))[1])
        if sorted(found) != sorted(columns):
            raise ValueError(f"{path}: the header is {str(list(found))[:300]}, expected {list(columns)}")
        columns = found
    for place, row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{place}: {len(row)} columns, expected {len(columns)}: {_short(','.join(row))}")
        yield place, dict(zip(columns, row, strict=True))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _usage(place: str, value: str) -> int:
    if value.strip() not in _USAGES:
        raise ValueError(f"{place}: Usage is {_short(value)}, expected one of {', '.join(_USAGES)}")
    return _USAGES.index(value.strip())


def _vote_row(place: str, cells: dict[str, str], split: int) -> VoteRow:
    name = cells["Image name"].strip()
    if name and (Path(name).name != name or name == ".." or not name.isprintable() or len(name) > 200):
        raise ValueError(f"{place}: Image name is {_short(name)}, expected a plain file name")
    for column in VOTE_COLUMNS:
        digits = cells[column].strip()
        # Length first: Python refuses to convert thousands of digits.
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 9 and int(digits) <= _MOST_VOTES):
            raise ValueError(f"{place}: {column} is {_short(digits)}, expected an integer from 0 to {_MOST_VOTES}")
    return VoteRow(place, name, [int(cells[column]) for column in VOTE_COLUMNS], split)


def _read_votes(path: Path) -> list[VoteRow]:
    """Return every row of `fer2013new.csv`."""
    records = _records(path, ("Usage", "Image name", *VOTE_COLUMNS))
    return [_vote_row(place, cells, _usage(place, cells["Usage"])) for place, cells in records]


def _read_older_votes(root: Path, split: int) -> list[VoteRow]:
    """Return every row of the `label.csv` of a folder, which has no header."""
    path = root / FOLDERS[split] / "label.csv"
    if not path.is_file():
        raise ValueError(f"{root}: neither {VOTES_FILE} nor {path.relative_to(root)} exists, expected one of them")
    records = _records(path, ("Image name", "face box", *VOTE_COLUMNS), header=False)
    return [_vote_row(place, cells, split) for place, cells in records]


def _pixels(place: str, text: str) -> np.ndarray:
    try:
        if not text.isascii() or "_" in text:  # which numpy would take for digits of a number
            raise ValueError(f"found {text}")
        values = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{place}: pixels are not integers ({_short(str(error))})") from error
    wrong = values[(values < 0) | (values > 255)]
    if len(values) != FACE_SIZE**2 or len(wrong):
        found = f"one pixel is {wrong[0]}" if len(wrong) else f"there are {len(values)} pixels"
        raise ValueError(f"{place}: {found}, expected {FACE_SIZE**2} integers from 0 to 255")
    return values.astype(np.uint8).reshape(FACE_SIZE, FACE_SIZE)


def _read_png(root: Path, row: VoteRow) -> np.ndarray:
    path = root / FOLDERS[row.split] / row.name
    try:
        with open_image(read_bytes(path), ["PNG"]) as image:
            mode, size = image.mode, image.size
            if (mode, size) == ("L", (FACE_SIZE, FACE_SIZE)):  # before decoding: a huge image is refused unread
                return np.array(image)
    except FileNotFoundError as error:
        raise ValueError(f"{row.place}: names the image {path}, which does not exist") from error
    except Exception as error:  # Pillow raises about anything for a damaged file
        raise ValueError(f"{path}: not a readable PNG file ({error})") from error
    found = f"{size[0]}x{size[1]} pixels of mode {mode}"
    raise ValueError(f"{path}: is {found}, expected an 8-bit gray image (mode L) of {FACE_SIZE}x{FACE_SIZE}")
