"""A folder of images of any size: which of them can be upscaled, and batches of them for DIC.

Read are 8-bit PNG, JPEG, BMP, WebP and TIFF files with one image. An image is gray if its three channels are equal,
whatever its format: a night-time JPEG of a camera is. Images are padded on the right and below, by reflection, to sides
that the network takes; nothing is resized.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from models.dic import SIDE_MULTIPLE

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff")
MAX_PIXELS = 1024 * 1024  # of an image; upscaled, it has 8192 x 8192
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")


class ImageRefusedError(ValueError):
    """An image that cannot be upscaled; the message says why, without the file's name."""


class UpscaleTask(NamedTuple):
    """One image to upscale.

    Attributes:
        name: its path below the input folder, as in messages.
        source: the file.
        targets: the files to write: the upscaled image and, where it is asked for, the one with the landmarks.
        size: padded height and width in the header of `source`, before EXIF orientation.
    """

    name: str
    source: Path
    targets: tuple[Path, ...]
    size: tuple[int, int]


class SourceImage(NamedTuple):
    """An image that has been read.

    Attributes:
        task: what it is to become.
        digest: hash of the file.
        rgb: uint8 h,w,3, upright, not padded.
        gray: whether the three channels are equal.
        alpha: opacity; None without an alpha channel.
    """

    task: UpscaleTask
    digest: str
    rgb: np.ndarray
    gray: bool
    alpha: Image.Image | None


def list_images(root: Path) -> tuple[list[Path], list[Path]]:
    """List the images below a folder, and the other files and linked folders; both sorted and relative to it.

    Hidden files and folders are skipped; linked folders are not entered.

    Raises:
        OSError: the folder, or one in it, is missing or cannot be read.
        ValueError: there are no images.
    """
    images: list[Path] = []
    others: list[Path] = []
    for folder, subfolders, files in os.walk(root, onerror=_raise):
        below = Path(folder).relative_to(root)
        others += [below / name for name in subfolders if (Path(folder) / name).is_symlink()]
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                path = Path(folder) / name
                regular = path.is_file() or not path.exists()  # a broken link is an image that cannot be read
                (images if name.lower().endswith(SUFFIXES) and regular else others).append(below / name)
    if not images:
        raise ValueError(f"{root} holds no images (looked for {', '.join(SUFFIXES)}; {len(others)} other files)")
    return sorted(images), sorted(others)


def _raise(error: OSError) -> None:
    raise error


def digest_of(content: bytes) -> str:
    """Return the hash by which an upscaled image names the file that it was made from."""
    return hashlib.sha256(content).hexdigest()


def padded_size(path: Path) -> tuple[int, int]:
    """Return height and width after `pad`, from the file's header.

    Raises:
        ImageRefusedError: it is not a readable image, too large, or of a kind that is not upscaled.
    """
    with _opened(path) as image:
        width, height = image.size
        return _padded(height), _padded(width)


def read_image(task: UpscaleTask) -> SourceImage:
    """Read the image of a task.

    Raises:
        ImageRefusedError: as `padded_size`.
    """
    try:
        content = task.source.read_bytes()
    except OSError as error:
        raise ImageRefusedError(f"cannot be read ({error.strerror})") from error
    with _opened(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
        levels = np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))
    rgb = levels[..., :3]
    alpha = Image.fromarray(levels[..., 3]) if levels.shape[2] == 4 else None
    return SourceImage(task, digest_of(content), rgb, bool((rgb == rgb[..., :1]).all()), alpha)


def pad(image: np.ndarray) -> np.ndarray:
    """Continue h,w,C by reflection to multiples of 8, on the right and below; a single row or column is repeated."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, _padded(height) - height), (0, _padded(width) - width), (0, 0)), mode="reflect")


def _padded(side: int) -> int:
    return side + -side % SIDE_MULTIPLE


def read_batches(
    tasks: Iterable[UpscaleTask], batch_size: int, pixels: int, skip: Callable[[UpscaleTask, object], None]
) -> Iterator[list[SourceImage]]:
    """Read images into batches of one padded size, in the order of `tasks`.

    Args:
        tasks: images of one size should follow each other.
        batch_size: most images in a batch.
        pixels: most padded pixels in a batch that holds more than one image.
        skip: told about each image that cannot be read, with the reason.
    """
    batch: list[SourceImage] = []
    size = (0, 0)
    for task in tasks:
        try:
            image = read_image(task)
        except ImageRefusedError as error:
            skip(task, error)
            continue
        height, width = (_padded(side) for side in image.rgb.shape[:2])
        if batch and (height, width) != size:
            yield batch
            batch = []
        batch, size = [*batch, image], (height, width)
        if len(batch) >= min(batch_size, pixels // (height * width)):
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _opened(file: Path | io.BytesIO) -> Iterator[Image.Image]:
    """Open an image of a kind that is upscaled; whatever goes wrong in the block becomes `ImageRefusedError`."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            _refuse_unsuitable(image)
            yield image
    except ImageRefusedError:
        raise
    except UnidentifiedImageError as error:
        raise ImageRefusedError(f"not a readable image of the formats {', '.join(_FORMATS)}") from error
    except Exception as error:  # a damaged file makes the decoders raise almost anything
        raise ImageRefusedError(f"not a readable image ({error})") from error


def _refuse_unsuitable(image: Image.Image) -> None:
    width, height = image.size
    if _padded(width) * _padded(height) > MAX_PIXELS:
        raise ImageRefusedError(f"{width} x {height} pixels, expected at most {MAX_PIXELS:,}; cut the face out first")
    if image.mode.startswith(("I", "F")) or has_deep_colours(image):
        raise ImageRefusedError(
            "more than 8 bits per channel; convert it to 8 bits first, for instance with ImageMagick: "
            "magick IN -auto-level -depth 8 OUT.png"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageRefusedError(f"holds {frames} images, expected 1; save them as separate files first")


def has_deep_colours(image: Image.Image) -> bool:
    """Return whether Pillow drops the lower half of 16-bit colours: 12-bit images would be black."""
    return any(re.search(";16[BLN]", str(tile.args)) for tile in getattr(image, "tile", ()))
