"""Upscaled faces on disk: made once per upscaler and data set, by any number of processes at the same time.

The images are kept in blocks, one `.npy` file each. A block is written under a temporary name and renamed, and its name
carries the CRC-32 of its content and of what the cache is for: every block that passes the check is intact and belongs
here, and a process makes the blocks that it does not find. There are no locks. An interrupted fill resumes where it
stopped, and processes that fill the same cache take the blocks in different orders: they share the work.
"""

import errno
import hashlib
import io
import json
import shutil
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datamodules.upscalers import Upscaler, UpscalerError, upscale_faces
from models.dic import SCALE
from storage.atomic import remove_leftovers, write_atomically

_BATCH = 8  # faces upscaled together


class UpscaledCache:
    """The upscaled counterparts of `images`, uint8 C,8h,8w each; index it with an array of rows.

    `images` are uint8 N,h,w. A block of 128 gray faces of 384x384 is 18 MiB, and seconds of work on two cores.
    """

    def __init__(self, folder: Path, images: np.ndarray, upscaler: Upscaler, block_size: int = 128) -> None:
        self.folder, self.upscaler, self.block_size = folder, upscaler, block_size
        self._faces = torch.from_numpy(images)[:, None].split(block_size)
        self.shape = (upscaler.channels, SCALE * images.shape[1], SCALE * images.shape[2])
        purpose = {
            "upscaler": upscaler.fingerprint(),
            "images": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()[:16],
            "shape": [len(images), *self.shape],
            "block_size": block_size,
        }
        self._purpose = zlib.crc32(f"{json.dumps(purpose)}\n".encode())
        self._blocks: dict[int, np.ndarray] = {}

    def _path(self, block: int, content: np.ndarray) -> Path:
        return self.folder / f"{block:05d}-{zlib.crc32(content.data, self._purpose):08x}.npy"

    def _open(self, block: int) -> bool:
        """Map a block if an intact one is there; remove a damaged one."""
        if block in self._blocks:
            return True
        for path in self.folder.glob(f"{block:05d}-*.npy"):
            with suppress(Exception):  # damaged headers make numpy raise almost anything
                array = np.load(path, mmap_mode="r") if path.is_file() else np.empty(0)  # a pipe would be waited for
                shape = (len(self._faces[block]), *self.shape)
                if (array.dtype, array.shape, path) == (np.uint8, shape, self._path(block, array)):
                    self._blocks[block] = array
                    return True
            if path.exists():  # otherwise another process has just removed it
                warnings.warn(f"{path}: damaged, or of another cache; making the block again", stacklevel=3)
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise UpscalerError(f"{path} cannot be removed ({error.strerror}); remove it yourself") from error
        return False

    def _make(self, block: int, device: torch.device) -> None:
        batches = self._faces[block].split(_BATCH)
        parts = [upscale_faces(self.upscaler, batch.to(device)).cpu() for batch in batches]
        array = torch.cat(parts).contiguous().numpy()
        buffer, path = io.BytesIO(), self._path(block, array)
        np.save(buffer, array)
        write_atomically(path, buffer.getbuffer())
        self._blocks[block] = np.load(path, mmap_mode="r")

    def fill(self, rows: np.ndarray, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        """Make the blocks that hold `rows` unless they exist; return when all of them do.

        Every rank makes its own share, and then helps with what the others have not made yet. A disk that is too small
        is refused before the work begins.
        """
        missing = [block for block in np.unique(rows // self.block_size).tolist() if not self._open(block)]
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        needed = len(missing) * self.block_size * int(np.prod(self.shape))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            space = f"free space is {free / 1e6:,.0f} MB, expected at least {needed / 1e6:,.0f} MB"
            hint = "for the upscaled images; cache_dir can name another place"
            raise OSError(errno.ENOSPC, f"{self.folder}: {space} {hint}")
        own = missing[rank::world_size]
        shuffled = np.random.default_rng().permutation(missing).tolist()  # unseeded: two jobs should start elsewhere
        images = sum(len(self._faces[block]) for block in missing)
        with tqdm(total=images, desc=f"upscaling into {self.folder}", unit="image", disable=rank != 0) as progress:
            for block in sorted(shuffled, key=lambda block: block not in own):
                if not self._open(block):
                    self._make(block, device)
                progress.update(len(self._faces[block]))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return the upscaled images of filled rows, uint8 n,C,8h,8w."""
        return np.stack([self._blocks[row // self.block_size][row % self.block_size] for row in rows.tolist()])
