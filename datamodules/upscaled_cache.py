"""Faces as an arm shows them to the classifier: made on the fly, or once, by any number of processes at the same time.

What is worth keeping is kept on disk: what a generator has upscaled, and what is reduced to a smaller size, which takes
far longer to make than to read. The images are kept in blocks, one `.npy` file each. A block is written under a
temporary name and renamed, and its name carries the CRC-32 of its content and of what the cache is for: every block
that passes the check is intact and belongs here, and a process makes the blocks that it does not find. There are no
locks. An interrupted fill resumes where it stopped, and processes that fill the same cache take the blocks in different
orders: they share the work.
"""

import errno
import hashlib
import io
import json
import shutil
import sys
import warnings
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from datamodules.upscalers import Upscaler, UpscalerError, upscale_faces
from models.dic import SCALE
from models.resampling import round_levels
from storage.atomic import remove_leftovers, write_atomically
from storage.shortage import find_shortage

_HINT = "cache_dir can name another place"
_BATCH = 8  # faces upscaled and reduced together: 2.5 times as fast as 64 on one core


class UpscaledFaces:
    """Upscale `images`, uint8 N,h,w, whenever they are asked for; index it with an array of rows."""

    def __init__(self, images: np.ndarray, upscaler: Upscaler) -> None:
        self.upscaler, self._images = upscaler, images
        self.shape = (len(images), upscaler.channels, SCALE * images.shape[1], SCALE * images.shape[2])

    @cached_property
    def purpose(self) -> dict[str, object]:
        """What decides the pixels."""
        images = hashlib.sha256(np.ascontiguousarray(self._images).data).hexdigest()[:16]
        return {"upscaler": self.upscaler.fingerprint(), "images": images}

    def fill(self, rows: np.ndarray, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        """Do nothing: nothing is kept."""

    def release(self) -> None:
        """Do nothing, either."""

    def make(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Upscale on a device; what costs little on the CPU, always: a cache is the same wherever it is filled."""
        faces = torch.from_numpy(self._images[rows])[:, None]
        return upscale_faces(self.upscaler, faces.to(device if self.upscaler.cached else "cpu")).cpu()

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return uint8 n,C,8h,8w."""
        parts = np.split(rows, range(_BATCH, len(rows), _BATCH))
        return torch.cat([self.make(part, torch.device("cpu")) for part in parts]).numpy()


class FaceCache:
    """The faces of `source`, reduced to `size` pixels and kept on disk, uint8 C,size,size each.

    Index it with an array of rows that were filled. A block of 128 gray faces has 18 MiB at 384 pixels, which are
    seconds of work for a generator on two cores, and 1.1 MiB at 96.
    """

    def __init__(self, folder: Path, source: "UpscaledFaces | FaceCache", size: int, block_size: int = 128) -> None:
        self.folder, self.source, self.block_size = folder, source, block_size
        self.shape: tuple[int, int, int, int] = (*source.shape[:2], size, size)
        self.purpose: dict[str, object] = source.purpose | {"shape": self.shape, "block_size": block_size}
        self._crc = zlib.crc32(f"{json.dumps(self.purpose)}\n".encode())
        self._blocks: dict[int, np.ndarray] = {}

    def _rows(self, block: int) -> np.ndarray:
        return np.arange(block * self.block_size, min((block + 1) * self.block_size, self.shape[0]))

    def _path(self, block: int, content: np.ndarray) -> Path:
        return self.folder / f"{block:05d}-{zlib.crc32(content.data, self._crc):08x}.npy"

    def _open(self, block: int) -> bool:
        """Map a block if an intact one is there; remove a damaged one."""
        if block in self._blocks:
            return True
        for path in self.folder.glob(f"{block:05d}-*.npy"):
            try:
                array = np.load(path, mmap_mode="r") if path.is_file() else np.empty(0)  # a pipe would be waited for
                shape = (len(self._rows(block)), *self.shape[1:])
                if (array.dtype, array.shape, path) == (np.uint8, shape, self._path(block, array)):
                    self._blocks[block] = np.asarray(array)  # still mapped; indexing a memmap is ten times as slow
                    return True
            except FileNotFoundError:
                continue  # another process has just removed it
            except Exception as error:  # damaged headers make numpy raise almost anything
                if find_shortage(error) or getattr(error, "errno", None):  # which says nothing about the block
                    raise
            if path.exists():  # otherwise another process has just removed it
                warnings.warn(f"{path}: damaged, or of another cache; making the block again", stacklevel=3)
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise UpscalerError(f"{path} cannot be removed ({error.strerror}); remove it yourself") from error
        return False

    def _make(self, block: int, device: torch.device) -> None:
        rows = self._rows(block)
        parts = np.split(rows, range(_BATCH, len(rows), _BATCH))
        array = torch.cat([reduce_size(self.source.make(part, device), self.shape[-1]) for part in parts]).numpy()
        buffer, path = io.BytesIO(), self._path(block, array)
        np.save(buffer, array)
        write_atomically(path, buffer.getbuffer())
        self._blocks[block] = np.asarray(np.load(path, mmap_mode="r"))

    def make(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Return the images of filled rows, on the CPU."""
        return torch.from_numpy(self[rows])

    def fill(self, rows: np.ndarray, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        """Make the blocks that hold `rows` unless they exist; return when all of them do.

        Every rank makes its own share, and then helps with what the others have not made yet. A disk that is too small
        is refused before the work begins.
        """
        missing = [block for block in np.unique(rows // self.block_size).tolist() if not self._open(block)]
        if not missing:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"{self.folder} cannot be made ({error.strerror}); {_HINT}") from error
        remove_leftovers(self.folder)
        needed = len(missing) * self.block_size * int(np.prod(self.shape[1:]))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            space = f"free space is {free / 1e6:,.0f} MB, expected at least {needed / 1e6:,.0f} MB"
            raise OSError(errno.ENOSPC, f"{self.folder}: {space} for the upscaled images; {_HINT}")
        self.source.fill(np.concatenate([self._rows(block) for block in missing]), device, rank, world_size)
        own = missing[rank::world_size]
        shuffled = np.random.default_rng().permutation(missing).tolist()  # unseeded: two jobs should start elsewhere
        images = sum(len(self._rows(block)) for block in missing)
        shown: dict[str, Any] = {"desc": f"filling {self.folder}", "unit": "image", "disable": rank != 0}
        shown["mininterval"] = 0.1 if sys.stderr.isatty() else 60.0  # in a file every update is a line
        with tqdm(total=images, **shown) as progress:
            for block in sorted(shuffled, key=lambda block: block not in own):
                if not self._open(block):
                    self._make(block, device)
                progress.update(len(self._rows(block)))
        self.source.release()

    def release(self) -> None:
        """Close all blocks: each takes a file descriptor, of which a process may have a thousand."""
        self._blocks.clear()

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return the images of filled rows, uint8 n,C,size,size."""
        return np.stack([self._blocks[row // self.block_size][row % self.block_size] for row in rows.tolist()])


def reduce_size(images: Tensor, size: int) -> Tensor:
    """Reduce uint8 B,C,H,W to uint8 B,C,size,size with an antialiased bilinear (triangle) filter."""
    if images.shape[-1] == size:
        return images
    reduced = F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return round_levels(reduced)
