"""Reading folders of face images with `.pts` landmarks, and cutting the faces out.

The `.pts` format of the iBUG annotations:

    version: 1
    n_points: 68
    {
    89.688 165.762        one-based x y: 1.0 is the centre of the first pixel
    ...
    }
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.heatmaps import NUM_LANDMARKS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class FaceSet:
    """Cropped faces in memory.

    Attributes:
        names: file names without suffix, sorted; N of them.
        images: uint8 N,H,H,3, RGB.
        landmarks: float32 N,68,2, (x, y) in pixels of the crop, zero-based.
        summary: one line on what was kept and what was left out, and why.
    """

    names: list[str]
    images: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    summary: str


@dataclass(frozen=True)
class _Face:
    image: NDArray[np.uint8]
    landmarks: NDArray[np.float32]


def read_pts(path: Path) -> NDArray[np.float64]:
    """Read 68 landmarks.

    Returns:
        float64 68,2, (x, y) in image pixels, zero-based (the file's values minus one).

    Raises:
        ValueError: the file is not 68 finite points in the iBUG format; names file, line and content.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file, expected iBUG landmarks ('version: 1', ...)") from None
    rows = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    _check_header(path, rows)
    body = rows[3:]
    if not body or body[-1][1] != "}":
        number, text = rows[-1]
        raise ValueError(f"{path}, line {number}: the file ends with {text!r}, expected a closing '}}'")
    points = [_parse_point(path, number, text) for number, text in body[:-1]]
    if len(points) != NUM_LANDMARKS:
        raise ValueError(f"{path}, line {body[-1][0]}: {len(points)} points before '}}', expected {NUM_LANDMARKS}")
    return np.array(points, dtype=np.float64) - 1


def _check_header(path: Path, rows: list[tuple[int, str]]) -> None:
    """The first three non-empty lines: version, number of points, opening brace."""
    expected = ("version: 1", f"n_points: {NUM_LANDMARKS}", "{")
    for position, wanted in enumerate(expected):
        if position >= len(rows):
            raise ValueError(f"{path}: the file ends after {position} lines, expected {wanted!r} next")
        number, text = rows[position]
        if text.replace(" ", "") != wanted.replace(" ", ""):
            raise ValueError(f"{path}, line {number}: found {text!r}, expected {wanted!r}")


def _parse_point(path: Path, number: int, text: str) -> tuple[float, float]:
    try:
        x, y = (float(word) for word in text.split())
    except ValueError:
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"{path}, line {number}: found {text!r}, expected two finite numbers 'x y'")
    return x, y


def read_image(path: Path) -> Image.Image:
    """Open an 8-bit image as RGB.

    Raises:
        ValueError: the file is damaged, no image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in _EIGHT_BIT_MODES:
                raise ValueError(f"{path}: pixel format {image.mode!r}, expected 8 bits per channel")
            return image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def crop_face(
    image: Image.Image, landmarks: NDArray[np.float64], size: int, margin: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Cut a square around the landmarks and resize it with PIL's bicubic filter.

    The square's centre is that of the landmarks' bounding box, its side the box's larger side times `margin`. Where it
    reaches beyond the image, the image is continued by reflection.

    Args:
        image: RGB.
        landmarks: float64 68,2, zero-based pixels of `image`.
        size: side of the result in pixels.
        margin: side of the square over the larger side of the landmarks' box.

    Returns:
        The crop, uint8 size,size,3, and its landmarks, float32 68,2, in its pixels. The mapping is exact: pixel
        centres lie half a pixel inside pixel edges, before and after.
    """
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    side = float((high - low).max()) * margin
    start = (low + high) / 2 + 0.5 - side / 2  # upper left corner, in pixel edges
    before = np.maximum(np.ceil(-start), 0).astype(int) + 2  # PIL's filter looks two pixels beyond the box
    after = np.maximum(np.ceil(start + side - image.size), 0).astype(int) + 2
    pixels = np.pad(np.asarray(image), ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode="symmetric")
    left, upper = start + before
    crop = Image.fromarray(pixels).resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, upper, left + side, upper + side)
    )
    moved = (landmarks + 0.5 - start) * (size / side) - 0.5
    return np.asarray(crop), moved.astype(np.float32)


def load_faces(root: Path, size: int, margin: float, min_face_size: int) -> FaceSet:
    """Read a folder of faces, crop them, and say what was kept.

    Images without a `.pts` file and faces that are too small are left out and counted; anything damaged is an error.

    Args:
        root: folder with images and `.pts` files.
        size: side of the crops in pixels.
        margin: see `crop_face`.
        min_face_size: smallest side of the crop square in original pixels.

    Raises:
        ValueError: the folder is missing or gives no face; a `.pts` file has no image, or more than one; a file is
            damaged; landmarks lie further outside an image than the image is large, or all on one point.
    """
    images, pts = _list_files(root)
    names = sorted(pts)
    workers = min(8, os.cpu_count() or 1)  # threads: PIL decodes and resizes without holding the interpreter lock
    with ThreadPoolExecutor(workers) as pool:
        faces = list(pool.map(lambda name: _load_face(images[name], pts[name], size, margin, min_face_size), names))
    kept = [(name, face) for name, face in zip(names, faces, strict=True) if face is not None]
    unmarked = len(set(images) - set(pts))
    summary = (
        f"{root}: {len(kept)} faces kept; left out {len(names) - len(kept)} with a crop below {min_face_size} px"
        f" and {unmarked} images without a .pts file"
    )
    if not kept:
        raise ValueError(f"no face left to use. {summary}")
    return FaceSet(
        names=[name for name, _ in kept],
        images=np.stack([face.image for _, face in kept]),
        landmarks=np.stack([face.landmarks for _, face in kept]),
        summary=summary,
    )


def _list_files(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and landmark files by name without suffix."""
    if not root.is_dir():
        raise ValueError(f"folder of faces not found: {root.resolve()}")
    images: dict[str, Path] = {}
    pts: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        suffix = path.suffix.lower()
        if suffix == ".pts":
            pts[path.stem] = path
        elif suffix in IMAGE_SUFFIXES:
            if path.stem in images:
                raise ValueError(f"two images for one face: {images[path.stem]} and {path.name}")
            images[path.stem] = path
    if not pts:
        raise ValueError(f"no .pts files in {root.resolve()}; expected NAME.pts beside NAME{IMAGE_SUFFIXES[0]}")
    for name in pts:
        if name not in images:
            raise ValueError(f"{pts[name]}: no image of that name beside it (looked for {', '.join(IMAGE_SUFFIXES)})")
    return images, pts


def _load_face(image_path: Path, pts_path: Path, size: int, margin: float, min_face_size: int) -> _Face | None:
    """Read and crop one face; None if it is too small."""
    landmarks = read_pts(pts_path)
    side = float(np.ptp(landmarks, axis=0).max()) * margin
    if side == 0:
        raise ValueError(f"{pts_path}: all {NUM_LANDMARKS} landmarks lie on one point")
    if side < min_face_size:
        return None
    image = read_image(image_path)
    extent = np.array(image.size)
    outside = (landmarks < -extent).any(axis=1) | (landmarks > 2 * extent).any(axis=1)
    if outside.any():
        point = int(outside.argmax())
        x, y = landmarks[point] + 1
        raise ValueError(
            f"{pts_path}: point {point} at ({x:g}, {y:g}) lies far outside the image of {extent[0]} x {extent[1]} px"
        )
    return _Face(*crop_face(image, landmarks, size, margin))
