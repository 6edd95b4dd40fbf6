"""Open a FER+ data set, whichever layout it comes in, and keep it parsed in a file beside it.

Layouts of the folder `root`:

- Kaggle: `fer2013.csv` or `icml_face_data.csv` (pixels) and `fer2013new.csv` (votes), joined by row;
- images: `FER2013Train|FER2013Valid|FER2013Test` of PNG files and `fer2013new.csv`, joined by file name;
- older: the same folders, each with a `label.csv` of votes, where `fer2013new.csv` is missing.
"""

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.ferplus.reading import FOLDERS, VOTES_FILE, FERPlusImage, read_folders, read_kaggle
from datamodules.labels import SPLITS, VOTE_COLUMNS, LabelMode, Split, process_votes
from storage.atomic import remove_leftovers, write_atomically

KAGGLE_FILES = ("fer2013.csv", "icml_face_data.csv")

CACHE_FOLDER = ".superfer_cache"

_ARRAYS = ("names", "images", "votes", "split", "identity")


class LabelledSplit(NamedTuple):
    """Every image of a split under a label rule."""

    rows: np.ndarray  # int64 N, ascending
    kept: np.ndarray  # bool N
    targets: np.ndarray  # float32 N,8; zero where the image is dropped


@dataclass(frozen=True)
class FERPlusTable:
    """Every named image of a data set.

    Attributes:
        root: Folder of the data.
        names: str N.
        images: uint8 N,48,48.
        votes: int64 N,10.
        split: int64 N, index into `SPLITS`.
        identity: int64 N, the first row that has the same pixels.
        fingerprint: Hash of all arrays.
    """

    root: Path
    names: np.ndarray
    images: np.ndarray
    votes: np.ndarray
    split: np.ndarray
    identity: np.ndarray
    fingerprint: str

    @property
    def splits(self) -> list[Split]:
        """The splits that have images."""
        return [split for split in SPLITS if len(self.rows(split))]

    def rows(self, split: Split) -> np.ndarray:
        """Return the row numbers of a split, ascending; none where the split has no images."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def labelled(self, split: Split, mode: LabelMode) -> LabelledSplit:
        """Return the rows of a split with their targets.

        Raises:
            ValueError: `split` or `mode` is unknown, or the split has no images.
        """
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
        rows = self.rows(split)
        if not len(rows):
            raise ValueError(
                f"{self.root}: the split {split!r} has no images; splits with images: {', '.join(self.splits)}"
            )
        return LabelledSplit(rows, *process_votes(self.votes[rows], mode))

    def in_train(self) -> np.ndarray:
        """Return which images are pixel-identical to one of the training split, bool N."""
        return np.isin(self.identity, self.identity[self.rows("train")])


def open_table(root: str | Path) -> FERPlusTable:
    """Open a data set: as it was parsed before, unless a file has another name, size or time since then.

    Args:
        root: Folder in one of the layouts above.

    Raises:
        ValueError: The folder holds no data set, or a file of it is invalid; the message names file, line and value.
    """
    root = Path(root).resolve()
    try:
        sources = _sources(root)
        stamp = _stamp(root, sources)  # before parsing: a file that changes meanwhile makes the parsed data stale
    except OSError as error:
        raise ValueError(f"{root}: cannot be read ({error})") from error
    path = root / CACHE_FOLDER / "ferplus.npz"
    table = _read_parsed(path, root, stamp)
    if table is None:
        is_kaggle = sources[0] in KAGGLE_FILES
        images = read_kaggle(root / sources[0], root / VOTES_FILE) if is_kaggle else read_folders(root)
        if not images:
            raise ValueError(f"{root}: no row has an image; looked in {' and '.join(sources[:2])}")
        table = _table(root, images)
        buffer = io.BytesIO()
        arrays = {name: getattr(table, name) for name in _ARRAYS}
        np.savez(buffer, **arrays, stamp=stamp, fingerprint=table.fingerprint)
        remove_leftovers(path.parent)
        try:
            write_atomically(path, buffer.getbuffer())
        except OSError as error:
            warnings.warn(f"{path}: cannot be written ({error}); the data are parsed at each start", stacklevel=2)
    return table


def _sources(root: Path) -> list[str]:
    """Return the files that make up the data set, relative to `root`; for the Kaggle layout the pixels first."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected one with the FER+ files")
    for name in KAGGLE_FILES:
        if (root / name).is_file():
            if not (root / VOTES_FILE).is_file():
                raise ValueError(f"{root}: {VOTES_FILE} with the FER+ votes is missing beside {name}")
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
    """Hash names, sizes and times of the sources."""
    stats = [(name, os.stat(f"{root}/{name}")) for name in sources]
    return hashlib.sha256(repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]).encode()).hexdigest()


def _read_parsed(path: Path, root: Path, stamp: str) -> FERPlusTable | None:
    """Return the data as they were parsed from sources with this stamp; None if there are none, or if damaged."""
    try:
        with np.load(path) as saved:  # a zip file: reading it compares the CRC-32 of each array
            if str(saved["stamp"]) != stamp:
                return None
            arrays = {name: saved[name] for name in _ARRAYS}
            return FERPlusTable(root, **arrays, fingerprint=str(saved["fingerprint"]))
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy and zipfile raise about anything for a damaged file
        warnings.warn(f"{path}: damaged ({error}); parsing the data again", stacklevel=3)
        return None


def _table(root: Path, images: list[FERPlusImage]) -> FERPlusTable:
    pixels = np.stack([one.image for one in images])
    flat = pixels.reshape(len(pixels), -1)
    _, first, inverse = np.unique(flat.view(f"V{flat.shape[1]}").ravel(), return_index=True, return_inverse=True)
    arrays = {
        "names": np.array([one.name for one in images]),
        "images": pixels,
        "votes": np.array([one.votes for one in images], dtype=np.int64),
        "split": np.array([one.split for one in images], dtype=np.int64),
        "identity": first[inverse].astype(np.int64),
    }
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(array.data)
    return FERPlusTable(root, **arrays, fingerprint=digest.hexdigest()[:16])


def describe(table: FERPlusTable, label_mode: LabelMode) -> str:
    """Return lines of text that count kept and dropped images per split and class, and copies of training images.

    Each image counts for the entry with the most votes, the first of equals.

    Args:
        table: The data.
        label_mode: The mode of the training split; validation and test always use the majority rule.
    """
    entries = " ".join(f"{name[:9]:>9}" for name in VOTE_COLUMNS)
    lines = [f"{'FER+':<30} {'images':>6} {entries}"]
    for split in SPLITS:
        if split not in table.splits:
            lines.append(f"{split}: no images")
            continue
        mode: LabelMode = label_mode if split == "train" else "majority"
        rows, kept, _ = table.labelled(split, mode)
        top = table.votes[rows].argmax(axis=1)
        for what, chosen in (("kept", kept), ("dropped", ~kept)):
            counts = " ".join(f"{count:>9}" for count in np.bincount(top[chosen], minlength=len(VOTE_COLUMNS)))
            lines.append(f"{f'{split}, {mode}, {what}':<30} {chosen.sum():>6} {counts}")
    copies = [f"{table.in_train()[table.rows(split)].sum()} of {split}" for split in table.splits if split != "train"]
    lines.append(f"pixel-identical to a training image: {', '.join(copies)}")
    return "\n".join(lines)
