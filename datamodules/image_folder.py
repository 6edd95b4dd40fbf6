"""A folder of images of any size and kind: which files can be enlarged, and batches of them for DIC.

An image is gray if its three channels are equal, whatever its file format: a night-time JPEG of a camera is. Images are
padded on the right and below, by reflection, to sides that the network takes; nothing is resized.

Shapes: B batch, h x w low resolution, padded to multiples of 8.
Batches: `lr` uint8 B,3,h,w, RGB; `faces`, a `Face` for each row of it; `refused`, reasons by name for the files of this
batch that could not be read.
"""

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from datamodules.faces.cropping import has_deep_colours
from models.dic import SIDE_MULTIPLE

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff")
# Pictures that are not read count as skipped; raw files of cameras lie beside their JPEGs, and are left alone.
OTHER_SUFFIXES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".ppm", ".pgm", ".tga")
MAX_PIXELS = 1024 * 1024  # of an image: enlarged, it is one of 8192 x 8192
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112


class ImageRefusedError(ValueError):
    """An image that cannot be enlarged; the message says why, without the file's name."""


class Task(NamedTuple):
    """One image to enlarge.

    Attributes:
        name: its path below the input folder, as in messages.
        source: the file.
        targets: the files to write: the enlarged image, and the one with the landmarks where that is asked for.
        width: in pixels, as seen: EXIF orientation applied.
        height: the same.
    """

    name: str
    source: Path
    targets: tuple[Path, ...]
    width: int
    height: int


class Face(NamedTuple):
    """What a row of a batch does not say about its image.

    Attributes:
        task: the image.
        digest: hash of the file.
        gray: whether the three channels are equal.
        alpha: opacity, not padded; None without an alpha channel.
    """

    task: Task
    digest: str
    gray: bool
    alpha: Image.Image | None


def list_images(root: Path) -> tuple[list[Path], list[Path]]:
    """Images below a folder, and the other files and linked folders; both sorted and relative to it.

    Hidden files and folders are passed over; linked folders are not entered.

    Raises:
        OSError: the folder, or one in it, is missing or cannot be read.
        ValueError: there are no images.
    """
    images: list[Path] = []
    others: list[Path] = []
    for folder, subfolders, files in os.walk(root, onerror=_raise):
        place = Path(folder).relative_to(root)
        others += [place / name for name in subfolders if (Path(folder) / name).is_symlink()]
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                path = Path(folder) / name
                regular = path.is_file() or not path.exists()  # a broken link is an image that cannot be read
                (images if name.lower().endswith(SUFFIXES) and regular else others).append(place / name)
    if not images:
        raise ValueError(f"{root} holds no images (looked for {', '.join(SUFFIXES)}; {len(others)} other files)")
    return sorted(images), sorted(others)


def _raise(error: OSError) -> None:
    raise error


def digest_of(content: bytes) -> str:
    """Hash of a file, by which its enlarged image names it."""
    return hashlib.sha256(content).hexdigest()


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as seen, from the file's header; of a PNG all is read, for its EXIF data may come last.

    Raises:
        ImageRefusedError: it is not a readable image, too large, or of a kind that is not enlarged.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED  # Pillow turns TIFFs itself
    return (height, width) if turned else (width, height)


def read_face(task: Task) -> tuple[np.ndarray, Face]:
    """The image of a task, uint8 h,w,3, padded, and what else is to be known of it.

    Raises:
        ImageRefusedError: as `image_size`; or it has changed its size since.
    """
    try:
        content = task.source.read_bytes()
    except OSError as error:
        raise ImageRefusedError(f"cannot be read ({error.strerror})") from error
    with _opened(io.BytesIO(content)) as image:
        seen = ImageOps.exif_transpose(image)
        levels = np.asarray(seen.convert("RGBA" if seen.has_transparency_data else "RGB"))
    if levels.shape[:2] != (task.height, task.width):
        raise ImageRefusedError("has changed its size while this command was running")
    rgb = levels[..., :3]
    gray = bool((rgb == rgb[..., :1]).all())
    alpha = Image.fromarray(levels[..., 3]) if levels.shape[2] == 4 else None
    return pad(rgb), Face(task, digest_of(content), gray, alpha)


def pad(image: np.ndarray) -> np.ndarray:
    """Continue h,w,C by reflection to multiples of 8, on the right and below; a single row or column is repeated."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % SIDE_MULTIPLE), (0, -width % SIDE_MULTIPLE), (0, 0)), mode="reflect")


def padded(side: int) -> int:
    """Width or height of an image after `pad`."""
    return side + -side % SIDE_MULTIPLE


def padded_pixels(width: int, height: int) -> int:
    """Pixels of an image after `pad`."""
    return padded(width) * padded(height)


@contextmanager
def _opened(file: Path | io.BytesIO) -> Iterator[Image.Image]:
    """An image of a kind that is enlarged; whatever goes wrong with it inside the block becomes `ImageRefusedError`."""
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
    if padded_pixels(width, height) > MAX_PIXELS:
        raise ImageRefusedError(
            f"{width} x {height} are more than {MAX_PIXELS:,} pixels, the most that is enlarged; cut the face out first"
        )
    deep = image.mode.startswith("I") or has_deep_colours(image)
    if deep or image.mode == "F":
        raise ImageRefusedError(
            f"{'more than 8 bits' if deep else 'floating-point levels'} per channel; convert it to 8 bits first, for "
            "instance with ImageMagick: magick IN -auto-level -depth 8 OUT.png"
        )
    if image.mode not in _MODES:
        raise ImageRefusedError(f"pixel format {image.mode}, allowed are {', '.join(_MODES)}; convert it to RGB first")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a telephone's photograph with its preview
        raise ImageRefusedError(f"holds {frames} images; save them as files of their own first")


def plan_batches(tasks: Sequence[Task], batch_size: int, pixels: int) -> list[list[Task]]:
    """Put images of equal padded size together, the largest first.

    No batch holds more than `batch_size` images, nor, unless it is a single one, more than `pixels` pixels.
    """
    sizes: dict[tuple[int, int], list[Task]] = defaultdict(list)
    for task in tasks:
        sizes[padded(task.height), padded(task.width)].append(task)
    batches = []
    for (height, width), members in sorted(sizes.items(), key=lambda item: (-item[0][0] * item[0][1], item[0])):
        count = max(1, min(batch_size, pixels // (height * width)))
        batches += [members[start : start + count] for start in range(0, len(members), count)]
    return batches


class _Batches(Dataset[dict[str, Any]]):
    def __init__(self, batches: Sequence[Sequence[Task]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        images, faces, refused = [], [], {}
        for task in self.batches[index]:
            try:
                image, face = read_face(task)
            except ImageRefusedError as error:
                refused[task.name] = str(error)
                continue
            images.append(image)
            faces.append(face)
        lr = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) if images else torch.empty(0, 3, 8, 8)
        return {"lr": lr, "faces": faces, "refused": refused}


class ImageFolder(L.LightningDataModule):
    """Serves batches of images; every process of a job takes its part of them.

    Args:
        batches: from `plan_batches`, the same in all processes.
    """

    def __init__(self, batches: Sequence[Sequence[Task]]) -> None:
        super().__init__()
        self.batches = batches

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        if self.trainer is None:
            raise RuntimeError("ImageFolder serves a Trainer's processes; it has none")
        return DataLoader(_Batches(self.share_of(self.trainer)), batch_size=None)

    def share_of(self, trainer: L.Trainer) -> Sequence[Sequence[Task]]:
        """The batches of this process; an empty one where there are fewer than processes: Lightning wants one."""
        return self.batches[trainer.global_rank :: trainer.world_size] or [[]]

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """The images go to the device, what is known of them stays."""
        return batch | {"lr": batch["lr"].to(device)}
