"""Reads the raw FER+ files, whichever layout they come in, and keeps them parsed in an array cache beside them.

Layouts of the folder ``root``:

- Kaggle: ``fer2013.csv`` or ``icml_face_data.csv`` (pixels) and ``fer2013new.csv`` (votes), joined by row;
- images: ``FER2013Train|FER2013Valid|FER2013Test`` of PNG files and ``fer2013new.csv``, joined by file name (of two rows
  with one name the later one counts, since its pixels overwrote the earlier file);
- older: the same folders, each with a ``label.csv`` of votes, where ``fer2013new.csv`` is missing.
"""

import csv
import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datamodules.ferplus_labels import VOTE_COLUMNS
from datamodules.files import replace_folder

SPLITS = ("train", "val", "test")
FACE_SIZE = 48
KAGGLE_FILES = ("fer2013.csv", "icml_face_data.csv")
VOTES_FILE = "fer2013new.csv"
CACHE_FOLDER = ".superfer_cache"
_FOLDERS = ("FER2013Train", "FER2013Valid", "FER2013Test")
_USAGES = ("Training", "PublicTest", "PrivateTest")
_FORMAT = 1  # of the array cache


class FERPlusTable(NamedTuple):
    """Every named image of a data set. ``identity[i]`` is the first row that has the pixels of row i."""

    names: np.ndarray  # N str
    images: np.ndarray  # N,48,48 uint8
    votes: np.ndarray  # N,10 int64
    split: np.ndarray  # N int64, index into SPLITS
    identity: np.ndarray  # N int64

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split, ascending."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def in_train(self) -> np.ndarray:
        """Whether an image is pixel-identical to one of the training split, bool N."""
        return np.isin(self.identity, self.identity[self.rows("train")])


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV with their line numbers; blank lines are passed over."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for row in reader:
                if row:
                    yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable CSV file ({error})") from error


def _with_header(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows as dictionaries; the header must name exactly ``columns``, in any order and case."""
    rows = _csv_rows(path)
    header = [name.strip() for name in next(rows, (0, [""]))[1]]
    lower = [name.lower() for name in header]
    wanted = [name.lower() for name in columns]
    missing = [name for name in columns if name.lower() not in lower]
    extra = [name for name in header if name.lower() not in wanted]
    if missing or extra or len(header) != len(columns):
        raise ValueError(
            f"{path}: the header is {header}; missing: {missing or 'none'}, not expected: {extra or 'none'}, "
            f"allowed is {list(columns)}"
        )
    order = [columns[wanted.index(name)] for name in lower]
    for line, row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{path}, line {line}: {len(row)} columns, needed are {len(columns)}")
        yield line, dict(zip(order, row, strict=True))


def _usage(path: Path, line: int, value: str) -> int:
    if value.strip() not in _USAGES:
        raise ValueError(f"{path}, line {line}: Usage is {value!r}, allowed are {', '.join(_USAGES)}")
    return _USAGES.index(value.strip())


def _votes(path: Path, line: int, values: list[str]) -> list[int]:
    for column, value in zip(VOTE_COLUMNS, values, strict=True):
        if not value.strip().isascii() or not value.strip().isdigit():
            raise ValueError(f"{path}, line {line}: {column} is {value!r}, allowed are whole numbers of votes, 0 or more")
        if int(value) > 1000:
            raise ValueError(f"{path}, line {line}: {column} is {value}, allowed are at most 1000 votes")
    return [int(value) for value in values]


def _read_votes(path: Path) -> list[tuple[int, int, str, list[int]]]:
    """(line, split, name, votes) of every row of ``fer2013new.csv``; nameless rows have the name ''."""
    return [
        (line, _usage(path, line, row["Usage"]), row["Image name"].strip(), _votes(path, line, [row[c] for c in VOTE_COLUMNS]))
        for line, row in _with_header(path, ("Usage", "Image name", *VOTE_COLUMNS))
    ]


def _pixels(path: Path, line: int, text: str) -> np.ndarray:
    try:
        values = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}, line {line}: pixels are not whole numbers ({error})") from error
    if len(values) != FACE_SIZE**2 or values.min() < 0 or values.max() > 255:
        limits = f"{values.min()} to {values.max()}" if len(values) else "none"
        raise ValueError(
            f"{path}, line {line}: {len(values)} pixels ({limits}), needed are {FACE_SIZE**2} whole numbers of 0 to 255"
        )
    return values.astype(np.uint8).reshape(FACE_SIZE, FACE_SIZE)


def _read_kaggle(pixels_path: Path, votes_path: Path) -> tuple[list[str], list[np.ndarray], list[list[int]], list[int]]:
    votes = _read_votes(votes_path)
    names, images, kept_votes, splits = [], [], [], []
    count = 0
    for count, (line, row) in enumerate(_with_header(pixels_path, ("emotion", "pixels", "Usage")), start=1):
        split, image = _usage(pixels_path, line, row["Usage"]), _pixels(pixels_path, line, row["pixels"])
        if count > len(votes):
            continue  # counted on, for the message below
        votes_line, votes_split, name, row_votes = votes[count - 1]
        if split != votes_split:
            raise ValueError(
                f"{pixels_path}, line {line}: Usage is {_USAGES[split]!r}, but {votes_path.name}, line {votes_line}, "
                f"says {_USAGES[votes_split]!r}; the rows of both files must be in the same order"
            )
        if name:
            names.append(name)
            images.append(image)
            kept_votes.append(row_votes)
            splits.append(split)
    if count != len(votes):
        raise ValueError(f"{pixels_path} has {count} rows, {votes_path.name} has {len(votes)}; they must be equally many")
    return names, images, kept_votes, splits


def _read_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode != "L" or image.size != (FACE_SIZE, FACE_SIZE):
                raise ValueError(
                    f"{path}: {image.size[0]}x{image.size[1]} pixels of mode {image.mode}, needed is an 8-bit gray "
                    f"image (mode L) of {FACE_SIZE}x{FACE_SIZE}"
                )
            return np.asarray(image)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: a label row names this image, but there is no such file") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def _folder_votes(root: Path, split: int) -> dict[str, list[int]]:
    """Votes by image name, from the older ``label.csv`` of a folder."""
    path = root / _FOLDERS[split] / "label.csv"
    if not path.is_file():
        raise ValueError(f"{root}: neither {VOTES_FILE} nor {path.relative_to(root)} is there; one of them must be")
    rows = {}
    for line, row in _csv_rows(path):
        if len(row) != 2 + len(VOTE_COLUMNS):
            raise ValueError(f"{path}, line {line}: {len(row)} columns, needed are {2 + len(VOTE_COLUMNS)} (name, box, votes)")
        rows[row[0].strip()] = _votes(path, line, row[2:])
    return rows


def _read_folders(root: Path) -> tuple[list[str], list[np.ndarray], list[list[int]], list[int]]:
    by_split: dict[int, dict[str, list[int]]] = {}
    present = [split for split, folder in enumerate(_FOLDERS) if (root / folder).is_dir()]
    if (root / VOTES_FILE).is_file():
        for _, split, name, votes in _read_votes(root / VOTES_FILE):
            if name:
                by_split.setdefault(split, {})[name] = votes
    else:
        warnings.warn(f"{root}: no {VOTES_FILE}; the older votes of label.csv are used, which differ in 1,602 rows", stacklevel=2)
        by_split = {split: _folder_votes(root, split) for split in present}
    names: list[str] = []
    images: list[np.ndarray] = []
    all_votes: list[list[int]] = []
    splits: list[int] = []
    for split in present:
        folder, rows = root / _FOLDERS[split], by_split.get(split, {})
        unlabelled = sorted({path.name for path in folder.glob("*.png")} - rows.keys())
        if unlabelled:
            raise ValueError(f"{folder / unlabelled[0]}: image without a row of votes ({len(unlabelled)} such images)")
        strange = [name for name in rows if Path(name).name != name]
        if strange:
            raise ValueError(f"{root}: image name {strange[0]!r} in the votes is not a plain file name")
        ordered = sorted(rows)
        with ThreadPoolExecutor() as pool:
            images += pool.map(_read_png, [folder / name for name in ordered])
        names += ordered
        all_votes += [rows[name] for name in ordered]
        splits += [split] * len(ordered)
    return names, images, all_votes, splits


def _identity(images: np.ndarray) -> np.ndarray:
    """For each image the first index with the same pixels."""
    flat = np.ascontiguousarray(images.reshape(len(images), -1))
    _, first, inverse = np.unique(flat.view(f"V{flat.shape[1]}").ravel(), return_index=True, return_inverse=True)
    return first[inverse]


def _sources(root: Path) -> list[os.DirEntry]:
    """The files that make up the data set, the one that decides the layout first."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; it must hold the FER+ files")
    top = {entry.name: entry for entry in os.scandir(root)}
    for name in KAGGLE_FILES:
        if name in top:
            if VOTES_FILE not in top:
                raise ValueError(f"{root}: {name} is there, {VOTES_FILE} with the FER+ votes is missing")
            return [top[name], top[VOTES_FILE]]
    folders = [folder for folder in _FOLDERS if folder in top and top[folder].is_dir()]
    if not folders:
        raise ValueError(
            f"{root}: no FER+ data; looked for {' or '.join(KAGGLE_FILES)} with {VOTES_FILE}, and for the folders "
            f"{', '.join(_FOLDERS)}"
        )
    votes = [top[VOTES_FILE]] if VOTES_FILE in top else []
    return votes + [entry for folder in folders for entry in os.scandir(root / folder) if entry.is_file()]


def _state(sources: list[os.DirEntry]) -> str:
    """Changes when a source file changes: hash of paths, sizes and modification times."""
    stats = sorted((*entry.path.rsplit(os.sep, 2)[-2:], *_size_and_time(entry)) for entry in sources)
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _size_and_time(entry: os.DirEntry) -> tuple[int, int]:
    stat = entry.stat()
    return stat.st_size, stat.st_mtime_ns


def _parse(root: Path, sources: list[os.DirEntry]) -> FERPlusTable:
    first = Path(sources[0].path) if sources else root
    is_kaggle = first.name in KAGGLE_FILES
    names, images, votes, splits = _read_kaggle(first, root / VOTES_FILE) if is_kaggle else _read_folders(root)
    if not names:
        raise ValueError(f"{root}: no image with a name and votes was found in {first.name} and beside it")
    stacked = np.stack(images)
    return FERPlusTable(np.array(names), stacked, np.array(votes, dtype=np.int64), np.array(splits), _identity(stacked))


def open_table(root: str | Path) -> tuple[FERPlusTable, str]:
    """Opens a data set, from its array cache if that is up to date.

    Args:
        root: Folder in one of the layouts above.

    Returns:
        The table (images memory-mapped) and the fingerprint of its content, a hexadecimal string.

    Raises:
        ValueError: The folder holds no data set, or a file of it is wrong; the message names file, line and value.
    """
    root = Path(root).resolve()
    sources = _sources(root)
    state, folder = _state(sources), root / CACHE_FOLDER / "ferplus"
    manifest = folder / "manifest.json"
    try:
        saved = json.loads(manifest.read_text())
        if saved["state"] == state and saved["format"] == _FORMAT:
            arrays = [np.load(folder / f"{field}.npy", mmap_mode="r") for field in FERPlusTable._fields]
            return FERPlusTable(*arrays), saved["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no cache, or not a whole one: parse
    table = _parse(root, sources)
    digest = hashlib.sha256()
    for array in table:
        digest.update(np.ascontiguousarray(array).tobytes())
    fingerprint = digest.hexdigest()[:16]

    def write(target: Path) -> None:
        for field, array in zip(FERPlusTable._fields, table, strict=True):
            np.save(target / f"{field}.npy", array)
        (target / "manifest.json").write_text(json.dumps({"state": state, "format": _FORMAT, "fingerprint": fingerprint}))

    try:
        replace_folder(folder, write)
    except OSError as error:
        warnings.warn(f"{folder}: the parsed data could not be kept ({error}); it is parsed anew each time", stacklevel=2)
    return table, fingerprint
