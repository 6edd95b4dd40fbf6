"""The cache of enlarged images: filled once, by whom ever, noticed when it is not what it should be."""

import multiprocessing
import os
import signal
import time
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import upscaled_cache
from datamodules.upscaled_cache import UpscaledCache

COUNT = 22
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6), dtype=np.uint8)
EVERYTHING = np.arange(COUNT)
KEYS = {"data": "d1", "upscaler": "u1"}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upscaled_cache, "BLOCK", 4)  # six blocks, the last one of two images


class Upscale:
    """Doubles the size, and remembers how many images it was given each time."""

    def __init__(self, fail_after: int | None = None, pause: float = 0.0) -> None:
        self.calls: list[int] = []
        self.fail_after, self.pause = fail_after, pause

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self.fail_after is not None and len(self.calls) == self.fail_after:
            raise KeyboardInterrupt
        time.sleep(self.pause)
        self.calls.append(len(images))
        return images.repeat(2, axis=1).repeat(2, axis=2)[:, None]


def open_cache(folder: Path, **keys: str) -> UpscaledCache:
    return UpscaledCache(folder, IMAGES, (1, 12, 12), {**KEYS, **keys})


def fill(folder: Path, indices: np.ndarray = EVERYTHING, **keys: str) -> list[int]:
    """Fills, checks every pixel, and returns how many images each made block had."""
    cache, upscale = open_cache(folder, **keys), Upscale()
    cache.fill(indices, upscale)
    assert np.array_equal(cache[indices], Upscale()(IMAGES[indices]))
    return upscale.calls


def blocks(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


def test_filled_once(tmp_path: Path) -> None:
    assert sorted(fill(tmp_path)) == [2, 4, 4, 4, 4, 4]
    assert fill(tmp_path) == []
    assert [path.name[:6] for path in blocks(tmp_path)] == [f"{block:05d}-" for block in range(6)]
    assert len(list(tmp_path.iterdir())) == 7  # and the manifest


def test_only_the_blocks_that_are_asked_for(tmp_path: Path) -> None:
    assert fill(tmp_path, np.array([9, 1, 8])) == [4, 4]
    assert [path.name[:5] for path in blocks(tmp_path)] == ["00000", "00002"]
    assert len(fill(tmp_path)) == 4


def test_order_and_repetition_of_indices(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.fill(EVERYTHING, Upscale())
    indices = np.array([21, 3, 3, 0])
    assert cache[indices].dtype == np.uint8
    assert np.array_equal(cache[indices], Upscale()(IMAGES[indices]))


def test_interrupted_fill_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path).fill(EVERYTHING, Upscale(fail_after=2))
    assert len(blocks(tmp_path)) == 2
    assert len(fill(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "header", "swapped"])
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
    path.write_bytes(bytes(data[:kept]))
    with pytest.warns(UserWarning, match=rf"{path.name}: damaged or of another cache; the block is made anew"):
        assert fill(tmp_path) == [4]
    assert fill(tmp_path) == []


@pytest.mark.parametrize("manifest", ["", "{", '{"data": "other"}', "\udcff"])
def test_wrong_manifest_is_corrected(manifest: str, tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "manifest.json"
    right = path.read_text()
    path.write_bytes(manifest.encode(errors="surrogateescape"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert fill(tmp_path) == []  # the blocks tell for themselves what they are
    assert any("corrected" in str(warning.message) for warning in caught) == bool(manifest)
    assert path.read_text() == right


@pytest.mark.filterwarnings("ignore:.*corrected:UserWarning")
@pytest.mark.parametrize("keys", [{"data": "d2"}, {"upscaler": "u2"}])
def test_blocks_of_other_data_or_another_generator_are_made_anew(keys: dict[str, str], tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.warns(UserWarning, match="damaged or of another cache"):
        assert len(fill(tmp_path, **keys)) == 6


@pytest.mark.filterwarnings("ignore:.*damaged:UserWarning")
def test_blocks_of_another_size_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.setattr(upscaled_cache, "BLOCK", 11)
    with pytest.warns(UserWarning, match="corrected"):
        assert sorted(fill(tmp_path)) == [11, 11]


def test_complete_cache_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)

    def refuse(*args: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(upscaled_cache, "write_atomically", refuse)
    assert fill(tmp_path) == []


def test_upscaler_that_returns_something_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"returned uint8 \(1, 6, 6\), needed is uint8 \(1, 12, 12\)"):
        open_cache(tmp_path).fill(EVERYTHING, lambda images: images[:, None])


def test_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 3000, 3000)
    monkeypatch.setattr(upscaled_cache.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match="another place can be named as cache_dir"):
        fill(tmp_path)
    assert fill(tmp_path, np.array([0])) == [4]  # 576 bytes


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
        cache = open_cache(tmp_path / str(rank))
        with pytest.raises(KeyboardInterrupt):
            cache.fill(EVERYTHING, Upscale(fail_after=3), rank, world_size=2)
        made.append([int(path.name[:5]) for path in blocks(tmp_path / str(rank))])
    assert made == [[0, 2, 4], [1, 3, 5]]


def _fill(folder: Path, rank: int, world_size: int, barrier: Any, results: Any) -> None:
    cache, upscale = open_cache(folder), Upscale(pause=0.05)
    barrier.wait()
    cache.fill(EVERYTHING, upscale, rank, world_size)
    results.put((len(upscale.calls), bool(np.array_equal(cache[EVERYTHING], Upscale()(IMAGES)))))


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
    assert len(list(tmp_path.iterdir())) == 7
    assert fill(tmp_path) == []


def test_killed_fill_goes_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    third, upscale = context.Event(), Upscale()

    def upscale_two(images: np.ndarray) -> np.ndarray:
        if len(upscale.calls) == 2:
            third.set()
            time.sleep(600)
        return upscale(images)

    process = context.Process(target=open_cache(tmp_path).fill, args=(EVERYTHING, upscale_two), daemon=True)
    process.start()
    assert third.wait(600)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(blocks(tmp_path)) == 2
    assert len(fill(tmp_path)) == 4
