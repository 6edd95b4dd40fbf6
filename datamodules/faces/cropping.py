"""Reading images and `.pts` landmarks, and cutting the faces out.

The `.pts` format of the iBUG annotations:

    version: 1
    n_points: 68
    {
    89.688 165.762        one-based x y: 1.0 is the centre of the first pixel
    ...
    }
"""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.heatmaps import NUM_LANDMARKS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

OUTSIDE_LIMIT = 0.25  # of the image's width or height, by which a landmark may lie outside; real faces stay far below

_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")

Reason = Literal[
    "unreadable image",
    "unreadable landmarks",
    "wrong number of landmarks",
    "landmarks outside the image",
    "face too small",
    "image without landmarks",
    "landmarks without image",
]

ReadLandmarks = Callable[[], NDArray[np.float64]]  # 68,2 zero-based pixels, or a FaceError


class FaceError(ValueError):
    """One face cannot be used; the message names the file, or the row of an annotation file."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Face:
    """A face that was cut out.

    Attributes:
        image: uint8 H,H,3, RGB.
        landmarks: float32 68,2, (x, y) in pixels of the crop, zero-based.
        crop_side: side of the square that was cut out, in pixels of the original image.
        digest: hash of the image's pixels, 32 hexadecimal digits.
    """

    image: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    crop_side: float
    digest: str


def read_pts(path: Path) -> NDArray[np.float64]:
    """Read 68 landmarks.

    Returns:
        float64 68,2, (x, y) in image pixels, zero-based (the file's values minus one).

    Raises:
        FaceError: the file is not 68 finite points in the iBUG format; names file, line and content.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise _unreadable(f"{path}: not a text file, expected iBUG landmarks ('version: 1', ...)") from None
    except OSError as error:
        raise _unreadable(f"{path}: cannot be read ({error})") from error
    rows = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    _check_header(path, rows)
    body = rows[3:]
    if not body or body[-1][1] != "}":
        number, text = rows[-1]
        raise _unreadable(f"{path}, line {number}: the file ends with {text!r}, expected a closing '}}'")
    points = [_parse_point(path, number, text) for number, text in body[:-1]]
    if len(points) != NUM_LANDMARKS:
        raise FaceError(
            "wrong number of landmarks",
            f"{path}, line {body[-1][0]}: {len(points)} points before '}}', expected {NUM_LANDMARKS}",
        )
    return np.array(points, dtype=np.float64) - 1


def _unreadable(message: str) -> FaceError:
    return FaceError("unreadable landmarks", message)


def _check_header(path: Path, rows: list[tuple[int, str]]) -> None:
    """The first three non-empty lines: version, number of points, opening brace."""
    expected = ("version: 1", f"n_points: {NUM_LANDMARKS}", "{")
    for position, wanted in enumerate(expected):
        if position >= len(rows):
            raise _unreadable(f"{path}: the file ends after {position} lines, expected {wanted!r} next")
        number, text = rows[position]
        if text.replace(" ", "") != wanted.replace(" ", ""):
            other_number = position == 1 and text.startswith("n_points")
            raise FaceError(
                "wrong number of landmarks" if other_number else "unreadable landmarks",
                f"{path}, line {number}: found {text!r}, expected {wanted!r}",
            )


def _parse_point(path: Path, number: int, text: str) -> tuple[float, float]:
    try:
        x, y = (float(word) for word in text.split())
    except ValueError:
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        raise _unreadable(f"{path}, line {number}: found {text!r}, expected two finite numbers 'x y'")
    return x, y


def has_deep_colours(image: Image.Image) -> bool:
    """Whether Pillow opens 16-bit colours as 8-bit ones, dropping the lower half: 12-bit cameras would be black."""
    return any(re.search(";16[BLN]", str(tile.args)) for tile in getattr(image, "tile", ()))


def read_image(path: Path) -> Image.Image:
    """Open an 8-bit image as RGB.

    Raises:
        FaceError: the file is damaged, no image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG", "BMP")) as image:  # others start programs, EPS for one
            if image.mode not in _EIGHT_BIT_MODES:
                problem = f"pixel format {image.mode!r}, expected 8 bits per channel"
            elif has_deep_colours(image):
                problem = "16 bits, expected 8 bits per channel"
            else:
                return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"not a readable image ({error})"
    raise FaceError("unreadable image", f"{path}: {problem}")


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


def cut_face(path: Path, read_landmarks: ReadLandmarks, size: int, margin: float, min_face_size: float) -> Face:
    """Read, check and crop one face.

    Args:
        path: the image.
        read_landmarks: reads its landmarks.
        size: side of the crop in pixels.
        margin: see `crop_face`.
        min_face_size: smallest side of the crop square in original pixels.

    Raises:
        FaceError: the face cannot be used, with the reason.
    """
    landmarks = read_landmarks()
    side = float(np.ptp(landmarks, axis=0).max()) * margin
    if side == 0:
        raise _unreadable(f"{path}: all {NUM_LANDMARKS} landmarks lie on one point")
    if side < min_face_size:
        raise FaceError("face too small", f"{path}: the crop has a side of {side:.1f} px, asked for {min_face_size}")
    image = read_image(path)
    _check_inside(path, landmarks, image.size)
    crop, moved = crop_face(image, landmarks, size, margin)
    return Face(crop, moved, side, hashlib.sha256(crop.tobytes()).hexdigest()[:32])


def _check_inside(path: Path, landmarks: NDArray[np.float64], size: tuple[int, int]) -> None:
    extent = np.array(size)
    beyond = np.maximum(-0.5 - landmarks, landmarks - (extent - 0.5)) / extent
    if beyond.max() > OUTSIDE_LIMIT:
        point = int(beyond.max(axis=1).argmax())
        x, y = landmarks[point]
        raise FaceError(
            "landmarks outside the image",
            f"{path}: point {point} at zero-based ({x:g}, {y:g}) lies more than {OUTSIDE_LIMIT:.0%} outside the image"
            f" of {size[0]} x {size[1]} px",
        )
