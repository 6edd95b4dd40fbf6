"""Enlarged faces on disk: made once per generator and data set, by any number of processes at the same time.

The images are kept in blocks, one ``.npy`` file each. A block is written under a temporary name and renamed, and its
name carries the CRC-32 of its content and of what the cache is for: every block that passes the check is whole and
belongs here, and a process makes the blocks that it does not find. There are no locks. An interrupted fill goes on
where it stopped, and processes that fill the same cache take the blocks in different orders: they share the work.
"""

import io
import json
import shutil
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from storage.atomic import remove_leftovers, write_atomically

BLOCK = 128  # images in a block: 18 MiB of gray 384x384, about ten seconds of a small generator on two cores


class UpscaledCache:
    """The enlarged counterparts of ``images``, as uint8 C,H,W each.

    Args:
        folder: Where the blocks are.
        images: uint8 N,h,w. Images with the same pixels should be passed once (see ``FERPlusTable.identity``).
        shape: C,H,W of an enlarged image.
        keys: What the content depends on: the fingerprints of data and generator.
    """

    def __init__(self, folder: Path, images: np.ndarray, shape: tuple[int, int, int], keys: dict[str, str]) -> None:
        self.folder, self.images, self.shape = folder, images, shape
        self.manifest = json.dumps({**keys, "images": len(images), "shape": list(shape), "block": BLOCK}) + "\n"
        self._blocks: dict[int, np.ndarray] = {}
        self._write_manifest()

    def _write_manifest(self) -> None:
        """Says in the folder what the cache is for; blocks of another purpose fail their check, one by one."""
        path = self.folder / "manifest.json"
        try:
            found = path.read_text()
        except FileNotFoundError:
            found = ""
        except (OSError, ValueError) as error:
            found = f"unreadable ({error})"
        if found != self.manifest:
            if found:
                warnings.warn(f"{path}: is {found!r}, needed is {self.manifest!r}; corrected", stacklevel=3)
            write_atomically(path, self.manifest)

    def _checksum(self, array: np.ndarray) -> str:
        return f"{zlib.crc32(array.data, zlib.crc32(self.manifest.encode())):08x}"

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
                if whole and path.stem == f"{block:05d}-{self._checksum(array)}":
                    self._blocks[block] = array
                    return True
            except FileNotFoundError:
                continue  # another process has just removed it
            except (OSError, ValueError, EOFError):
                pass
            warnings.warn(f"{path}: damaged or of another cache; the block is made anew", stacklevel=3)
            path.unlink(missing_ok=True)
        return False

    def _make(self, block: int, upscale: Callable[[np.ndarray], np.ndarray]) -> None:
        array = np.ascontiguousarray(upscale(self._block_images(block)))
        if array.shape[1:] != self.shape or array.dtype != np.uint8:
            raise ValueError(f"the upscaler returned {array.dtype} {array.shape[1:]}, needed is uint8 {self.shape}")
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_atomically(self.folder / f"{block:05d}-{self._checksum(array)}.npy", buffer.getvalue())
        if not self._open(block):
            raise OSError(f"{self.folder}: block {block} cannot be read back after writing; is the disk sound?")

    def _check_space(self, missing: int) -> None:
        needed, free = missing * BLOCK * int(np.prod(self.shape)), shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(
                f"{self.folder}: the enlarged images that are missing need {needed / 1e9:.1f} GB, free on the disk are "
                f"{free / 1e9:.1f} GB; another place can be named as cache_dir"
            )

    def fill(
        self,
        indices: np.ndarray,
        upscale: Callable[[np.ndarray], np.ndarray],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Makes the blocks that hold ``indices``, unless they are there; returns when all of them are.

        Every rank makes its own part, and then helps with what the others have not made yet.

        Args:
            indices: Positions in ``images``.
            upscale: uint8 n,h,w -> uint8 n,C,H,W.
            rank: Index of this process.
            world_size: Number of processes.

        Raises:
            ValueError: The upscaler returned something else, or the disk is too small.
            OSError: A block cannot be written or read back.
        """
        blocks = np.unique(np.asarray(indices) // BLOCK).tolist()
        missing = [block for block in blocks if not self._open(block)]
        if not missing:
            return
        remove_leftovers(self.folder)
        self._check_space(len(missing))
        order = np.random.default_rng()  # of no seed: two jobs with the same blocks to make should begin elsewhere
        own = [block for place, block in enumerate(missing) if place % world_size == rank]
        others = [block for place, block in enumerate(missing) if place % world_size != rank]
        work = [*order.permutation(own).tolist(), *order.permutation(others).tolist()]
        images = sum(len(self._block_images(block)) for block in work)
        with tqdm(total=images, desc=f"enlarging into {self.folder}", unit="image", disable=rank != 0) as progress:
            for block in work:
                if not self._open(block):
                    self._make(block, upscale)
                progress.update(len(self._block_images(block)))

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """uint8 n,C,H,W of filled ``indices``."""
        return np.stack([self._blocks[index // BLOCK][index % BLOCK] for index in np.asarray(indices).tolist()])
