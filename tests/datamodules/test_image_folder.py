"""A folder of images: what belongs to it, how images are padded and put into batches."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.image_folder import UpscaleTask, largest_first, list_images, pad, read_batches


def test_what_belongs_to_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for path in ("in/b.png", "in/a/c.JPG", "in/.git/d.png", "in/.e.png", "in/elsewhere/f.gif", "linked/g.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    (root / "link").symlink_to(tmp_path / "linked")
    found = list_images(root)
    relative = [[str(path.relative_to(root)) for path in paths] for paths in found]
    assert relative == [["a/c.JPG", "b.png"], ["elsewhere/f.gif", "link"]]


def test_padding_reflects_and_repeats_a_single_row() -> None:
    row = np.arange(5, dtype=np.uint8).reshape(1, 5, 1)
    assert pad(row)[:, :, 0].tolist() == [[0, 1, 2, 3, 4, 3, 2, 1]] * 8
    assert pad(row[:, :2])[0, :, 0].tolist() == [0, 1] * 4
    assert pad(np.zeros((16, 8, 3))).shape == (16, 8, 3)


def test_images_of_one_size_follow_each_other_the_largest_first(tmp_path: Path) -> None:
    sizes = [(8, 8), (16, 9), (8, 16), (5, 8), (16, 16)]
    for number, size in enumerate(sizes):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"{number}.png")
    ordered = largest_first([UpscaleTask(tmp_path / f"{number}.png", ()) for number in range(5)])
    names = [task.source.stem for task in ordered]
    assert [set(names[:2]), names[2], set(names[3:])] == [{"1", "4"}, "2", {"0", "3"}]


def test_batches_hold_images_of_one_padded_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [(16, 16), (16, 9), (8, 8), (7, 5), (8, 1), (3, 8), (24, 24), (24, 24)]
    tasks = []
    for number, size in enumerate(sizes):
        Image.fromarray(np.full(size, 40 * number // 2, np.uint8)).save(tmp_path / f"{number}.png")
        tasks.append(UpscaleTask(tmp_path / f"{number}.png", ()))
    tasks.insert(3, UpscaleTask(tmp_path / "missing.png", ()))

    def names(batch_size: int, pixels: int) -> list[str]:
        batches = read_batches(tasks, batch_size, pixels)
        return ["".join(image.task.source.stem for image in batch) for batch in batches]

    assert names(3, 10_000) == ["01", "234", "5", "67"]
    assert names(100, 128) == ["0", "1", "23", "45", "6", "7"]  # the memory is bounded, whatever the batch size
    assert capsys.readouterr().err.count(f"skipped: {tmp_path / 'missing.png'}: [Errno 2] No such file") == 2
