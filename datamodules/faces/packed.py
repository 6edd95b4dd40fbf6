"""Prepared faces: cut out once, and packed so that any number of them opens at once and is read from disk as needed.

A prepared folder holds

- `images.npy`, uint8 N,H,H,3, RGB, and `landmarks.npy`, float32 N,68,2, (x, y) in pixels of the crop, zero-based;
- `manifest.json`: how the faces were cut out (`hr_size`, `margin`, `min_face_size`, `source`), for each face its name,
  photograph, crop side (original pixels) and hash of its pixels, the fingerprint of all pixels and landmarks, and what
  was `left_out` and why;
- `SYNTHETIC`, if the faces were generated.

It appears whole or not at all. `prepare.py` is the command that writes it.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from datamodules.faces.annotations import FaceFiles, find_faces
from datamodules.faces.cropping import FaceError
from datamodules.faces.sets import FaceSet, cut_faces, fingerprint_of, photograph
from datamodules.synthetic import SYNTHETIC_MARKER, is_synthetic
from models.heatmaps import NUM_LANDMARKS
from storage.atomic import replace_folder

FORMAT = "superfer-faces-1"

IMAGES, LANDMARKS, MANIFEST = "images.npy", "landmarks.npy", "manifest.json"

LARGEST_FACE, LARGEST_MARGIN = 2048, 10  # what memory is enough for

_SHOWN = 5  # names printed per reason

_PER_FACE = ("names", "photographs", "crop_sides", "digests")  # lists of the manifest


def is_prepared(root: Path) -> bool:
    """Whether a folder holds packed faces instead of images with landmarks."""
    return (root / IMAGES).is_file()


def pack_faces(
    root: Path, annotations: Path | None, out: Path, hr_size: int, margin: float, min_face_size: float
) -> dict[str, Any]:
    """Cut out all faces of a folder and write a prepared folder; faces that cannot be used are left out and listed.

    Args:
        root: folder of the images.
        annotations: see `datamodules.faces.annotations.find_faces`.
        out: folder to write; one that was prepared before is replaced.
        hr_size: side of the faces in pixels, a multiple of 64.
        margin: side of the square crop over the larger side of the landmarks' box, at least 1.
        min_face_size: smallest side of the crop square in original pixels.

    Returns:
        The manifest.

    Raises:
        ValueError: an argument is impossible, the source is unusable as a whole, no face is left, or `out` holds
            something else.
    """
    check_crop(hr_size, margin)
    if not 0 <= min_face_size < float("inf"):
        raise ValueError(f"min_face_size must be 0 or more pixels, got {min_face_size}")
    _refuse_foreign(out)
    files = find_faces(root, annotations)
    settings = {"hr_size": hr_size, "margin": margin, "min_face_size": min_face_size, "source": files.source}
    manifest: dict[str, Any] = {"format": FORMAT, **settings}

    def write(folder: Path) -> None:
        manifest.update(_write_arrays(folder, files, hr_size, margin, min_face_size))
        if not manifest["names"]:
            raise ValueError(f"{files.source}: no face left to use\n{describe_left_out(manifest)}")
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=0) + "\n")
        if is_synthetic(root):
            (folder / SYNTHETIC_MARKER).touch()

    replace_folder(out, write)
    return manifest


def _refuse_foreign(out: Path) -> None:
    """A prepared folder may be replaced, anything else may be somebody's work."""
    if out.is_dir() and not any(out.iterdir()):
        return
    try:
        if out.exists():
            _read_manifest(out)
    except ValueError as error:
        raise ValueError(f"{out} exists and holds no prepared faces; give an empty or new folder") from error
    known = {IMAGES, LANDMARKS, MANIFEST, SYNTHETIC_MARKER}
    others = sorted(path.name for path in out.iterdir() if path.name not in known) if out.exists() else []
    if others:
        raise ValueError(f"{out} holds {others[0]}, too, which would be lost; give an empty or new folder")


def check_crop(hr_size: int, margin: float) -> None:
    """Refuse sizes that no network takes and margins that cut the face off.

    Raises:
        ValueError: names the value and what is allowed.
    """
    if not 64 <= hr_size <= LARGEST_FACE or hr_size % 64:
        raise ValueError(
            f"hr_size must be a positive multiple of 64 pixels, got {hr_size} (the most is {LARGEST_FACE})"
        )
    if not 1 <= margin <= LARGEST_MARGIN:
        raise ValueError(
            f"the crop's margin must be at least 1 (the landmarks' own box), got {margin} (at most {LARGEST_MARGIN})"
        )


def _write_arrays(folder: Path, files: FaceFiles, hr_size: int, margin: float, min_face_size: float) -> dict[str, Any]:
    """Write both arrays, face by face; returns what the manifest says about the faces."""
    names: list[str] = []
    sides: list[float] = []
    digests: list[str] = []
    landmarks: list[NDArray[np.float32]] = []
    left_out: list[dict[str, str]] = []

    def usable() -> Iterator[NDArray[np.uint8]]:
        for name, face in cut_faces(files, hr_size, margin, min_face_size):
            if isinstance(face, FaceError):
                left_out.append({"name": name, "reason": face.reason, "detail": str(face)})
                continue
            names.append(name)
            sides.append(face.crop_side)
            digests.append(face.digest)
            landmarks.append(face.landmarks)
            yield face.image

    with (folder / IMAGES).open("xb") as file:
        _write_npy(file, usable(), (hr_size, hr_size, 3))
    points = np.array(landmarks, dtype=np.float32).reshape(-1, NUM_LANDMARKS, 2)
    np.save(folder / LANDMARKS, points)
    return {
        "fingerprint": fingerprint_of(digests, points),
        "names": names,
        "photographs": [photograph(name) for name in names],
        "crop_sides": sides,
        "digests": digests,
        "left_out": left_out,
    }


def _write_npy(file: BinaryIO, images: Iterator[NDArray[np.uint8]], shape: tuple[int, ...]) -> None:
    """Write a `.npy` file of as many images as come: numpy leaves room in its header for the number to grow."""

    def write_header(count: int) -> int:
        file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        return file.tell()

    begin = write_header(0)
    count = 0
    for count, image in enumerate(images, start=1):  # noqa: B007  # used below
        file.write(np.ascontiguousarray(image).data)
    if write_header(count) != begin:
        raise RuntimeError(f"the header of {count} images does not fit where that of none was")


def describe_left_out(manifest: dict[str, Any]) -> str:
    """What was left out: one line per reason, with its number and first names."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for entry in manifest["left_out"]:
        by_reason[entry["reason"]].append(entry["name"])
    lines = [f"left out: {len(manifest['left_out'])}"]
    for reason, names in sorted(by_reason.items()):
        more = ", ..." if len(names) > _SHOWN else ""
        lines.append(f"  {reason}: {len(names)} ({', '.join(names[:_SHOWN])}{more})")
    return "\n".join(lines)


def open_faces(root: Path, hr_size: int, margin: float) -> FaceSet:
    """Open a prepared folder; images stay on disk.

    Args:
        root: the folder.
        hr_size: side that the faces must have.
        margin: margin that they must have been cut out with.

    Raises:
        ValueError: the faces are of another size or margin, or the folder is damaged.
    """
    manifest = _read_manifest(root)
    if (manifest["hr_size"], manifest["margin"]) != (hr_size, margin):
        raise ValueError(
            f"{root} holds faces of {manifest['hr_size']} px with margin {manifest['margin']}; asked for are hr_size"
            f" {hr_size} and crop_margin {margin}. Prepare such faces from {manifest['source']}: superfer prepare"
            f" --faces FOLDER --out FOLDER --hr_size {hr_size} --margin {margin}"
        )
    names, digests = manifest["names"], manifest["digests"]
    try:
        images = np.load(root / IMAGES, mmap_mode="r")
        landmarks = np.load(root / LANDMARKS)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{root} is damaged ({error}); prepare it again") from error
    expected = (("uint8", (len(names), hr_size, hr_size, 3)), ("float32", (len(names), NUM_LANDMARKS, 2)))
    if tuple((str(array.dtype), array.shape) for array in (images, landmarks)) != expected:
        raise ValueError(f"{root} is damaged: its arrays are not of the {len(names)} faces it lists; prepare it again")
    if fingerprint_of(digests, landmarks) != manifest["fingerprint"]:
        raise ValueError(f"{root} is damaged: landmarks and {MANIFEST} do not belong together; prepare it again")
    summary = f"{root}: {len(names)} prepared faces; left out when they were prepared: {len(manifest['left_out'])}"
    return FaceSet(names, images, landmarks, np.array(manifest["crop_sides"], dtype=np.float64), digests, summary)


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        lengths = {len(manifest[key]) for key in _PER_FACE}
        missing = {"hr_size", "margin", "source", "fingerprint", "left_out"} - set(manifest)
        if manifest["format"] == FORMAT and len(lengths) == 1 and not missing:
            return dict(manifest)
        problem = f"format {manifest['format']!r}, expected {FORMAT!r} with all its entries"
    except (OSError, ValueError, TypeError, KeyError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise ValueError(f"{path}: not the manifest of prepared faces ({problem}); prepare the folder again")
