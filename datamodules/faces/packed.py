"""Pack faces: cut them out once, so that any number of them opens at once and is read from disk as needed.

A prepared folder holds

- `images.npy`, uint8 N,H,H,3, RGB, and `landmarks.npy`, float32 N,68,2, (x, y) in pixels of the crop, zero-based;
- `manifest.json`: how the faces were cut out (`hr_size`, `margin`, `min_face_size`, `source`), for each face its name,
  crop side (original pixels) and hash of its pixels, and what was `left_out` and why;
- `SYNTHETIC`, if the faces were generated.

It appears whole or not at all. `superfer prepare` writes one where it is told to. A folder of images with `.pts` files
gets one inside, `.superfer_cache/faces_<hr_size>_<margin>`, which is made again when one of these files has changed.
"""

import contextlib
import hashlib
import io
import json
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.faces.annotations import FaceError, FaceFiles, find_faces, identify_files
from datamodules.faces.cropping import cut_faces
from datamodules.image_folder import digest_of
from datamodules.synthetic import SYNTHETIC_MARKER, is_synthetic
from models.heatmaps import NUM_LANDMARKS
from storage.atomic import replace_folder
from storage.reading import read_mapping

FORMAT = "superfer-faces-1"
IMAGES, LANDMARKS, MANIFEST = "images.npy", "landmarks.npy", "manifest.json"


@dataclass(frozen=True)
class FaceSet:
    """Faces of a prepared folder: all of them, or some."""

    names: list[str]  # file names without suffix; N of them
    images: NDArray[np.uint8]  # M,H,H,3, RGB: of all faces of the folder, memory-mapped
    rows: NDArray[np.int64]  # N, where in `images` these faces are
    landmarks: NDArray[np.float32]  # N,68,2, (x, y) in pixels of the crop, zero-based
    crop_sides: NDArray[np.float64]  # N, sides of the squares that were cut out, in pixels of the original images
    digests: list[str]  # N hashes of the images' pixels
    summary: str = ""  # one line on what the folder holds, and what was left out and why

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels of a face, uint8 H,H,3, RGB; refuse those that have changed since they were packed."""
        image = self.images[self.rows[index]]
        if digest_of(image.tobytes())[:32] != self.digests[index]:
            problem = f"face {self.names[index]} has changed; prepare it again, or delete .superfer_cache"
            raise ValueError(f"{IMAGES} is damaged: {problem}")
        return image

    @property
    def fingerprint(self) -> str:
        """Hash of all pixels and landmarks in their order."""
        digest = hashlib.sha256("".join(self.digests).encode())
        digest.update(np.ascontiguousarray(self.landmarks).data)
        return digest.hexdigest()[:16]

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


def check_crop(hr_size: int, margin: float) -> None:
    """Refuse sizes that no network takes, and crops that cut faces off or exceed the memory."""
    if not 64 <= hr_size <= 2048 or hr_size % 64:
        raise ValueError(f"hr_size is {hr_size}, expected a multiple of 64 pixels, 64 to 2048")
    if not 1 <= margin <= 10:
        raise ValueError(f"the crop's margin is {margin}, expected 1 (the landmarks' own box) to 10")


def pack_faces(
    root: Path, annotations: Path | None, out: Path, hr_size: int, margin: float, min_face_size: float = 0
) -> FaceSet:
    """Cut out all faces of a folder and replace `out` by a prepared folder of them, which is returned open.

    Faces that cannot be used are left out and listed, as are those whose crop has less than `min_face_size` original
    pixels a side. What is returned stays readable if another process replaces the folder.
    """
    check_crop(hr_size, margin)
    if not min_face_size >= 0:  # also refuses nan
        raise ValueError(f"min_face_size is {min_face_size}, expected 0 or more pixels")
    source = f"{root} with {annotations}" if annotations else str(root)
    settings = {"hr_size": hr_size, "margin": margin, "min_face_size": min_face_size, "source": source}
    manifest: dict[str, Any] = {"format": FORMAT, **settings, "sources": identify_files(root)}
    files = find_faces(root, annotations)
    packed: list[FaceSet] = []

    def write(folder: Path) -> None:
        manifest.update(_write_arrays(folder, files, hr_size, margin, min_face_size))
        if not manifest["names"]:
            raise ValueError(f"{source}: no face left to use: {_describe(manifest)}")
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=0) + "\n")
        if is_synthetic(root):
            (folder / SYNTHETIC_MARKER).touch()
        packed.append(_open_prepared(folder, hr_size, margin))

    replace_folder(out, write)
    return packed[0]


def _write_arrays(folder: Path, files: FaceFiles, hr_size: int, margin: float, min_face_size: float) -> dict[str, Any]:
    """Write both arrays, face by face; return what the manifest says about the faces."""
    names, sides, digests, landmarks, left_out = [], [], [], [], []
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
    np.save(folder / LANDMARKS, np.array(landmarks))
    return {"names": names, "crop_sides": sides, "digests": digests, "left_out": left_out}


def _npy_header(count: int, size: int) -> bytes:
    """Header of a `.npy` file of `count` images; numpy leaves room in it for this number to grow."""
    header = io.BytesIO()
    shape = (count, size, size, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _describe(manifest: dict[str, Any]) -> str:
    """Say in one line how many faces there are, and how many were left out for which reason, with an example."""
    left_out = manifest["left_out"]
    counts = Counter(entry["reason"] for entry in left_out)
    examples = {entry["reason"]: entry["name"] for entry in left_out}
    reasons = [f"; {reason}: {counts[reason]} (such as {examples[reason]})" for reason in sorted(counts)]
    return f"{len(manifest['names'])} faces; left out {len(left_out)}{''.join(reasons)}"


def open_faces(root: Path, hr_size: int, margin: float) -> FaceSet:
    """Open a prepared folder, or one of images with `.pts` files, which is packed first; images stay on disk."""
    prepared = (root / MANIFEST).is_file() or (root / IMAGES).is_file()
    faces = (_open_prepared if prepared else _open_raw)(root, hr_size, margin)
    return replace(faces, summary=f"{root}: {faces.summary}")


def _open_raw(root: Path, hr_size: int, margin: float) -> FaceSet:
    """Open the pack that belongs to a folder of images; pack them first where there is none that fits."""
    cache = root / ".superfer_cache" / f"faces_{hr_size}_{margin}"
    with contextlib.suppress(ValueError):  # there is none yet, or it is damaged, or of other files
        return _open_prepared(cache, hr_size, margin, sources=identify_files(root))
    print(f"{root}: cutting faces out and packing them in {cache}", flush=True)
    try:
        return pack_faces(root, None, cache, hr_size, margin)
    except OSError as error:
        warnings.warn(f"{cache} cannot be written ({error}); faces are cut out at every start", stacklevel=3)
    with tempfile.TemporaryDirectory() as folder:  # what is mapped lasts without a name
        return pack_faces(root, None, Path(folder) / "faces", hr_size, margin)


def _open_prepared(root: Path, hr_size: int, margin: float, sources: str | None = None) -> FaceSet:
    """Open a prepared folder; with `sources`, refuse one that was made of other files."""
    try:
        for name in (IMAGES, LANDMARKS):
            if not (root / name).is_file():  # a pipe would be waited for
                raise ValueError(f"{name} is not a regular file")
        manifest = read_mapping(root / MANIFEST)
        count, size = len(manifest["names"]), manifest["hr_size"]
        for name, kind in (("names", str), ("digests", str), ("crop_sides", float)):
            if [type(value) for value in manifest[name]] != [kind] * count or not isinstance(manifest[name], list):
                raise ValueError(f"{name} in {MANIFEST} are not a list of {count} {kind.__name__}")
        faces = FaceSet(
            names=manifest["names"],
            images=np.load(root / IMAGES, mmap_mode="r"),
            rows=np.arange(count),
            landmarks=np.load(root / LANDMARKS),
            crop_sides=np.array(manifest["crop_sides"]),
            digests=manifest["digests"],
            summary=_describe(manifest),
        )
        shapes = faces.images.shape, faces.landmarks.shape
        if manifest["format"] != FORMAT or shapes != ((count, size, size, 3), (count, NUM_LANDMARKS, 2)):
            raise ValueError(f"its arrays are not the faces that {MANIFEST} lists")
        if sources not in (None, manifest["sources"]):
            raise ValueError("its images have changed")
    except Exception as error:  # damaged files make the readers raise almost anything
        reason = f"{type(error).__name__}: {error}".replace(f"{root}/", "")[:200]
        raise ValueError(f"{root} is damaged ({reason}); prepare it again") from error
    if (size, manifest["margin"]) != (hr_size, margin):
        found = f"{size} px with margin {manifest['margin']}, expected hr_size {hr_size} and crop_margin {margin}"
        command = f"superfer prepare --faces FOLDER --out FOLDER --hr_size {hr_size} --margin {margin}"
        raise ValueError(f"{root} holds faces of {found}. Prepare such faces from {manifest['source']}: {command}")
    return faces
