"""Enlarged faces on disk: made once per generator and data set, by any number of processes at the same time.

The images are kept in blocks, one ``.npy`` file each, whose name carries the CRC-32 of its content. A block is written
under a temporary name and renamed, so every file that is there is whole; a process makes the blocks that it does not
find. There are no locks: an interrupted fill goes on where it stopped, and jobs that fill the same cache share the work.
"""

import io
import json
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datamodules.files import write_atomically

BLOCK = 128  # images in a block: 18 MiB of gray 384x384, about ten seconds of a small generator on two cores


class UpscaledCache:
    """The enlarged counterparts of ``images``, as uint8 C,H,W each.

    Args:
        folder: Where the blocks are; named by the caller after the fingerprints of generator and data.
        images: uint8 N,h,w. Images with the same pixels should be passed once (see ``FERPlusTable.identity``).
        shape: C,H,W of an enlarged image.
    """

    def __init__(self, folder: Path, images: np.ndarray, shape: tuple[int, int, int]) -> None:
        self.folder, self.images, self.shape = folder, images, shape
        self._blocks: dict[int, np.ndarray] = {}
        self._check_manifest()

    def _check_manifest(self) -> None:
        expected = {"count": len(self.images), "shape": list(self.shape), "block": BLOCK}
        manifest = self.folder / "manifest.json"
        try:
            found = json.loads(manifest.read_text())
        except FileNotFoundError:
            found = None
        except (OSError, ValueError):
            found = "unreadable"
        if found == expected:
            return
        if found is not None:
            warnings.warn(f"{manifest}: holds {found}, needed is {expected}; the cache is made anew", stacklevel=3)
            for block in self.folder.glob("*.npy"):
                block.unlink(missing_ok=True)
        write_atomically(manifest, json.dumps(expected))

    def _block_images(self, block: int) -> np.ndarray:
        return self.images[block * BLOCK : (block + 1) * BLOCK]

    def _open(self, block: int) -> bool:
        """Maps a block if it is there and whole; a damaged one is removed."""
        if block in self._blocks:
            return True
        for path in self.folder.glob(f"{block:05d}-*.npy"):
            try:
                array = np.load(path, mmap_mode="r")
                whole = array.dtype == np.uint8 and array.shape == (len(self._block_images(block)), *self.shape)
                if whole and f"{zlib.crc32(array):08x}" == path.stem.split("-")[1]:
                    self._blocks[block] = array
                    return True
            except FileNotFoundError:
                continue  # another process has just removed it
            except (OSError, ValueError, EOFError):
                pass
            warnings.warn(f"{path}: damaged; the block is made anew", stacklevel=3)
            path.unlink(missing_ok=True)
        return False

    def _make(self, block: int, upscale: Callable[[np.ndarray], np.ndarray]) -> None:
        array = np.ascontiguousarray(upscale(self._block_images(block)))
        if array.shape[1:] != self.shape or array.dtype != np.uint8:
            raise ValueError(f"the upscaler returned {array.dtype} {array.shape[1:]}, needed is uint8 {self.shape}")
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_atomically(self.folder / f"{block:05d}-{zlib.crc32(array):08x}.npy", buffer.getvalue())

    def fill(
        self,
        indices: np.ndarray,
        upscale: Callable[[np.ndarray], np.ndarray],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Makes the blocks that hold ``indices``, unless they are there; returns when all of them are.

        Every rank begins with its own part, and helps with the others' when that is done.

        Args:
            indices: Positions in ``images``.
            upscale: uint8 n,h,w -> uint8 n,C,H,W.
            rank: Index of this process.
            world_size: Number of processes.
        """
        blocks = np.unique(np.asarray(indices) // BLOCK).tolist()
        missing = [block for block in blocks if not self._open(block)]
        own = [block for place, block in enumerate(missing) if place % world_size == rank]
        others = [block for place, block in enumerate(missing) if place % world_size != rank]
        work = own + others[::-1]  # from the end: the owner comes from the front
        progress = tqdm(
            work, desc=f"enlarging into {self.folder}", unit="block", disable=rank != 0 or not work, mininterval=1, maxinterval=60
        )
        for block in progress:
            if not self._open(block):
                self._make(block, upscale)
                if not self._open(block):
                    raise OSError(f"{self.folder}: block {block} cannot be read back after writing; is the disk sound?")

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """uint8 n,C,H,W of filled ``indices``."""
        return np.stack([self._blocks[index // BLOCK][index % BLOCK] for index in np.asarray(indices).tolist()])
