"""Built-in data: synthetic faces on disk, as a folder of landmarked faces and as a look-alike of FER+.

Both have the file layout of the real data, so that everything downstream is exercised by them; neither says anything
about real faces, and each folder carries a `SYNTHETIC` marker that says so. Every image is a function of its folder's
seed and of its own number alone, whatever the number of processes that draw.

    python -m datamodules.synthetic --root data/synthetic --faces 300 --val-faces 60 --train 2000 --val 400 --test 400
"""

import argparse
import csv
import functools
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from datamodules.labels import CLASSES
from datamodules.synthetic import SYNTHETIC_MARKER
from datamodules.synthetic.drawing import render_face
from datamodules.synthetic.votes import MIN_IMAGES, Sample, Split, plan_split
from storage.atomic import write_atomically

VERSION = 1  # raised when the same arguments give other bytes, so that older folders are written again

CSV_HEADER = ("Usage", "Image name", *CLASSES, "unknown", "NF")

Row = tuple[str | int, ...]  # of the CSV

# Folder and value of the column "Usage".
SPLITS: dict[Split, tuple[str, str]] = {
    "train": ("FER2013Train", "Training"),
    "val": ("FER2013Valid", "PublicTest"),
    "test": ("FER2013Test", "PrivateTest"),
}

_Task = TypeVar("_Task")

_FER_SIZE = 48

_RENDERED_SIZE = 64  # of a FER+ look-alike before it is reduced and aged

_FACES_STREAM = 0  # second entry of the seed of a landmarked face; FER+'s are in synthetic_votes

_VAL_SEED = 1_000_000  # added to the seed for the landmarked validation faces: people who are not in training

_NAMELESS_SHARE = 0.005  # rows of the CSV without an image, as FER+ has them

_SMALLEST_POOL = 64  # fewer images are drawn before a pool of processes has started


def write_faces(root: str | Path, count: int, size: int, seed: int) -> bool:
    """Write landmarked colour faces: `face00000.png` and, one-based as in iBUG's files, `face00000.pts`.

    A folder that this function wrote with the same arguments is left as it is; one that it wrote with others is
    replaced.

    Args:
        root: Folder to write.
        count: Number of faces, at least 1.
        size: Side of the images in pixels.
        seed: At least 0.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: If an argument is out of its range.
        FileExistsError: If `root` holds anything that this module did not write.
    """
    _check_at_least("count", count, 1)
    _check_at_least("seed", seed, 0)
    with _replacing(Path(root), {"kind": "faces", "count": count, "size": size, "seed": seed}) as folder:
        if folder is not None:
            _draw_all(functools.partial(_write_face, folder, size, seed), range(count))
    return folder is not None


def write_ferplus(root: str | Path, counts: Mapping[str, int], seed: int) -> bool:
    """Write a look-alike of FER+: `FER2013Train|Valid|Test/fer0000000.png` and `fer2013new.csv`.

    The images are 48x48, 8-bit gray. Ten simulated people vote on each; the weaker the expression, the less they
    agree. As in FER+, a few rows have no image, a few images show no face, and a few images of validation and test
    also occur in training. An existing folder is treated as by `write_faces`.

    Args:
        root: Folder to write.
        counts: Number of images of "train", "val" and "test"; at least 24 each, so that every class occurs.
        seed: At least 0.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: If an argument is out of its range, or a split is missing or unknown.
        FileExistsError: If `root` holds anything that this module did not write.
    """
    if set(counts) != set(SPLITS):
        raise ValueError(f"counts has the splits {sorted(counts)}; it must have {sorted(SPLITS)}")
    for split, count in counts.items():
        _check_at_least(f"counts[{split!r}]", count, MIN_IMAGES)
    _check_at_least("seed", seed, 0)
    with _replacing(Path(root), {"kind": "ferplus", "counts": dict(counts), "seed": seed}) as folder:
        if folder is None:
            return False
        rows: list[Row] = []
        images: list[tuple[Path, Sample]] = []
        for split, (subfolder, usage) in SPLITS.items():
            (folder / subfolder).mkdir()
            samples = plan_split(split, counts, seed)
            names = [f"fer{len(images) + index:07d}.png" for index in range(len(samples))]
            images += [(folder / subfolder / name, sample) for name, sample in zip(names, samples, strict=True)]
            named: list[Row] = [(usage, name, *sample.votes) for name, sample in zip(names, samples, strict=True)]
            rows += _with_nameless(named, usage)
        _draw_all(functools.partial(_write_fer_image, seed), images)
        with (folder / "fer2013new.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([CSV_HEADER, *rows])
    return True


def main(args: Sequence[str] | None = None) -> None:
    """Write both data sets below one folder; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.synthetic.writing", description=main.__doc__, allow_abbrev=False
    )
    parser.add_argument("--root", type=Path, default=Path("data/synthetic"))
    for name, default in (("faces", 200), ("val-faces", 40), ("train", 1200), ("val", 240), ("test", 240), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--size", type=int, default=128, help="side of the landmarked faces in pixels")
    options = parser.parse_args(args)
    counts: dict[str, int] = {split: getattr(options, split) for split in SPLITS}
    arguments = {"kind": "all", "faces": options.faces, "val_faces": options.val_faces, "size": options.size}
    arguments |= {"counts": counts, "seed": options.seed}
    root: Path = options.root
    if _written(root) != _record(arguments):
        (root / SYNTHETIC_MARKER).unlink(missing_ok=True)
    try:
        wrote = write_faces(root / "faces" / "train", options.faces, options.size, options.seed)
        wrote |= write_faces(root / "faces" / "val", options.val_faces, options.size, options.seed + _VAL_SEED)
        wrote |= write_ferplus(root / "ferplus", counts, options.seed)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    _write_marker(root, arguments)
    faces, gray = options.faces + options.val_faces, sum(counts.values())
    print(f"{root}: {faces} landmarked and {gray} 48x48 synthetic faces", "written" if wrote else "were already there")


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")


def _with_nameless(rows: list[Row], usage: str) -> list[Row]:
    """Spread a few rows without an image over the rows: all ten voters saw no face in it."""
    empty: Row = (usage, "", *[0] * 9, 10)
    every = len(rows) // max(1, round(_NAMELESS_SHARE * len(rows)))
    mixed: list[Row] = []
    for index, row in enumerate(rows):
        mixed += [row, empty] if index % every == every // 2 else [row]
    return mixed


def _write_face(folder: Path, size: int, seed: int, index: int) -> None:
    rng = np.random.default_rng((seed, _FACES_STREAM, index))
    emotion = CLASSES[index % len(CLASSES)]
    image, landmarks = render_face(size, emotion, rng.uniform(0.2, 1.0), rng)
    _write_png(folder / f"face{index:05d}.png", image[..., ::-1])
    lines = "".join(f"{x:.3f} {y:.3f}\n" for x, y in (landmarks + 1.0).tolist())
    (folder / f"face{index:05d}.pts").write_text(f"version: 1\nn_points: {len(landmarks)}\n{{\n{lines}}}\n")


def _write_fer_image(seed: int, task: tuple[Path, Sample]) -> None:
    path, sample = task
    rng = np.random.default_rng((seed, sample.stream, sample.index))
    if sample.content == "nothing":
        blots = rng.uniform(0, 255, (int(rng.integers(2, 9)),) * 2).astype(np.float32)
        gray = cv2.resize(blots, (_RENDERED_SIZE, _RENDERED_SIZE), interpolation=cv2.INTER_CUBIC)
    else:
        image, _ = render_face(_RENDERED_SIZE, sample.emotion, sample.intensity, rng)
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    if sample.content == "unclear":
        gray = cv2.GaussianBlur(gray, (0, 0), 7.0)
    _write_png(path, age_photograph(gray, rng))


def age_photograph(gray: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Reduce a gray image, 0-255, to 48x48 and give it the flaws of FER2013: contrast, blur, noise, JPEG blocks."""
    spread, mean, sigma, noise = rng.uniform((34.0, 85.0, 0.1, 1.0), (66.0, 165.0, 0.75, 7.0))
    small = cv2.resize(gray, (_FER_SIZE, _FER_SIZE), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma)
    gain = min(spread / (float(small.std()) + 1e-3), 2.5)  # a flat image stays flat
    small = (small - small.mean()) * gain + mean + noise * rng.standard_normal(small.shape, np.float32)
    quality = int(rng.integers(35, 95))
    _, encoded = cv2.imencode(".jpg", small.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
    return np.asarray(decoded, np.uint8)


def _write_png(path: Path, image: npt.NDArray[Any]) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f"cannot write the image {path}")


def _one_thread() -> None:
    cv2.setNumThreads(1)  # the processes are the parallelism


def _draw_all(draw: Callable[[_Task], None], tasks: Sequence[_Task]) -> None:
    """Call `draw` on every task, in all cores' processes if there are enough of them."""
    workers = os.cpu_count() or 1
    if workers == 1 or len(tasks) < _SMALLEST_POOL:
        for task in tasks:
            draw(task)
        return
    # Spawned, not forked: the caller may hold threads (torch, W&B).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        for _ in pool.map(draw, tasks, chunksize=16):
            pass


def _record(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"synthetic": True, "version": VERSION, **arguments}


def _written(root: Path) -> dict[str, Any] | None:
    """What the marker of a folder says, or None without one."""
    try:
        record = json.loads((root / SYNTHETIC_MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return record if isinstance(record, dict) else None


def _write_marker(root: Path, arguments: dict[str, Any]) -> None:
    write_atomically(root / SYNTHETIC_MARKER, json.dumps(_record(arguments)) + "\n")


@contextmanager
def _replacing(root: Path, arguments: dict[str, Any]) -> Iterator[Path | None]:
    """Give a folder to fill that takes the place of `root` when it is complete, or None if nothing is to be done.

    An interrupted run leaves `root` as it was.
    """
    if _written(root) == _record(arguments):
        yield None
        return
    if root.exists() and _written(root) is None and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(
            f"{root} exists and has no {SYNTHETIC_MARKER} file of this generator; give an empty or new folder"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        folder = temporary / "new"
        folder.mkdir()
        yield folder
        _write_marker(folder, arguments)
        if root.exists():
            root.rename(temporary / "old")
        try:
            folder.rename(root)
        except OSError:  # another process wrote it in the meantime
            if _written(root) != _record(arguments):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
