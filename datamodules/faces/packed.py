"""Pack faces: cut them out once, so that any number of them opens at once and is read from disk as needed.

A prepared folder holds

- `images.npy`, uint8 N,H,H,3, RGB, and `landmarks.npy`, float32 N,68,2, (x, y) in pixels of the crop, zero-based;
- `manifest.json`: how the faces were cut out (`hr_size`, `margin`, `min_face_size`, `source`), for each face its name,
  crop side (original pixels) and hash of its pixels, the fingerprint of all pixels and landmarks, and what was
  `left_out` and why;
- `SYNTHETIC`, if the faces were generated.

It appears whole or not at all. `superfer prepare` writes one where it is told to. A folder of images with `.pts` files
gets one inside, `.superfer_cache/faces_<hr_size>_<margin>`, which is made again when one of these files has changed.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.faces.annotations import FaceError, FaceFiles, find_faces, identify_files
from datamodules.faces.cropping import cut_faces
from datamodules.synthetic import SYNTHETIC_MARKER, is_synthetic
from models.heatmaps import NUM_LANDMARKS
from storage.atomic import replace_folder

FORMAT = "superfer-faces-1"

IMAGES, LANDMARKS, MANIFEST = "images.npy", "landmarks.npy", "manifest.json"

LARGEST_FACE, LARGEST_MARGIN = 2048, 10  # what memory is enough for

CACHE_FOLDER = ".superfer_cache"

_SHOWN = 5  # names printed per reason


@dataclass(frozen=True)
class FaceSet:
    """Faces of a prepared folder: all of them, or some.

    Attributes:
        names: file names without suffix; N of them.
        images: uint8 M,H,H,3, RGB: of all faces of the folder, memory-mapped.
        rows: N, where in `images` these faces are.
        landmarks: float32 N,68,2, (x, y) in pixels of the crop, zero-based.
        crop_sides: float N, sides of the squares that were cut out, in pixels of the original images.
        digests: N hashes of the images' pixels.
        summary: one line on what was kept and what was left out, and why.
    """

    names: list[str]
    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    landmarks: NDArray[np.float32]
    crop_sides: NDArray[np.float64]
    digests: list[str]
    summary: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels of a face, uint8 H,H,3, RGB."""
        return self.images[self.rows[index]]

    @property
    def fingerprint(self) -> str:
        """Hash of all pixels and landmarks in their order."""
        return _fingerprint(self.digests, self.landmarks)

    def select(self, chosen: NDArray[np.bool_]) -> "FaceSet":
        """Return the faces where `chosen` (N) is true."""
        kept = np.flatnonzero(chosen)
        return replace(
            self,
            names=[self.names[index] for index in kept],
            rows=self.rows[kept],
            landmarks=self.landmarks[kept],
            crop_sides=self.crop_sides[kept],
            digests=[self.digests[index] for index in kept],
        )

    def at_least(self, min_face_size: float) -> "FaceSet":
        """Return the faces whose crop square has at least this side in original pixels.

        Raises:
            ValueError: there is none.
        """
        large = self.crop_sides >= min_face_size
        if large.all():
            return self
        summary = f"{self.summary}; {large.sum()} of them used, with a crop of at least {min_face_size} px"
        if not large.any():
            raise ValueError(f"no face left to use. {summary}")
        return replace(self.select(large), summary=summary)


def is_prepared(root: Path) -> bool:
    """Whether a folder holds packed faces instead of images with landmarks."""
    return (root / MANIFEST).is_file() or (root / IMAGES).is_file()


def check_crop(hr_size: int, margin: float) -> None:
    """Refuse sizes that no network takes and margins that cut the face off."""
    if not 64 <= hr_size <= LARGEST_FACE or hr_size % 64:
        raise ValueError(f"hr_size is {hr_size}, expected a multiple of 64 pixels, 64 to {LARGEST_FACE}")
    if not 1 <= margin <= LARGEST_MARGIN:
        raise ValueError(f"the crop's margin is {margin}, expected 1 (the landmarks' own box) to {LARGEST_MARGIN}")


def pack_faces(
    root: Path,
    annotations: Path | None,
    out: Path,
    hr_size: int,
    margin: float,
    min_face_size: float = 0,
    sources: str | None = None,
) -> dict[str, Any]:
    """Cut out all faces of a folder and write a prepared folder; faces that cannot be used are left out and listed.

    Args:
        root: folder of the images.
        annotations: see `datamodules.faces.annotations.find_faces`.
        out: folder to write; what is there is replaced.
        hr_size: side of the faces in pixels, a multiple of 64.
        margin: side of the square crop over the larger side of the landmarks' box, at least 1.
        min_face_size: smallest side of the crop square in original pixels.
        sources: see `datamodules.faces.annotations.identify_files`; for a cache.

    Returns:
        The manifest.

    Raises:
        ValueError: an argument is impossible, the source is unusable as a whole, or no face is left.
    """
    check_crop(hr_size, margin)
    if not 0 <= min_face_size < float("inf"):
        raise ValueError(f"min_face_size is {min_face_size}, expected 0 or more pixels")
    files = find_faces(root, annotations)
    settings = {"hr_size": hr_size, "margin": margin, "min_face_size": min_face_size, "source": files.source}
    manifest: dict[str, Any] = {"format": FORMAT, **settings, "sources": sources}

    def write(folder: Path) -> None:
        manifest.update(_write_arrays(folder, files, hr_size, margin, min_face_size))
        if not manifest["names"]:
            raise ValueError(f"{files.source}: no face left to use; {describe_left_out(manifest)}")
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=0) + "\n")
        if is_synthetic(root):
            (folder / SYNTHETIC_MARKER).touch()

    replace_folder(out, write)
    return manifest


def describe_left_out(manifest: dict[str, Any]) -> str:
    """Say in one line what was left out: for each reason, how many faces, and the first names."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for entry in manifest["left_out"]:
        by_reason[entry["reason"]].append(entry["name"])
    reasons = [
        f"{reason}: {len(names)} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for reason, names in sorted(by_reason.items())
    ]
    return "; ".join([f"left out {len(manifest['left_out'])}", *reasons])


def open_faces(root: Path, hr_size: int, margin: float) -> FaceSet:
    """Open a prepared folder, or one of images with `.pts` files, which is packed first; images stay on disk.

    Raises:
        ValueError: the faces are of another size or margin, the folder is damaged, or no face in it can be used.
    """
    faces = (_open_prepared if is_prepared(root) else _open_raw)(root, hr_size, margin)
    return replace(faces, summary=f"{root}: {faces.summary}")


def _open_raw(root: Path, hr_size: int, margin: float) -> FaceSet:
    """Open the pack that belongs to a folder of images.

    Of several processes one makes it, and the others wait. Where nothing can be written, each makes one of its own in
    a temporary folder.
    """
    sources = identify_files(root)
    cache = root / CACHE_FOLDER / f"faces_{hr_size}_{margin}"
    with contextlib.suppress(ValueError):  # there is none yet, or it is damaged, or of other files
        return _open_prepared(cache, hr_size, margin, sources)
    try:
        cache.parent.mkdir(exist_ok=True)
        with cache.with_name(f"{cache.name}.lock").open("w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            with contextlib.suppress(ValueError):  # another process may have made it
                return _open_prepared(cache, hr_size, margin, sources)
            print(f"{root}: cutting faces out and packing them in {cache}", flush=True)
            pack_faces(root, None, cache, hr_size, margin, sources=sources)
            return _open_prepared(cache, hr_size, margin)
    except OSError as error:
        warnings.warn(f"{cache} cannot be written ({error}); faces are cut out at every start", stacklevel=3)
    with tempfile.TemporaryDirectory() as folder:  # what is mapped lasts without a name
        pack_faces(root, None, Path(folder) / "faces", hr_size, margin)
        return _open_prepared(Path(folder) / "faces", hr_size, margin)


def _open_prepared(root: Path, hr_size: int, margin: float, sources: str | None = None) -> FaceSet:
    """Open a prepared folder; with `sources`, refuse one that was made of other files."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        count, size = len(manifest["names"]), manifest["hr_size"]
        faces = FaceSet(
            names=manifest["names"],
            images=np.load(root / IMAGES, mmap_mode="r"),
            rows=np.arange(count),
            landmarks=np.load(root / LANDMARKS),
            crop_sides=np.array(manifest["crop_sides"], dtype=np.float64),
            digests=manifest["digests"],
            summary=f"{count} faces; {describe_left_out(manifest)}",
        )
        intact = (
            manifest["format"] == FORMAT
            and (faces.images.dtype, faces.images.shape) == (np.uint8, (count, size, size, 3))
            and faces.landmarks.shape == (count, NUM_LANDMARKS, 2)
            and len(faces.crop_sides) == len(faces.digests) == count
            and faces.fingerprint == manifest["fingerprint"]
            and sources in (None, manifest.get("sources"))
        )
        found, source = (size, manifest["margin"]), manifest["source"]
    except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{root} is damaged ({type(error).__name__}: {error}); prepare it again") from error
    if not intact:
        raise ValueError(f"{root} is damaged: its arrays are not the faces that {MANIFEST} lists; prepare it again")
    if found != (hr_size, margin):
        raise ValueError(
            f"{root} holds faces of {found[0]} px with margin {found[1]}, expected hr_size {hr_size} and crop_margin"
            f" {margin}. Prepare such faces from {source}: superfer prepare --faces FOLDER --out FOLDER"
            f" --hr_size {hr_size} --margin {margin}"
        )
    return faces


def _fingerprint(digests: Sequence[str], landmarks: NDArray[np.float32]) -> str:
    digest = hashlib.sha256("".join(digests).encode())
    digest.update(np.ascontiguousarray(landmarks).data)
    return digest.hexdigest()[:16]


def _write_arrays(folder: Path, files: FaceFiles, hr_size: int, margin: float, min_face_size: float) -> dict[str, Any]:
    """Write both arrays, face by face; return what the manifest says about the faces."""
    names: list[str] = []
    sides: list[float] = []
    digests: list[str] = []
    landmarks: list[NDArray[np.float32]] = []
    left_out: list[dict[str, str]] = []
    with (folder / IMAGES).open("xb") as file:
        file.write(_npy_header(0, hr_size))
        for name, face in cut_faces(files, hr_size, margin, min_face_size):
            if isinstance(face, FaceError):
                left_out.append({"name": name, "reason": face.reason, "detail": str(face)})
                continue
            names.append(name)
            sides.append(face.side)
            digests.append(face.digest)
            landmarks.append(face.landmarks)
            file.write(np.ascontiguousarray(face.image).data)
        file.seek(0)
        file.write(_npy_header(len(names), hr_size))
    points = np.array(landmarks, dtype=np.float32).reshape(-1, NUM_LANDMARKS, 2)
    np.save(folder / LANDMARKS, points)
    return {
        "fingerprint": _fingerprint(digests, points),
        "names": names,
        "crop_sides": sides,
        "digests": digests,
        "left_out": left_out,
    }


def _npy_header(count: int, size: int) -> bytes:
    """Header of a `.npy` file of `count` images; numpy leaves room in it for this number to grow."""
    header = io.BytesIO()
    shape = (count, size, size, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()
