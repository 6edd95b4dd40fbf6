"""A folder of images: what belongs to it, how images are padded and put into batches."""

from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.image_folder import UpscaleTask, list_images, pad, read_batches


def test_what_belongs_to_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for path in ("in/b.png", "in/a/c.JPG", "in/.git/d.png", "in/.e.png", "in/elsewhere/f.gif", "linked/g.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    (root / "link").symlink_to(tmp_path / "linked")
    found = list_images(root)
    assert [[str(path) for path in paths] for paths in found] == [["a/c.JPG", "b.png"], ["elsewhere/f.gif", "link"]]


def test_padding_reflects_and_repeats_a_single_row() -> None:
    row = np.arange(5, dtype=np.uint8).reshape(1, 5, 1)
    assert pad(row)[:, :, 0].tolist() == [[0, 1, 2, 3, 4, 3, 2, 1]] * 8
    assert pad(row[:, :2])[0, :, 0].tolist() == [0, 1] * 4
    assert pad(np.zeros((16, 8, 3))).shape == (16, 8, 3)


def test_batches_hold_images_of_one_padded_size(tmp_path: Path) -> None:
    sizes = [(16, 16), (16, 9), (8, 8), (7, 5), (8, 1), (3, 8), (24, 24), (24, 24)]
    tasks = []
    for number, size in enumerate(sizes):
        Image.fromarray(np.full(size, 40 * number // 2, np.uint8)).save(tmp_path / f"{number}.png")
        tasks.append(UpscaleTask(str(number), tmp_path / f"{number}.png", (), (0, 0)))
    tasks.insert(3, UpscaleTask("missing", tmp_path / "missing.png", (), (0, 0)))
    skipped: dict[str, str] = {}

    def names(batch_size: int, pixels: int) -> list[str]:
        batches = read_batches(tasks, batch_size, pixels, lambda task, why: skipped.update({task.name: str(why)}))
        return ["".join(image.task.name for image in batch) for batch in batches]

    assert names(3, 10_000) == ["01", "234", "5", "67"]
    assert names(100, 128) == ["0", "1", "23", "45", "6", "7"]  # the memory is bounded, whatever the batch size
    assert skipped == {"missing": "cannot be read (No such file or directory)"}
