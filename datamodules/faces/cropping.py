"""Cut faces out of images, as squares around their landmarks."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.faces.annotations import FaceError, FaceFiles, ReadLandmarks
from datamodules.image_folder import has_deep_colours
from models.heatmaps import NUM_LANDMARKS

OUTSIDE_LIMIT = 0.25  # of the image's width or height, by which a landmark may lie outside; real faces stay far below

_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")

_CHUNK = 64  # faces cut out before the first of them is passed on: at most 28 MB at 384 px


@dataclass(frozen=True)
class FaceCrop:
    """A face that was cut out.

    Attributes:
        image: uint8 H,H,3, RGB.
        landmarks: float32 68,2, (x, y) in pixels of the crop, zero-based.
        side: of the square that was cut out, in pixels of the original image.
        digest: hash of the image's pixels, 32 hexadecimal digits.
    """

    image: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    side: float
    digest: str


def read_image(path: Path) -> Image.Image:
    """Open an 8-bit image as RGB.

    Raises:
        FaceError: the file is damaged, no image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG", "BMP")) as image:  # others start programs, EPS for one
            if image.mode not in _EIGHT_BIT_MODES:
                problem = f"pixel format is {image.mode!r}, expected 8 bits per channel"
            elif has_deep_colours(image):
                problem = "found 16 bits, expected 8 bits per channel"
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


def cut_face(path: Path, read_landmarks: ReadLandmarks, size: int, margin: float, min_face_size: float) -> FaceCrop:
    """Read, check and crop one face; arguments as in `crop_face`.

    Raises:
        FaceError: the face cannot be used, or the square's side is less than `min_face_size` original pixels.
    """
    landmarks = read_landmarks()
    side = float(np.ptp(landmarks, axis=0).max()) * margin
    if side == 0:
        raise FaceError("unreadable landmarks", f"{path}: all {NUM_LANDMARKS} landmarks lie on one point")
    if side < min_face_size:
        raise FaceError(
            "face too small", f"{path}: the crop's side is {side:.1f} px, expected at least {min_face_size:g}"
        )
    image = read_image(path)
    _check_inside(path, landmarks, image.size)
    crop, moved = crop_face(image, landmarks, size, margin)
    return FaceCrop(crop, moved, side, hashlib.sha256(crop.tobytes()).hexdigest()[:32])


def _check_inside(path: Path, landmarks: NDArray[np.float64], size: tuple[int, int]) -> None:
    extent = np.array(size)
    beyond = np.maximum(-0.5 - landmarks, landmarks - (extent - 0.5)) / extent
    if beyond.max() > OUTSIDE_LIMIT:
        point = int(beyond.max(axis=1).argmax())
        x, y = landmarks[point]
        raise FaceError(
            "landmarks outside the image",
            f"{path}: point {point} is at ({x:g}, {y:g}), expected at most {OUTSIDE_LIMIT:.0%} outside the image of"
            f" {size[0]} x {size[1]} px",
        )


def cut_faces(
    files: FaceFiles, size: int, margin: float, min_face_size: float
) -> Iterator[tuple[str, FaceCrop | FaceError]]:
    """Cut out every face, several at a time, in the order of their names, with a bounded number in memory."""

    def cut(name: str) -> FaceCrop | FaceError:
        if name not in files.landmarks:
            return FaceError("image without landmarks", f"{files.images[name]}: no landmarks for it")
        if name not in files.images:
            return FaceError("landmarks without image", f"{name}: has landmarks, but no image of that name")
        try:
            return cut_face(files.images[name], files.landmarks[name], size, margin, min_face_size)
        except FaceError as error:
            return error

    names = sorted(set(files.images) | set(files.landmarks))
    workers = min(8, os.cpu_count() or 1)  # threads: PIL decodes and resizes without holding the interpreter lock
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            yield from zip(chunk, pool.map(cut, chunk), strict=True)
