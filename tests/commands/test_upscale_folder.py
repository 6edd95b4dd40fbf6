"""upscale.py on a folder: pixels equal those of DIC.upscale, nothing is lost, and what cannot be done is said."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from callbacks.image_writer import HEAT_COLOUR, HEAT_OPACITY, LANDMARK_COLOUR, draw_landmarks
from commands import upscale_folder
from commands.upscale import upscale
from datamodules.image_folder import list_images, pad, plan_batches
from lightning_modules import enlarger
from lightning_modules.enlarger import Enlarger
from models.dic import DIC, normalise
from models.heatmaps import heatmaps_to_landmarks
from models.pretrained import load_generator
from models.resampling import round_levels
from tests.tiny_runs import REPOSITORY, write_generator


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_generator(tmp_path_factory.mktemp("generator") / "dic.ckpt")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An empty input folder."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def levels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng((seed, height, width)).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)  # type: ignore[arg-type]


def save_truncated(path: Path) -> None:
    save(path, levels(16, 16))
    path.write_bytes(path.read_bytes()[:150])


def arguments(generator: Path, images: Path, *more: str) -> list[str]:
    out = images.parent / "out"
    return ["--ckpt_path", str(generator), "--images", str(images), "--out", str(out), "--accelerator=cpu", *more]


def enlarge(generator: Path, images: Path, *more: str) -> Path:
    out = upscale(arguments(generator, images, *more))
    assert out == images.parent / "out"
    return out


def exit_code(args: list[str]) -> object:
    with pytest.raises(SystemExit) as exit_:
        upscale(args)
    return exit_.value.code


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends before anything is written."""
    capsys.readouterr()
    assert exit_code(args) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message
    return message


def expected(generator: Path, array: np.ndarray) -> np.ndarray:
    """uint8 8h,8w,3, or 8h,8w for a gray image; DIC.upscale of the image, padded if need be."""
    gray = array.ndim == 2
    rgb = np.stack([array] * 3, axis=-1) if gray else array
    net = load_generator(generator).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lr = torch.from_numpy(pad(rgb)).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        large = net.upscale(lr.contiguous(memory_format=torch.channels_last))[0] * 255
    if gray:
        large = (0.299 * large[0] + 0.587 * large[1] + 0.114 * large[2])[None]
    result = round_levels(large).permute(1, 2, 0).numpy()[: 8 * array.shape[0], : 8 * array.shape[1]]
    return result[..., 0] if gray else result


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_pixels_are_those_of_the_network(generator: Path, images: Path) -> None:
    sizes = {"a.png": (8, 8), "sub/b.bmp": (16, 8), "sub/deep/c.tif": (1, 1), "d.PNG": (5, 13), "e.tiff": (9, 3)}
    for name, size in sizes.items():
        save(images / name, levels(*size))
    out = enlarge(generator, images, "--batch_size=1")
    made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert made == {"a.png", "sub/b.png", "sub/deep/c.png", "d.png", "e.png"}
    for name, size in sizes.items():
        large = read((out / name).with_suffix(".png"))
        assert large.shape == (8 * size[0], 8 * size[1], 3)
        assert np.array_equal(large, expected(generator, levels(*size))), name
    assert read(out / "a.png").std() > 5


def test_padding_reflects_and_repeats_a_single_row() -> None:
    row = np.arange(5, dtype=np.uint8).reshape(1, 5, 1)
    assert pad(row)[:, :, 0].tolist() == [[0, 1, 2, 3, 4, 3, 2, 1]] * 8
    assert pad(row[:, :2])[0, :, 0].tolist() == [0, 1] * 4
    whole = levels(16, 8)
    assert np.array_equal(pad(whole), whole)


def test_gray_stays_gray(generator: Path, images: Path) -> None:
    gray = levels(8, 12, channels=1)
    save(images / "l.png", gray)
    save(images / "rgb.png", np.stack([gray] * 3, axis=-1))  # what a camera sends at night
    Image.fromarray(gray > 127).save(images / "bits.png")
    out = enlarge(generator, images, "--batch_size=1")
    for name in ("l", "rgb"):
        assert np.array_equal(read(out / f"{name}.png"), expected(generator, gray))
    assert np.array_equal(read(out / "bits.png"), expected(generator, (gray > 127).astype(np.uint8) * 255))


def test_other_kinds_of_pixels(generator: Path, images: Path) -> None:
    color = levels(8, 8)
    palette = Image.fromarray(color).quantize(16)
    palette.save(images / "palette.png")
    cmyk = Image.fromarray(color).convert("CMYK")
    cmyk.save(images / "cmyk.tif")
    save(images / "photo.jpg", levels(8, 16), quality=90)
    save(images / "web.webp", levels(16, 16), lossless=True)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise
    for suffix in ("png", "tif", "webp"):
        save(images / f"turned_{suffix}.{suffix}", levels(8, 24), exif=turned, **{"lossless": True})
    out = enlarge(generator, images, "--batch_size=1")
    rgb = {"palette": palette.convert("RGB"), "cmyk": cmyk.convert("RGB"), "photo": Image.open(images / "photo.jpg")}
    for name, image in rgb.items():
        assert np.array_equal(read(out / f"{name}.png"), expected(generator, np.asarray(image))), name
    assert np.array_equal(read(out / "web.png"), expected(generator, levels(16, 16)))
    upright = np.ascontiguousarray(np.rot90(levels(8, 24), -1))
    for suffix in ("png", "tif", "webp"):
        assert np.array_equal(read(out / f"turned_{suffix}.png"), expected(generator, upright)), suffix


def test_alpha_is_enlarged_bicubically_and_kept(generator: Path, images: Path) -> None:
    array = levels(8, 10, channels=4)
    save(images / "rgba.png", array)
    save(images / "la.png", array[..., [0, 3]])
    out = enlarge(generator, images, "--batch_size=1")
    large, alpha = read(out / "rgba.png"), Image.fromarray(array[..., 3]).resize((80, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(large[..., :3], expected(generator, array[..., :3]))
    assert np.array_equal(large[..., 3], np.asarray(alpha))
    gray = read(out / "la.png")
    assert np.array_equal(gray[..., 0], expected(generator, array[..., 0])) and gray.shape == (64, 80, 2)
    assert np.array_equal(gray[..., 1], np.asarray(alpha))


def test_what_belongs_to_a_folder(images: Path, tmp_path: Path) -> None:
    for name in ("b.png", "a/c.JPG", ".git/d.png", ".e.png", "elsewhere/f.gif"):
        save(images / name, levels(8, 8), format="PNG")
    save(tmp_path / "linked" / "g.png", levels(8, 8))
    (images / "link").symlink_to(tmp_path / "linked")
    found = list_images(images)
    assert [[str(path) for path in paths] for paths in found] == [["a/c.JPG", "b.png"], ["elsewhere/f.gif", "link"]]


def test_batches_hold_images_of_one_padded_size(generator: Path, images: Path) -> None:
    sizes = [(8, 8), (16, 16), (7, 5), (8, 1), (16, 9), (3, 8)]
    for number, size in enumerate(sizes):
        save(images / f"{number}.png", levels(*size))
    job = upscale_folder.prepare(arguments(generator, images, "--batch_size=3"))
    names = [[task.name for task in batch] for batch in job.batches]
    assert names == [["1.png", "4.png"], ["0.png", "2.png", "3.png"], ["5.png"]]
    report = upscale_folder.run(job)
    assert (report.written, report.skipped, report.finite) == (6, {}, True)
    for number, size in enumerate(sizes):  # the last bits of float32 depend on the size of a batch
        large = read(images.parent / "out" / f"{number}.png").astype(int)
        assert np.abs(large - expected(generator, levels(*size))).max() <= 1


def test_memory_is_bounded_whatever_the_batch_size(generator: Path, images: Path) -> None:
    save(images / "a.png", levels(8, 8))
    task = upscale_folder.prepare(arguments(generator, images)).batches[0][0]
    tasks = [task._replace(width=width, height=64) for width in [64] * 40 + [131072 // 64] * 2]
    batches = plan_batches(tasks, batch_size=1000, pixels=65_536)
    assert [len(batch) for batch in batches] == [1, 1, 16, 16, 8]


def test_what_does_not_fit_into_the_memory_goes_alone_or_is_skipped(
    generator: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in {"a": (8, 8), "b": (8, 8), "large": (64, 64)}.items():
        save(images / f"{name}.png", levels(*size))
    whole = DIC.upscale

    def small_memory(net: DIC, lr: torch.Tensor) -> torch.Tensor:
        if len(lr) > 1 or lr.shape[-1] > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(net, lr)

    monkeypatch.setattr(DIC, "upscale", small_memory)
    assert exit_code(arguments(generator, images)) == 1
    assert "skipped: large.png: 64 x 64: too large for the GPU's memory" in capsys.readouterr().err
    monkeypatch.undo()
    out = images.parent / "out"
    assert set(snapshot(out)) == {"a.png", "b.png"}
    assert np.array_equal(read(out / "a.png"), expected(generator, levels(8, 8)))


class Remembering(torch.nn.Module):
    """A network that looks no further than a pixel, or returns how many tiles it has seen."""

    config = DIC(4, 2, 1, 1, 8).config

    def __init__(self, numbers: bool = False) -> None:
        super().__init__()
        self.numbers = numbers
        self.tiles: list[torch.Size] = []

    def upscale(self, image: torch.Tensor) -> torch.Tensor:
        self.tiles.append(image.shape[-2:])
        large = image.repeat_interleave(8, -1).repeat_interleave(8, -2)
        return torch.full_like(large, len(self.tiles) - 1) if self.numbers else large


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 24 pixels for F 4, G 1, overlapping by 8; images of more than 1,152 pixels are cut."""
    monkeypatch.setattr(enlarger, "PIXELS_AT_ONCE", 24 * 24 * 12)
    monkeypatch.setattr(enlarger, "OVERLAP", 8)


@pytest.mark.parametrize("size", [(40, 24), (24, 61), (25, 16), (64, 64)])
@pytest.mark.usefixtures("small_tiles")
def test_tiles_of_a_large_image_fit_together(size: tuple[int, int]) -> None:
    images = torch.from_numpy(np.stack([pad(levels(*size, seed=seed)) for seed in (0, 1)])).permute(0, 3, 1, 2)
    net = Remembering()
    large, heatmaps = Enlarger(net)._run(images, in_tiles=True)  # type: ignore[arg-type]
    assert heatmaps is None and all(max(tile) <= 24 for tile in net.tiles)
    torch.testing.assert_close(large, net.upscale(images.float() / 255), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("small_tiles")
def test_one_tile_passes_evenly_into_the_next() -> None:
    images = torch.zeros(1, 3, 16, 40, dtype=torch.uint8)
    large, _ = Enlarger(Remembering(numbers=True))._run(images, in_tiles=True)  # type: ignore[arg-type]
    row = large[0, 0, 64]  # tiles from 0 to 191 and from 128 to 319
    assert torch.equal(row[:128], torch.zeros(128)) and torch.equal(row[192:], torch.ones(128))
    torch.testing.assert_close(row[128:192], (torch.arange(64) + 0.5) / 64)


@pytest.mark.usefixtures("small_tiles")
def test_large_images_are_enlarged_in_tiles_and_without_landmarks(
    generator: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(images / "large.png", levels(40, 31))
    save(images / "small.png", levels(8, 8))
    assert exit_code(arguments(generator, images, "--heatmaps")) == 1
    assert "skipped: large.png: 31 x 40 are too many pixels for landmarks" in capsys.readouterr().err
    upscale(arguments(generator, images))
    out = images.parent / "out"
    assert read(out / "large.png").shape == (320, 248, 3)
    assert np.array_equal(read(out / "small.png"), expected(generator, levels(8, 8)))


@pytest.mark.usefixtures("small_tiles")
def test_an_image_that_does_not_fit_into_the_memory_is_cut(
    generator: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(images / "a.png", levels(32, 32))
    whole, seen = DIC.upscale, []

    def small_memory(net: DIC, lr: torch.Tensor) -> torch.Tensor:
        seen.append(lr.shape[-1])
        if lr.shape[-1] > 24:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(net, lr)

    monkeypatch.setattr(DIC, "upscale", small_memory)
    upscale(arguments(generator, images))
    assert seen == [32, 32, 24, 24, 24, 24]
    assert read(images.parent / "out" / "a.png").shape == (256, 256, 3)


def test_files_that_cannot_be_enlarged_are_named_and_the_others_written(
    generator: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(images / "good.png", levels(8, 8))
    save(images / "large.png", np.zeros((1025, 1024), np.uint8))
    save(images / "thin.png", np.zeros((1, 131073), np.uint8))  # eight rows when it is padded
    save_truncated(images / "truncated.png")
    save_truncated(images / "truncated.jpg.bmp")
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.bmp").write_text("not an image")
    Image.fromarray(levels(8, 8)).save(images / "gif.png", "GIF")
    Image.fromarray(levels(8, 8)).save(images / "animation.GIF")
    deep = levels(8, 8).astype(np.uint16) * 16
    for suffix in ("png", "tif"):
        cv2.imwrite(str(images / f"gray_{suffix}.{suffix}"), deep[..., 0])
        cv2.imwrite(str(images / f"color_{suffix}.{suffix}"), deep)
    Image.fromarray(np.ones((8, 8), np.float32)).save(images / "float.tif")
    Image.fromarray(np.ones((8, 8), np.int32)).save(images / "whole.tif")
    pages = [Image.fromarray(levels(8, 8, seed=seed)) for seed in (0, 1)]
    pages[0].save(images / "pages.tif", save_all=True, append_images=pages[1:])
    (images / "notes.txt").write_text("left alone")
    os.mkfifo(images / "pipe.png")
    (images / ".hidden.png").write_bytes(b"left alone, too")
    assert exit_code(arguments(generator, images)) == 1
    printed = capsys.readouterr()
    reasons = dict(line.removeprefix("skipped: ").split(": ", 1) for line in printed.err.splitlines() if "skip" in line)
    wanted = {
        "large.png": "1024 x 1025 are more than 1,048,576 pixels",
        "thin.png": "131073 x 1 are more than 1,048,576 pixels",
        "truncated.png": "not a readable image (image file is truncated",
        "truncated.jpg.bmp": "not a readable image (image file is truncated",  # which its header does not show
        "empty.jpg": "not a readable image of the formats PNG",
        "text.bmp": "not a readable image of the formats PNG",
        "animation.GIF": "of a format that is not read; convert it to one of .png",
        "gif.png": "not a readable image of the formats PNG",
        "gray_png.png": "more than 8 bits per channel; convert it to 8 bits first",
        "gray_tif.tif": "more than 8 bits",
        "color_png.png": "more than 8 bits",
        "color_tif.tif": "more than 8 bits",
        "whole.tif": "more than 8 bits",
        "float.tif": "floating-point levels per channel",
        "pages.tif": "holds 2 images",
    }
    assert set(reasons) == set(wanted)
    for name, reason in wanted.items():
        assert reasons[name].startswith(reason), (name, reasons[name])
    out = images.parent / "out"
    assert set(snapshot(out)) == {"good.png"}
    assert np.array_equal(read(out / "good.png"), expected(generator, levels(8, 8)))
    assert f"1 images enlarged into {out}, 15 skipped" in printed.out
    assert "left alone: 2 files, the first is notes.txt" in printed.out


def test_refusals(generator: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = arguments(generator, images)
    assert f"{images} holds no images (looked for .png" in refused(good, capsys)
    save(images / "a.png", levels(8, 8))
    (tmp_path / "file").write_text("")

    def changed(name: str, value: Path | str) -> list[str]:
        return [str(value) if good[place - 1] == name else word for place, word in enumerate(good)]

    for name, value, message in (
        ("--images", tmp_path / "nowhere", "nowhere: no such folder"),
        ("--images", tmp_path / "file", "file: not a folder"),
        ("--out", images, "neither may lie in the other"),
        ("--out", images / "sub", "neither may lie in the other"),
        ("--out", tmp_path, "neither may lie in the other"),
        ("--out", tmp_path / "file" / "out", "cannot be written (Not a directory)"),
        ("--out", "/proc/out", "--out /proc/out cannot be written"),
        ("--ckpt_path", tmp_path / "nowhere.ckpt", "no checkpoint: looked for"),
        ("--ckpt_path", tmp_path / "file", "cannot be read"),
    ):
        assert message in refused(changed(name, value), capsys)
    for more, message in (
        ("--batch_size=0", "--batch_size is 0"),
        ("--devices=0", "--devices is 0"),
        ("--devices=x", "invalid int value: 'x'"),
        ("--batch=3", "unrecognized arguments: --batch=3"),
        ("--accelerator=tpu", "invalid choice: 'tpu'"),
    ):
        assert message in refused([*good, more], capsys)
    assert "required: --ckpt_path" in refused(["--images", str(images), "--out", "out"], capsys)
    assert "required: --ckpt_path, --images" in refused(["--out", "out"], capsys)
    save(images / "a.bmp", levels(8, 8))
    assert f"a.bmp and a.png would both become {tmp_path / 'out' / 'a.png'}" in refused(good, capsys)
    (images / "a.bmp").rename(images / "a_landmarks.bmp")
    assert "would both become" in refused([*good, "--heatmaps"], capsys)
    assert set(snapshot(tmp_path)) == {"file", "in/a.png", "in/a_landmarks.bmp"}


def test_folders_without_permission(
    generator: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(images / "closed" / "a.png", levels(8, 8))
    scandir = os.scandir

    def closed(path: object) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", closed)  # the tests may run as root, whom nothing is denied
    assert f"Permission denied: '{images / 'closed'}'" in refused(arguments(generator, images), capsys)


def test_an_interrupted_job_is_carried_on(generator: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        save(images / f"{number}.png", levels(8, 8, seed=number))
    undisturbed = snapshot(enlarge(generator, images, "--batch_size=1"))
    shutil.rmtree(images.parent / "out")
    calls, whole = [], DIC.upscale

    def killed(net: DIC, lr: torch.Tensor) -> torch.Tensor:
        calls.append(len(lr))
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return whole(net, lr)

    monkeypatch.setattr(DIC, "upscale", killed)
    with pytest.raises(RuntimeError, match="power cut"):
        enlarge(generator, images, "--batch_size=1")
    out = images.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {path.name for path in before} == {"0.png", "1.png"}
    enlarge(generator, images, "--batch_size=1")
    assert len(calls) == 3 + 2, "only what was missing is made"
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert snapshot(out) == undisturbed
    enlarge(generator, images)
    assert len(calls) == 5, "nothing is left to do"
    (out / "0.png").write_bytes((out / "0.png").read_bytes()[:-40])  # the disk has lost the end of it
    enlarge(generator, images)
    assert len(calls) == 6 and snapshot(out) == undisturbed


def test_changed_images_are_made_anew(generator: Path, images: Path) -> None:
    save(images / "a.png", levels(8, 8))
    out = enlarge(generator, images)
    save(images / "a.png", levels(8, 8, seed=1))
    enlarge(generator, images)
    assert np.array_equal(read(out / "a.png"), expected(generator, levels(8, 8, seed=1)))
    enlarge(generator, images, "--heatmaps")  # the landmarks are missing, so both are made
    assert set(snapshot(out)) == {"a.png", "a_landmarks.png"}


def test_two_generators_are_not_mixed(
    generator: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        save(images / f"{name}.png", levels(8, 8))
    out = enlarge(generator, images)
    before = snapshot(out)
    other = write_generator(tmp_path / "other.ckpt", seed=1)
    message = refused(arguments(other, images), capsys)
    assert f"{out / 'a.png'} was not made by this generator (dic-" in message and "--overwrite" in message
    (out / "a.png").unlink()
    assert "b.png was not made by this generator" in refused(arguments(other, images), capsys)
    (out / "b.png").write_text("somebody's")
    assert "b.png was not made by this generator" in refused(arguments(generator, images), capsys)
    enlarge(generator, images, "--overwrite")
    assert snapshot(out) == before
    enlarge(other, images, "--overwrite")
    assert np.array_equal(read(out / "a.png"), expected(other, levels(8, 8)))
    assert not np.array_equal(expected(other, levels(8, 8)), expected(generator, levels(8, 8)))


def test_numbers_that_are_not_finite_name_the_checkpoint(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(images / "a.png", levels(8, 8))
    broken = write_generator(tmp_path / "broken.ckpt", broken=True)
    assert f"{broken}: the generator returned numbers that are not finite" in refused(arguments(broken, images), capsys)
    assert not snapshot(tmp_path / "out")


def test_heatmaps(generator: Path, images: Path) -> None:
    array = levels(16, 11)
    save(images / "a.png", array)
    out = enlarge(generator, images, "--heatmaps")
    assert np.abs(read(out / "a.png").astype(int) - expected(generator, array)).max() <= 1
    net = load_generator(generator)
    with torch.inference_mode():
        _, heatmaps = net(normalise(torch.from_numpy(pad(array)).permute(2, 0, 1)[None].float() / 255))
    inside = heatmaps[-1][0, :, :32, :22]
    points = heatmaps_to_landmarks(inside[None], subpixel=True)[0] * 4
    picture = draw_landmarks(
        torch.from_numpy(read(out / "a.png").copy()).permute(2, 0, 1), inside.amax(dim=0).clamp(0, 1), points
    )
    shown = read(out / "a_landmarks.png")
    assert shown.shape == (128, 88, 3) and np.abs(shown.astype(int) - np.asarray(picture)).mean() < 0.5
    x, y = points[0].round().int().tolist()
    assert tuple(shown[y, x]) == LANDMARK_COLOUR


def test_heatmap_pixels_lie_on_every_fourth_pixel_of_the_face() -> None:
    heat = torch.zeros(4, 4)
    heat[1, 2] = 1
    landmarks = torch.zeros(68, 2)
    shown = np.asarray(draw_landmarks(torch.full((1, 16, 16), 100, dtype=torch.uint8), heat, landmarks)).astype(int)
    strength = (shown[..., 0] - 100) / (HEAT_OPACITY * (HEAT_COLOUR[0] - 100))
    strength[0, 0] = 0  # the landmark
    assert np.unravel_index(strength.argmax(), strength.shape) == (4, 8)
    assert strength[4, 8] == pytest.approx(1, abs=0.02) and strength[4, 6] == pytest.approx(0.5, abs=0.02)
    assert strength[4, 10] == pytest.approx(0.5, abs=0.02) and strength[6, 8] == pytest.approx(0.5, abs=0.02)
    assert tuple(shown[0, 0]) == LANDMARK_COLOUR


def test_progress_is_lines_where_there_is_no_terminal(
    generator: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(upscale_folder, "LINE_EVERY", 2)
    for number in range(5):
        save(images / f"{number}.png", levels(8, 8))
    enlarge(generator, images, "--batch_size=1")
    lines = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if " images/s" in line]
    assert lines == ["image 2/5", "image 4/5"]


@pytest.mark.parametrize("count", [0, 5])
def test_two_processes_write_what_one_writes(count: int, generator: Path, images: Path) -> None:
    for number in range(count):
        save(images / f"{number}.png", levels(8, 8 * (1 + number % 2), seed=number))
    save_truncated(images / "damaged.bmp")
    args = arguments(generator, images, "--batch_size=1")
    assert exit_code(args) == 1
    out = images.parent / "out"
    alone = snapshot(out)
    assert len(alone) == count  # with none, the second process has nothing to do
    shutil.rmtree(out)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "superfer.py"), "upscale", *args, "--devices=2"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert f"{count} images enlarged into {out}, 1 skipped" in done.stdout
    assert done.stdout.count("enlarged into") == 1 and done.stderr.count("skipped: damaged.bmp: ") == 1
    both = snapshot(out)
    assert set(both) == set(alone)
    for name in alone:  # threads change the last bits
        pixels = [np.asarray(Image.open(io.BytesIO(files[name]))).astype(int) for files in (both, alone)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_a_generator_broken_in_two_processes_ends_both(images: Path, tmp_path: Path) -> None:
    for number in range(2):
        save(images / f"{number}.png", levels(8, 8))
    broken = write_generator(tmp_path / "broken.ckpt", broken=True)
    done = subprocess.run(
        [
            sys.executable,
            str(REPOSITORY / "superfer.py"),
            "upscale",
            *arguments(broken, images, "--batch_size=1", "--devices=2"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.count("numbers that are not finite") == 1 and "Traceback" not in done.stderr


def test_module_runs_in_a_plain_trainer(generator: Path, images: Path) -> None:
    save(images / "a.png", levels(8, 8))
    job = upscale_folder.prepare(arguments(generator, images))
    module = Enlarger(load_generator(generator), heatmaps=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (outputs,) = trainer.predict(module, datamodule=upscale_folder.ImageFolder(job.batches))  # type: ignore[misc]
    (one,) = outputs["enlarged"]
    assert (one.levels.shape, one.heat.shape, one.landmarks.shape) == ((3, 64, 64), (16, 16), (68, 2))
