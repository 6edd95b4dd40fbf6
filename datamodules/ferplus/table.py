"""Opens a FER+ data set, whichever layout it comes in, and keeps it parsed in an array cache beside it.

Layouts of the folder ``root``:

- Kaggle: ``fer2013.csv`` or ``icml_face_data.csv`` (pixels) and ``fer2013new.csv`` (votes), joined by row;
- images: ``FER2013Train|FER2013Valid|FER2013Test`` of PNG files and ``fer2013new.csv``, joined by file name;
- older: the same folders, each with a ``label.csv`` of votes, where ``fer2013new.csv`` is missing.
"""

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.ferplus.reading import FOLDERS, VOTES_FILE, Face, read_folders, read_kaggle
from datamodules.labels import VOTE_COLUMNS, LabelMode, process_votes
from storage.atomic import replace_folder, write_atomically

SPLITS = ("train", "val", "test")  # in the order of FOLDERS

KAGGLE_FILES = ("fer2013.csv", "icml_face_data.csv")

CACHE_FOLDER = ".superfer_cache"

_FORMAT = 2  # of the array cache

Buffer = bytes | memoryview


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


def open_table(root: str | Path) -> tuple[FERPlusTable, str]:
    """Opens a data set, from its array cache if that belongs to the files that are there.

    Args:
        root: Folder in one of the layouts above.

    Returns:
        The table (arrays memory-mapped) and the fingerprint of its content, a hexadecimal string.

    Raises:
        ValueError: The folder holds no data set, or a file of it is wrong; the message names file, line and value.
    """
    root = Path(root).resolve()
    try:
        sources = _sources(root)
        stamp = _stamp(root, sources)
    except OSError as error:
        raise ValueError(f"{root}: cannot be read ({error})") from error
    folder = root / CACHE_FOLDER / "ferplus"
    cached = _open_cache(folder, root, sources, stamp)
    if cached is not None:
        return cached
    content = _content(root, sources)  # before parsing: a file that changes meanwhile makes the cache stale, not wrong
    is_kaggle = sources[0] in KAGGLE_FILES
    faces = read_kaggle(root / sources[0], root / VOTES_FILE) if is_kaggle else read_folders(root)
    if not faces:
        raise ValueError(f"{root}: there is no row with an image; looked in {' and '.join(sources[:2])}")
    table = _table(faces)
    fingerprint = _fingerprint(table)

    def write(target: Path) -> None:
        for field, array in zip(FERPlusTable._fields, table, strict=True):
            np.save(target / f"{field}.npy", array)
        (target / "manifest.json").write_text(_manifest(stamp, content, fingerprint))

    try:
        replace_folder(folder, write)
    except OSError as error:
        warnings.warn(f"{folder}: the parsed data could not be kept ({error}); they are parsed each time", stacklevel=2)
    return table, fingerprint


def _sources(root: Path) -> list[str]:
    """The files that make up the data set, relative to ``root``; for the Kaggle layout the pixels first."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; it must hold the FER+ files")
    for name in KAGGLE_FILES:
        if (root / name).is_file():
            if not (root / VOTES_FILE).is_file():
                raise ValueError(f"{root}: {name} is there, {VOTES_FILE} with the FER+ votes is missing")
            return [name, VOTES_FILE]
    folders = [folder for folder in FOLDERS if (root / folder).is_dir()]
    if not folders:
        raise ValueError(
            f"{root}: no FER+ data; looked for {' or '.join(KAGGLE_FILES)} with {VOTES_FILE}, and for the folders "
            f"{', '.join(FOLDERS)}"
        )
    # Strings, not paths: there are tens of thousands, and this runs each time the data are opened.
    files = [f"{folder}/{entry.name}" for folder in folders for entry in os.scandir(root / folder) if entry.is_file()]
    return [VOTES_FILE] * (root / VOTES_FILE).is_file() + sorted(files)


def _stamp(root: Path, sources: list[str]) -> str:
    """Changes whenever a source is written, and also when it is only copied: hash of names, sizes and times."""
    stats = [(name, os.stat(f"{root}/{name}")) for name in sources]
    return _hash([repr([(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]).encode()])


def _content(root: Path, sources: list[str]) -> str:
    """Hash of the names and bytes of the sources."""
    digests = []
    for name in sources:
        try:
            with (root / name).open("rb") as file:
                digests.append((name, hashlib.file_digest(file, "sha256").hexdigest()))
        except OSError as error:
            raise ValueError(f"{root / name}: cannot be read ({error})") from error
    return _hash([repr(digests).encode()])


def _hash(parts: Iterable[Buffer]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _fingerprint(table: FERPlusTable) -> str:
    parts: list[Buffer] = []
    for array in table:
        parts += [repr((array.dtype.str, array.shape)).encode(), np.ascontiguousarray(array).data]
    return _hash(parts)


def _manifest(stamp: str, content: str, fingerprint: str) -> str:
    return json.dumps({"format": _FORMAT, "stamp": stamp, "content": content, "fingerprint": fingerprint}) + "\n"


def _open_cache(folder: Path, root: Path, sources: list[str], stamp: str) -> tuple[FERPlusTable, str] | None:
    """The cached table and its fingerprint; None where there is none, or it is damaged, or of other sources."""
    try:
        saved: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        if saved["format"] != _FORMAT:
            return None
        moved = saved["stamp"] != stamp
        if moved and saved["content"] != _content(root, sources):
            return None
        table = FERPlusTable(*(np.load(folder / f"{field}.npy", mmap_mode="r") for field in FERPlusTable._fields))
        if _fingerprint(table) != saved["fingerprint"]:
            raise ValueError("the arrays are not those that were written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        warnings.warn(f"{folder}: damaged ({error}); the data are parsed anew", stacklevel=3)
        return None
    if moved:
        with contextlib.suppress(OSError):  # a read-only cache is compared by content each time
            write_atomically(folder / "manifest.json", _manifest(stamp, saved["content"], saved["fingerprint"]))
    return table, saved["fingerprint"]


def _table(faces: list[Face]) -> FERPlusTable:
    images = np.stack([face.image for face in faces])
    flat = images.reshape(len(images), -1)
    _, first, inverse = np.unique(flat.view(f"V{flat.shape[1]}").ravel(), return_index=True, return_inverse=True)
    return FERPlusTable(
        names=np.array([face.name for face in faces]),
        images=images,
        votes=np.array([face.votes for face in faces], dtype=np.int64),
        split=np.array([face.split for face in faces], dtype=np.int64),
        identity=first[inverse].astype(np.int64),
    )


def duplicates_across(table: FERPlusTable) -> dict[tuple[str, str], int]:
    """For each pair of splits, the number of images of the first that are pixel-identical to one of the second."""
    present = [split for split in SPLITS if len(table.rows(split))]
    return {
        (one, other): int(np.isin(table.identity[table.rows(one)], table.identity[table.rows(other)]).sum())
        for one in present
        for other in present
        if one != other
    }


def describe(table: FERPlusTable, label_mode: LabelMode) -> str:
    """A table of kept and dropped images per split and class, and the duplicates.

    Args:
        table: The data.
        label_mode: The mode of the training split; validation and test always count by the majority rule.

    Returns:
        Lines of text. Each image counts for the entry with the most votes, the first of equals.
    """
    entries = " ".join(f"{name[:9]:>9}" for name in VOTE_COLUMNS)
    lines = [f"{'FER+':<30} {'images':>6} {entries}"]
    for split in SPLITS:
        votes = table.votes[table.rows(split)]
        if not len(votes):
            lines.append(f"{split}: no images")
            continue
        mode: LabelMode = label_mode if split == "train" else "majority"
        kept, _ = process_votes(votes, mode)
        top = votes.argmax(axis=1)
        for what, chosen in (("kept", kept), ("dropped", ~kept)):
            counts = " ".join(f"{count:>9}" for count in np.bincount(top[chosen], minlength=len(VOTE_COLUMNS)))
            lines.append(f"{f'{split}, {mode}, {what}':<30} {chosen.sum():>6} {counts}")
    pairs = [f"{count} of {one} in {other}" for (one, other), count in duplicates_across(table).items()]
    lines.append("pixel-identical images: " + ("; ".join(pairs) or "only one split is there"))
    return "\n".join(lines)
