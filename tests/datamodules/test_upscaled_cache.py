"""The cache of upscaled images: filled once, by whomever; what is damaged or of another cache is made again."""

import errno
import multiprocessing
import os
import signal
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules import upscaled_cache
from datamodules.upscaled_cache import FaceCache, UpscaledFaces
from datamodules.upscalers import Upscaler, UpscalerError

COUNT, BLOCK = 22, 4  # six blocks, the last one of two images
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6), dtype=np.uint8)
EVERYTHING = np.arange(COUNT)
SIZE = 48  # of what they are upscaled to
CPU = torch.device("cpu")


class Repeat(Upscaler):
    """Repeats pixels, and remembers how many images it was given each time."""

    name = "repeat"
    cached = True

    def __init__(self, key: str = "u1", fail_after: int | None = None, pause: float = 0.0, scale: int = 8) -> None:
        self.calls: list[int] = []
        self.key, self.fail_after, self.pause, self.scale = key, fail_after, pause, scale

    def fingerprint(self) -> str:
        return self.key

    def __call__(self, images: Tensor) -> Tensor:
        if self.fail_after is not None and len(self.calls) == self.fail_after:
            raise KeyboardInterrupt
        time.sleep(self.pause)
        self.calls.append(len(images))
        return images.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


def upscaled(rows: np.ndarray) -> np.ndarray:
    return IMAGES[rows].repeat(8, axis=1).repeat(8, axis=2)[:, None]


def open_cache(folder: Path, upscaler: Upscaler | None = None, images: np.ndarray = IMAGES) -> FaceCache:
    return FaceCache(folder, UpscaledFaces(images, upscaler or Repeat()), SIZE, BLOCK)


def fill(folder: Path, rows: np.ndarray = EVERYTHING, key: str = "u1") -> list[int]:
    """Fills, checks every pixel, and returns how many images each block had that was made."""
    upscaler = Repeat(key)
    cache = open_cache(folder, upscaler)
    cache.fill(rows, CPU)
    assert np.array_equal(cache[rows], upscaled(rows))
    return upscaler.calls


def blocks(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


def test_filled_once(tmp_path: Path) -> None:
    assert sorted(fill(tmp_path)) == [2, 4, 4, 4, 4, 4]
    assert fill(tmp_path) == []
    assert [path.name[:6] for path in blocks(tmp_path)] == [f"{block:05d}-" for block in range(6)]
    assert blocks(tmp_path) == sorted(tmp_path.iterdir())


def test_only_the_blocks_that_are_asked_for(tmp_path: Path) -> None:
    assert fill(tmp_path, np.array([9, 1, 8])) == [4, 4]
    assert [path.name[:5] for path in blocks(tmp_path)] == ["00000", "00002"]
    assert len(fill(tmp_path)) == 4


def test_order_and_repetition_of_rows(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.fill(EVERYTHING, CPU)
    rows = np.array([21, 3, 3, 0])
    assert cache[rows].dtype == np.uint8
    assert np.array_equal(cache[rows], upscaled(rows))


def test_interrupted_fill_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path, Repeat(fail_after=2)).fill(EVERYTHING, CPU)
    assert len(blocks(tmp_path)) == 2
    assert len(fill(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "header", "swapped", "pipe"])
def test_damaged_block_is_made_anew(damage: str, tmp_path: Path) -> None:
    fill(tmp_path)
    path, other = blocks(tmp_path)[2:4]
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-50] ^= 1
    elif damage == "header":
        data = bytearray(bytes(data).replace(b"|u1", b"|i1"))
    elif damage == "swapped":
        data = bytearray(other.read_bytes())
    kept = {"truncated": len(data) - 1, "empty": 0}.get(damage, len(data))
    if damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(bytes(data[:kept]))
    with pytest.warns(UserWarning, match=rf"{path.name}: damaged, or of another cache; making the block again"):
        assert fill(tmp_path) == [4]
    assert fill(tmp_path) == []


def test_a_folder_in_the_place_of_a_block_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    path = blocks(tmp_path)[2]
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning), pytest.raises(UpscalerError, match=rf"{path} cannot be removed \(Is a directory\)"):
        fill(tmp_path)


@pytest.mark.parametrize("other", ["upscaler", "images", "block size"])
def test_blocks_of_something_else_are_made_again(other: str, tmp_path: Path) -> None:
    fill(tmp_path)
    upscaler, images = Repeat("u2" if other == "upscaler" else "u1"), IMAGES.copy()
    images[-1, -1, -1] ^= other == "images"
    cache = FaceCache(tmp_path, UpscaledFaces(images, upscaler), SIZE, 11 if other == "block size" else BLOCK)
    with pytest.warns(UserWarning, match="damaged, or of another cache"):
        cache.fill(EVERYTHING, CPU)
    assert sum(upscaler.calls) == COUNT
    assert np.array_equal(cache[EVERYTHING], images.repeat(8, axis=1).repeat(8, axis=2)[:, None])


def test_complete_cache_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)

    def refuse(*args: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(upscaled_cache, "write_atomically", refuse)
    assert fill(tmp_path) == []


def test_upscaler_that_returns_something_else(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Repeat returned torch\.uint8 \(\d, 1, 24, 24\), expected torch\.uint8 \(\d, 1, 48, 48\)"
    ):
        open_cache(tmp_path, Repeat(scale=4)).fill(EVERYTHING, CPU)


def test_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 40_000, 40_000)
    monkeypatch.setattr(upscaled_cache.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="cache_dir can name another place"):
        fill(tmp_path)
    assert fill(tmp_path, np.array([0])) == [4]  # 9,216 bytes


def test_leftover_of_a_killed_process_does_not_disturb(tmp_path: Path) -> None:
    fill(tmp_path, np.array([0]))
    leftover = tmp_path / ".00001-12345678.npy.writing-0123456789ab"
    leftover.write_bytes(b"half a block")
    assert len(fill(tmp_path)) == 5
    assert leftover.exists()  # it could be in use
    os.utime(leftover, (time.time() - 2 * 24 * 3600,) * 2)
    blocks(tmp_path)[0].unlink()
    assert fill(tmp_path) == [4]
    assert not leftover.exists()


def test_a_rank_makes_its_own_part_first(tmp_path: Path) -> None:
    made: list[list[int]] = []
    for rank in range(2):
        cache = open_cache(tmp_path / str(rank), Repeat(fail_after=3))
        with pytest.raises(KeyboardInterrupt):
            cache.fill(EVERYTHING, CPU, rank, world_size=2)
        made.append([int(path.name[:5]) for path in blocks(tmp_path / str(rank))])
    assert made == [[0, 2, 4], [1, 3, 5]]


def _fill(folder: Path, rank: int, world_size: int, barrier: Any, results: Any) -> None:
    upscaler = Repeat(pause=0.05)
    cache = open_cache(folder, upscaler)
    barrier.wait()
    cache.fill(EVERYTHING, CPU, rank, world_size)
    results.put((len(upscaler.calls), bool(np.array_equal(cache[EVERYTHING], upscaled(EVERYTHING)))))


@pytest.mark.parametrize("world_size", [1, 3])
def test_processes_at_once(world_size: int, tmp_path: Path) -> None:
    """Three ranks of one job, or three jobs of one rank."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=_fill, args=(tmp_path, rank % world_size, world_size, barrier, results))
        for rank in range(3)
    ]
    for process in processes:
        process.start()
    answers = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    assert all(right for _, right in answers)
    made = sum(count for count, _ in answers)
    assert 6 <= made < 18  # shared, were it not for those that were begun at the same time
    assert len(blocks(tmp_path)) == len(list(tmp_path.iterdir())) == 6
    assert fill(tmp_path) == []


def _fill_until_killed(folder: Path) -> None:
    class Killed(Repeat):
        def __call__(self, images: Tensor) -> Tensor:
            if len(blocks(folder)) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(images)

    open_cache(folder, Killed()).fill(EVERYTHING, CPU)


def test_killed_fill_goes_on(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_fill_until_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(blocks(tmp_path)) == 2
    assert len(fill(tmp_path)) == 4


def test_a_shortage_does_not_cost_intact_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    before = blocks(tmp_path)

    def too_many_files(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(np, "load", too_many_files)
    with pytest.raises(OSError, match="Too many open files"):
        open_cache(tmp_path).fill(EVERYTHING, CPU)
    assert blocks(tmp_path) == before


def test_what_a_cache_was_made_from_is_closed(tmp_path: Path) -> None:
    full = open_cache(tmp_path / "full")
    reduced = FaceCache(tmp_path / "reduced", full, SIZE // 2, BLOCK)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    reduced.fill(EVERYTHING, CPU)
    assert len(list(Path("/proc/self/fd").iterdir())) - descriptors == len(blocks(tmp_path / "reduced"))
