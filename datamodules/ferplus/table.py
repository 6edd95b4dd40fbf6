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
from functools import cache
from pathlib import Path

import numpy as np

from datamodules.ferplus.reading import FOLDERS, VOTES_FILE, Images, read_folders, read_kaggle
from datamodules.labels import SPLITS, VOTE_COLUMNS, LabelMode, Split, process_votes
from storage.atomic import remove_leftovers, write_atomically

KAGGLE_FILES = ("fer2013.csv", "icml_face_data.csv")
CACHE_FOLDER = ".superfer_cache"
_ARRAYS = ("names", "images", "votes", "split", "identity")


@dataclass(frozen=True, eq=False)
class FERPlusTable:
    """Every named image of a data set."""

    root: Path  # folder of the data
    names: np.ndarray  # str N
    images: np.ndarray  # uint8 N,48,48
    votes: np.ndarray  # int64 N,10
    split: np.ndarray  # int64 N, index into `SPLITS`
    identity: np.ndarray  # int64 N, the first row that has the same pixels
    fingerprint: str  # hash of all arrays

    def rows(self, split: Split) -> np.ndarray:
        """Return the row numbers of a split, ascending; none where the split has no images."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    @cache  # noqa: B019  (a program opens one table or two, and asks again and again)
    def labelled(self, split: Split, mode: LabelMode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows of a split, which of them the mode keeps (bool N), and their targets (float32 N,8)."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
        rows = self.rows(split)
        if not len(rows):
            others = ", ".join(other for other in SPLITS if len(self.rows(other)))
            raise ValueError(f"{self.root}: the split {split!r} has no images; splits with images: {others}")
        return rows, *process_votes(self.votes[rows], mode)

    def in_train(self) -> np.ndarray:
        """Return which images are pixel-identical to one of the training split, bool N."""
        return np.isin(self.identity, self.identity[self.rows("train")])


def open_table(root: str | Path) -> FERPlusTable:
    """Open a data set in one of the layouts above, parsing it only if a file changed its name, size or time."""
    root = Path(root).resolve()
    sources = _sources(root)
    stats = [(name, os.stat(f"{root}/{name}")) for name in sources]
    # Before parsing: a file that changes meanwhile makes the parsed data stale.
    stamp = hashlib.sha256(repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]).encode()).hexdigest()
    path = root / CACHE_FOLDER / "ferplus.npz"
    table = _read_parsed(path, root, stamp) if path.is_file() else None
    if table is None:
        is_kaggle = sources[0] in KAGGLE_FILES
        images = read_kaggle(root / sources[0], root / VOTES_FILE) if is_kaggle else read_folders(root)
        if not images:
            raise ValueError(f"{root}: no row has an image; looked in {' and '.join(sources[:2])}")
        table = _make_table(root, images)
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
        raise ValueError(f"{root}: no such folder, expected one with the FER+ files")
    for name in KAGGLE_FILES:
        if (root / name).is_file():
            if not (root / VOTES_FILE).is_file():
                raise ValueError(f"{root}: {VOTES_FILE} with the FER+ votes is missing beside {name}")
            return [name, VOTES_FILE]
    folders = [folder for folder in FOLDERS if (root / folder).is_dir()]
    if not folders:
        wanted = f"{' or '.join(KAGGLE_FILES)} with {VOTES_FILE}, and for the folders {', '.join(FOLDERS)}"
        raise ValueError(f"{root}: no FER+ data; looked for {wanted}")
    # Strings, not paths: there are tens of thousands, and this runs each time the data are opened.
    files = [f"{folder}/{entry.name}" for folder in folders for entry in os.scandir(root / folder) if entry.is_file()]
    return [VOTES_FILE] * (root / VOTES_FILE).is_file() + sorted(files)


def _read_parsed(path: Path, root: Path, stamp: str) -> FERPlusTable | None:
    """Return the data parsed from sources with this stamp; None if they are of another one, or damaged."""
    try:
        with np.load(path) as saved:  # a zip file: reading it compares the CRC-32 of each array
            if str(saved["stamp"]) != stamp:
                return None
            arrays = {name: saved[name] for name in _ARRAYS}
            return FERPlusTable(root, **arrays, fingerprint=str(saved["fingerprint"]))
    except Exception as error:  # numpy and zipfile raise about anything for a damaged file
        warnings.warn(f"{path}: damaged ({error}); parsing the data again", stacklevel=3)
        return None


def _make_table(root: Path, images: Images) -> FERPlusTable:
    rows, faces = zip(*images, strict=True)
    pixels = np.stack(faces)
    first: dict[bytes, int] = {}
    arrays = {
        "names": np.array([row.name for row in rows]),
        "images": pixels,
        "votes": np.array([row.votes for row in rows], dtype=np.int64),
        "split": np.array([row.split for row in rows], dtype=np.int64),
        "identity": np.array([first.setdefault(face.tobytes(), n) for n, face in enumerate(faces)], dtype=np.int64),
    }
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(array.data)
    return FERPlusTable(root, **arrays, fingerprint=digest.hexdigest()[:16])


def describe(table: FERPlusTable, label_mode: LabelMode) -> str:
    """Return lines that count kept and dropped images per split and most voted entry, and copies of training images.

    `label_mode` is that of the training split; validation and test always use the majority rule.
    """
    lines = [" ".join([f"{'FER+':<30} {'images':>6}", *(f"{name[:9]:>9}" for name in VOTE_COLUMNS)])]
    copies = []
    for split in SPLITS:
        if not len(table.rows(split)):
            lines.append(f"{split}: no images")
            continue
        mode: LabelMode = label_mode if split == "train" else "majority"
        rows, kept, _ = table.labelled(split, mode)
        top = table.votes[rows].argmax(axis=1)
        for what, chosen in (("kept", kept), ("dropped", ~kept)):
            counts = " ".join(f"{count:>9}" for count in np.bincount(top[chosen], minlength=len(VOTE_COLUMNS)))
            lines.append(f"{f'{split}, {mode}, {what}':<30} {chosen.sum():>6} {counts}")
        if split != "train":
            copies.append(f"{table.in_train()[rows].sum()} of {split}")
    return "\n".join([*lines, f"pixel-identical to a training image: {', '.join(copies)}"])
