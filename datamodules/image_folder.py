"""A folder of images of any size: which of them can be upscaled, and batches of them for DIC.

Read are 8-bit PNG, JPEG, BMP, WebP and TIFF files with one image. An image is gray if its three channels are equal,
whatever its format: cameras store colourless JPEGs at night. Images are padded on the right and below, by reflection,
to sides that the network takes; nothing is resized.
"""

import hashlib
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from models.dic import SIDE_MULTIPLE
from storage.images import open_image
from storage.reading import read_bytes

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff")
MAX_PIXELS = 1024 * 1024  # of an image; upscaled, it has 8192 x 8192
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_T = TypeVar("_T")


class UpscaleTask(NamedTuple):
    """An image and the files that it becomes: the upscaled image and, with `--heatmaps`, the one with landmarks."""

    source: Path
    targets: tuple[Path, ...]


class SourceImage(NamedTuple):
    """An image that has been read."""

    task: UpscaleTask  # what it is to become
    digest: str  # hash of the file
    rgb: np.ndarray  # uint8 h,w,3, upright, not padded
    gray: bool  # whether the three channels are equal
    alpha: Image.Image | None  # opacity; None without an alpha channel


def list_images(root: Path) -> tuple[list[Path], list[Path]]:
    """List the images below a folder, and the other files and linked folders; hidden ones are left out."""
    images: list[Path] = []
    others: list[Path] = []
    for folder, subfolders, files in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        others += [path for name in subfolders if (path := Path(folder, name)).is_symlink()]
        for path in (Path(folder, name) for name in files if not name.startswith(".")):
            (images if path.suffix.lower() in SUFFIXES and path.is_file() else others).append(path)
    if not images:
        raise ValueError(f"no images in {root}: looked for {', '.join(SUFFIXES)}, found {len(others)} other files")
    return sorted(images), sorted(others)


def _raise(error: OSError) -> None:
    raise error


def find_tasks(images: Sequence[Path], root: Path, out: Path, heatmaps: bool) -> list[UpscaleTask]:
    """Name the files below `out` that images below `root` become; refuse two images that would become the same."""
    sources: dict[Path, Path] = {}
    tasks = []
    for image in images:
        plain = out / image.relative_to(root).with_suffix(".png")
        targets = (plain, plain.with_name(f"{plain.stem}_landmarks.png"))[: 1 + heatmaps]
        for target in targets:
            other = sources.setdefault(target, image)
            if other != image:
                raise ValueError(f"{other} and {image} would both become {target}; rename one of them")
        tasks.append(UpscaleTask(image, targets))
    return tasks


def largest_first(tasks: Sequence[UpscaleTask]) -> list[UpscaleTask]:
    """Sort tasks by the size of the image; name those whose image cannot be upscaled, and leave them out.

    Images of one size come in random order: jobs that share a folder then rarely work on the same ones.
    """
    shuffled = random.sample(tasks, len(tasks))
    sized = sorted(_skipping(lambda task: (check_header(task.source), task), shuffled), key=lambda one: one[0])
    return [task for _, task in reversed(sized)]


def _skipping(read: Callable[[UpscaleTask], _T], tasks: Iterable[UpscaleTask]) -> Iterator[_T]:
    for task in tasks:
        try:
            yield read(task)
        except Exception as error:  # damaged files make the decoders raise almost anything
            print_skipped(task, error)


def print_skipped(task: UpscaleTask, reason: object) -> None:
    """Name an image that is skipped, without tearing a progress bar."""
    tqdm.write(f"skipped: {task.source}: {' '.join(str(reason).split())}", file=sys.stderr)


def check_header(path: Path) -> tuple[int, int]:
    """Refuse files that cannot be upscaled; return height and width after `pad`, before EXIF orientation."""
    with Image.open(path, formats=_FORMATS) as image:
        width, height = image.size
        frames = getattr(image, "n_frames", 1)
        deep = image.mode.startswith(("I", "F")) or has_deep_colours(image)
    padded = _padded(height), _padded(width)
    if padded[0] * padded[1] > MAX_PIXELS:
        raise ValueError(f"image has {width} x {height} pixels, expected at most {MAX_PIXELS:,}; cut the face out")
    if deep:
        raise ValueError("image has more than 8 bits per channel, expected 8; convert it first")
    if frames > 1:
        raise ValueError(f"file holds {frames} images, expected 1; save them as separate files")
    return padded


def has_deep_colours(image: Image.Image) -> bool:
    """Return whether Pillow drops the lower half of 16-bit colours: 12-bit images would be black."""
    return any(re.search(";16[BLN]", str(tile.args)) for tile in getattr(image, "tile", ()))


def read_image(task: UpscaleTask) -> SourceImage:
    """Read the image of a task."""
    content = read_bytes(task.source)
    with open_image(content, _FORMATS) as image:
        upright = ImageOps.exif_transpose(image)
        levels = np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))
    rgb = levels[..., :3]
    alpha = Image.fromarray(levels[..., 3]) if levels.shape[2] == 4 else None
    return SourceImage(task, digest_of(content), rgb, bool((rgb == rgb[..., :1]).all()), alpha)


def digest_of(content: bytes) -> str:
    """Return the hash by which an upscaled image names the file that it was made from."""
    return hashlib.sha256(content).hexdigest()


def pad(image: np.ndarray) -> np.ndarray:
    """Continue h,w,C by reflection to multiples of 8, on the right and below; a single row or column is repeated."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, _padded(height) - height), (0, _padded(width) - width), (0, 0)), mode="reflect")


def _padded(side: int) -> int:
    return side + -side % SIDE_MULTIPLE


def read_batches(tasks: Iterable[UpscaleTask], batch_size: int, pixels: int) -> Iterator[list[SourceImage]]:
    """Read images into batches of one padded size, in the order of `tasks`; name those that cannot be read.

    A batch has at most `batch_size` images and, unless it has only one, at most `pixels` padded pixels.
    """
    images = _skipping(read_image, tasks)
    for (height, width), group in groupby(images, lambda image: tuple(map(_padded, image.rgb.shape[:2]))):
        count = max(1, min(batch_size, pixels // (height * width)))
        while batch := list(islice(group, count)):
            yield batch
