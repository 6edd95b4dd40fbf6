"""Sets of cropped faces: cutting them out in parallel, choosing among them, keeping photographs apart.

**The photograph of a face** is its name without a trailing `_` and one or two digits: `100040721_1` and `100040721_2`
are two crops of the photograph `100040721`. Training and validation must not share one.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from datamodules.faces.annotations import FaceFiles, find_faces
from datamodules.faces.cropping import Face, FaceError, Reason, cut_face

_CHUNK = 64  # faces cut out before the first of them is passed on: at most 28 MB at 384 px

_TOLERATED: tuple[Reason, ...] = ("face too small", "image without landmarks")  # in a folder that should be whole


class Images(Protocol):
    """Images by position: an array in memory, or one on disk."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class _SelectedImages:
    """Some images of an array, without a copy: the array may be on disk and larger than the memory."""

    array: Images
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        return self.array[int(self.rows[index])]


@dataclass(frozen=True)
class FaceSet:
    """Cropped faces.

    Attributes:
        names: file names without suffix; N of them.
        images: uint8 H,H,3, RGB, by position.
        landmarks: float32 N,68,2, (x, y) in pixels of the crop, zero-based.
        crop_sides: float N, sides of the squares that were cut out, in pixels of the original images.
        digests: N hashes of the images' pixels.
        summary: one line on what was kept and what was left out, and why.
    """

    names: list[str]
    images: Images
    landmarks: NDArray[np.float32]
    crop_sides: NDArray[np.float64]
    digests: list[str]
    summary: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """Hash of all pixels and landmarks in their order; the same whether the faces are on disk or in memory."""
        return fingerprint_of(self.digests, self.landmarks)

    def select(self, chosen: NDArray[np.bool_], summary: str) -> "FaceSet":
        """The faces where `chosen` (N) is true."""
        rows = np.flatnonzero(chosen)
        return FaceSet(
            names=[self.names[row] for row in rows],
            images=_SelectedImages(self.images, rows),
            landmarks=self.landmarks[rows],
            crop_sides=self.crop_sides[rows],
            digests=[self.digests[row] for row in rows],
            summary=summary,
        )

    def at_least(self, min_face_size: float) -> "FaceSet":
        """The faces whose crop square has at least this side in original pixels.

        Raises:
            ValueError: there is none.
        """
        large = self.crop_sides >= min_face_size
        if large.all():
            return self
        summary = f"{self.summary}; {int(large.sum())} of them used, with a crop of at least {min_face_size} px"
        if not large.any():
            raise ValueError(f"no face left to use. {summary}")
        return self.select(large, summary)


def fingerprint_of(digests: Sequence[str], landmarks: NDArray[np.float32]) -> str:
    """Fingerprint of faces with these hashes of their pixels and these landmarks, 16 hexadecimal digits."""
    digest = hashlib.sha256("".join(digests).encode())
    digest.update(np.ascontiguousarray(landmarks).data)
    return digest.hexdigest()[:16]


def photograph(name: str) -> str:
    """Name of the photograph that a face was cut from; see the file's docstring."""
    return re.sub(r"_\d{1,2}$", "", name)


def cut_faces(
    files: FaceFiles, size: int, margin: float, min_face_size: float
) -> Iterator[tuple[str, Face | FaceError]]:
    """Cut out every face, several at a time, in the order of their names, with a bounded number in memory.

    Yields:
        Name and face, or why there is none.
    """

    def cut(name: str) -> Face | FaceError:
        try:
            if name not in files.landmarks:
                raise FaceError("image without landmarks", f"{files.images[name]}: no landmarks for it")
            if name not in files.images:
                raise FaceError("landmarks without image", f"{name}: has landmarks, but no image of that name")
            return cut_face(files.images[name], files.landmarks[name], size, margin, min_face_size)
        except FaceError as error:
            return error

    names = sorted(set(files.images) | set(files.landmarks))
    workers = min(8, os.cpu_count() or 1)  # threads: PIL decodes and resizes without holding the interpreter lock
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            yield from zip(chunk, pool.map(cut, chunk), strict=True)


def load_faces(root: Path, size: int, margin: float, min_face_size: float) -> FaceSet:
    """Read a folder of images with `.pts` files, crop the faces into memory, and say what was kept.

    Images without a `.pts` file and faces that are too small are left out and counted; anything damaged is an error.
    Preparing the folder first (`prepare.py`) leaves out what is damaged, and reads other landmarks too.

    Args:
        root: folder with images and `.pts` files.
        size: side of the crops in pixels.
        margin: see `datamodules.faces.cropping.crop_face`.
        min_face_size: smallest side of the crop square in original pixels.

    Raises:
        ValueError: the folder is missing or gives no face, or has two images for one face.
        FaceError: a file is damaged, has no image, or its landmarks are impossible.
    """
    names: list[str] = []
    faces: list[Face] = []
    left_out = dict.fromkeys(_TOLERATED, 0)
    for name, face in cut_faces(find_faces(root), size, margin, min_face_size):
        if isinstance(face, Face):
            names.append(name)
            faces.append(face)
        elif face.reason in _TOLERATED:
            left_out[face.reason] += 1
        else:
            raise face
    summary = (
        f"{root}: {len(faces)} faces kept; left out {left_out['face too small']} with a crop below {min_face_size:g} px"
        f" and {left_out['image without landmarks']} images without a .pts file"
    )
    if not faces:
        raise ValueError(f"no face left to use. {summary}")
    return FaceSet(
        names=names,
        images=np.stack([face.image for face in faces]),
        landmarks=np.stack([face.landmarks for face in faces]),
        crop_sides=np.array([face.crop_side for face in faces]),
        digests=[face.digest for face in faces],
        summary=summary,
    )


def hold_out(names: Sequence[str], fraction: float) -> NDArray[np.bool_]:
    """Which faces are held out for validation: those of a fraction of the photographs.

    A photograph is held out or not by a hash of its name: whatever the seed, and whichever others are there.

    Args:
        names: of the faces; N.
        fraction: expected share of the photographs, between 0 and 1.

    Returns:
        bool N.
    """
    hashes = [hashlib.sha256(photograph(name).encode()).digest()[:8] for name in names]
    return np.array([int.from_bytes(value, "big") < fraction * 2**64 for value in hashes])


def refuse_shared(training: FaceSet, validation: FaceSet) -> None:
    """Refuse to validate with what was trained on.

    Raises:
        ValueError: a photograph's name or the same pixels occur in both; names an example.
    """
    photographs = [[photograph(name) for name in faces.names] for faces in (training, validation)]
    for what, (trained, validated) in (
        ("the same photograph", photographs),
        ("the same pixels", [training.digests, validation.digests]),
    ):
        trained_names = dict(zip(trained, training.names, strict=True))
        shared = [row for row, key in enumerate(validated) if key in trained_names]
        if shared:
            raise ValueError(
                f"{len(shared)} validation faces are of {what} as a training face, for example"
                f" {validation.names[shared[0]]!r} and, in the training set, {trained_names[validated[shared[0]]]!r};"
                " remove them from one of the folders, or rename faces that only happen to have the same name"
                " (the photograph's name is the face's without a trailing _1 to _99)"
            )
