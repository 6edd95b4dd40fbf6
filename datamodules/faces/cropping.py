"""Cut faces out of images, as squares around their landmarks."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.faces.annotations import FaceError, FaceFiles
from datamodules.image_folder import digest_of, has_deep_colours
from storage.images import open_image
from storage.reading import read_bytes

OUTSIDE_LIMIT = 0.25  # of the image's width or height, by which a landmark may lie outside; real faces stay far below
_CHUNK = 64  # faces cut out before the first of them is passed on: at most 28 MB at 384 px


@dataclass(frozen=True)
class FaceCrop:
    """A face that was cut out."""

    image: NDArray[np.uint8]  # H,H,3, RGB
    landmarks: NDArray[np.float32]  # 68,2, (x, y) in pixels of the crop, zero-based
    side: float  # of the square that was cut out, in pixels of the original image
    digest: str  # hash of the image's pixels, 32 hexadecimal digits


def read_image(path: Path) -> Image.Image:
    """Open an 8-bit image as RGB; anything else is a FaceError."""
    try:
        with open_image(read_bytes(path), ("PNG", "JPEG", "BMP")) as image:  # others start programs, EPS for one
            if has_deep_colours(image):
                raise ValueError("more than 8 bits per channel")
            return image.convert("RGB")
    except Exception as error:  # damaged files make the decoders raise almost anything
        raise FaceError("unreadable image", f"{path}: not a readable 8-bit image ({error})") from error


def crop_face(
    image: Image.Image, landmarks: NDArray[np.float64], size: int, margin: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Cut a square around the landmarks (68,2, zero-based pixels) and resize it with PIL's bicubic filter.

    The square's centre is that of the landmarks' bounding box, its side the box's larger side times `margin`. Where it
    reaches beyond the image, the image is continued by reflection.

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
    box = (left, upper, left + side, upper + side)
    crop = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box)
    moved = (landmarks + 0.5 - start) * (size / side) - 0.5
    return np.asarray(crop), moved.astype(np.float32)


def _cut_face(files: FaceFiles, name: str, size: int, margin: float, min_face_size: float) -> FaceCrop:
    """Read, check and crop one face, or raise a FaceError."""
    if name not in files.landmarks:
        raise FaceError("image without landmarks", f"{files.images[name]}: no landmarks for it")
    if name not in files.images:
        raise FaceError("landmarks without image", f"{name}: has landmarks, but no image of that name")
    path, landmarks = files.images[name], files.landmarks[name]()
    side, smallest = float(np.ptp(landmarks, axis=0).max()) * margin, max(min_face_size, 1)
    if side < smallest:
        raise FaceError("face too small", f"{path}: the crop's side is {side:.1f} px, expected at least {smallest:g}")
    image = read_image(path)
    beyond = np.maximum(-0.5 - landmarks, landmarks + 0.5 - image.size) / image.size
    if beyond.max() > OUTSIDE_LIMIT:
        point = int(beyond.max(axis=1).argmax())
        x, y = landmarks[point]
        allowed = f"at most {OUTSIDE_LIMIT:.0%} outside the image of {image.width} x {image.height} px"
        found = f"{path}: point {point} is at ({x:g}, {y:g})"
        raise FaceError("landmarks outside the image", f"{found}, expected {allowed}")
    crop, moved = crop_face(image, landmarks, size, margin)
    return FaceCrop(crop, moved, side, digest_of(crop.tobytes())[:32])


def cut_faces(
    files: FaceFiles, size: int, margin: float, min_face_size: float
) -> Iterator[tuple[str, FaceCrop | FaceError]]:
    """Cut out every face, several at a time, in the order of their names, with a bounded number in memory."""

    def cut(name: str) -> FaceCrop | FaceError:
        try:
            return _cut_face(files, name, size, margin, min_face_size)
        except FaceError as error:
            return error

    names = sorted(set(files.images) | set(files.landmarks))
    workers = min(8, os.cpu_count() or 1)  # threads: PIL decodes and resizes without holding the interpreter lock
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            yield from zip(chunk, pool.map(cut, chunk), strict=True)
