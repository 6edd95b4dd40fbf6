"""`superfer upscale` on a folder: pixels equal those of DIC.upscale, and what is skipped is named."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.image_folder import pad
from datamodules.upscaled_images import LANDMARK_COLOUR, draw_landmarks
from models.dic import DIC, normalise
from models.heatmaps import heatmaps_to_landmarks
from models.resampling import round_levels
from models.tiling import upscale_in_tiles
from tests.commands.upscaling import arguments, exit_code, expected, levels, read, refused, save, snapshot, upscaled


def test_pixels_are_those_of_the_network(generator: Path, images: Path) -> None:
    color, gray = levels(8, 8), levels(8, 12, channels=1)
    sizes = {"a.png": (8, 8), "sub/b.bmp": (16, 8), "sub/deep/c.tif": (1, 1), "d.PNG": (5, 13), "e.tiff": (9, 3)}
    wanted = {name: levels(*size) for name, size in sizes.items()}
    for name, array in wanted.items():
        save(images / name, array)
    palette, cmyk = Image.fromarray(color).quantize(16), Image.fromarray(color).convert("CMYK")
    palette.save(images / "palette.png")
    cmyk.save(images / "cmyk.tif")
    save(images / "photo.jpg", levels(8, 16), quality=90)
    save(images / "web.webp", levels(16, 16), lossless=True)
    wanted |= {"palette.png": np.asarray(palette.convert("RGB")), "cmyk.tif": np.asarray(cmyk.convert("RGB"))}
    wanted |= {"photo.jpg": read(images / "photo.jpg"), "web.webp": levels(16, 16)}
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise
    for name in ("turned.jpg", "too.webp"):
        save(images / name, levels(8, 24), exif=turned)
        wanted[name] = np.ascontiguousarray(np.rot90(read(images / name), -1))
    save(images / "l.png", gray)
    save(images / "rgb.png", np.stack([gray] * 3, axis=-1))  # what a camera sends at night
    Image.fromarray(gray > 127).save(images / "bits.png")
    wanted |= {"l.png": gray, "rgb.png": gray, "bits.png": (gray > 127).astype(np.uint8) * 255}
    out = upscaled(generator, images, "--batch_size=1")
    assert set(snapshot(out)) == {str(Path(name).with_suffix(".png")) for name in wanted}
    for name, array in wanted.items():
        assert np.array_equal(read((out / name).with_suffix(".png")), expected(generator, array)), name
    assert read(out / "a.png").std() > 5
    shutil.rmtree(out)
    upscaled(generator, images)
    for name, array in wanted.items():  # the last bits of float32 depend on the size of a batch
        large = read((out / name).with_suffix(".png")).astype(int)
        assert np.abs(large - expected(generator, array)).max() <= 1


def test_alpha_is_upscaled_bicubically_and_kept(generator: Path, images: Path) -> None:
    array = levels(8, 10, channels=4)
    save(images / "rgba.png", array)
    save(images / "la.png", array[..., [0, 3]])
    out = upscaled(generator, images, "--batch_size=1")
    alpha = np.asarray(Image.fromarray(array[..., 3]).resize((80, 64), Image.Resampling.BICUBIC))
    assert np.array_equal(read(out / "rgba.png"), np.dstack([expected(generator, array[..., :3]), alpha]))
    assert np.array_equal(read(out / "la.png"), np.dstack([expected(generator, array[..., 0]), alpha]))


def test_large_images_are_upscaled_in_tiles_and_without_landmarks(
    generator: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(images / "large.png", levels(72, 67))
    save(images / "small.png", levels(8, 8))
    monkeypatch.setattr("commands.upscale.pixels_at_once", lambda net: 2500)
    args = arguments(generator, images, "--batch_size=1")
    assert exit_code([*args, "--heatmaps"]) == 1
    assert "large.png: too large for landmarks, expected at most 5,000 padded pixels" in capsys.readouterr().err
    out = upscaled(generator, images, "--batch_size=1")
    assert np.array_equal(read(out / "small.png"), expected(generator, levels(8, 8)))
    lr = torch.from_numpy(pad(levels(72, 67))).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        whole = 255 * upscale_in_tiles(DIC.from_checkpoint(generator), lr, tile=64)[0]
    difference = read(out / "large.png").astype(int) - round_levels(whole).permute(1, 2, 0).numpy()[:, :536]
    assert np.abs(difference).max() <= 1


def test_files_that_cannot_be_upscaled_are_named_and_the_others_written(
    generator: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(images / "good.png", levels(8, 8))
    save(images / "large.png", np.zeros((1025, 1024), np.uint8))
    save(images / "thin.png", np.zeros((1, 131073), np.uint8))  # eight rows when it is padded
    save(images / "truncated.png", levels(16, 16))
    save(images / "truncated.jpg.bmp", levels(16, 16))
    for name in ("truncated.png", "truncated.jpg.bmp"):
        (images / name).write_bytes((images / name).read_bytes()[:150])
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in levels(10, 16, 1)))  # of sixteen
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    (images / "rows.png").write_bytes(b"".join([b"\x89PNG\r\n\x1a\n", *packed]))
    (images / "empty.jpg").write_bytes(b"")
    Image.fromarray(levels(8, 8)).save(images / "gif.png", "GIF")
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
    lines = [line for line in printed.err.splitlines() if "skipped" in line]
    reasons = dict(line.removeprefix(f"skipped: {images}/").split(": ", 1) for line in lines)
    wanted = {
        "large.png": "image has 1024 x 1025 pixels, expected at most 1,048,576",
        "thin.png": "image has 131073 x 1 pixels, expected at most 1,048,576",
        "truncated.png": "image file is truncated",
        "rows.png": "image file is truncated: rows are missing",
        "truncated.jpg.bmp": "image file is truncated",  # which its header does not show
        "empty.jpg": "cannot identify image file",
        "gif.png": "cannot identify image file",
        "gray_png.png": "image has more than 8 bits per channel, expected 8; convert it first",
        "gray_tif.tif": "image has more than 8 bits",
        "color_png.png": "image has more than 8 bits",
        "color_tif.tif": "image has more than 8 bits",
        "whole.tif": "image has more than 8 bits",
        "float.tif": "image has more than 8 bits",
        "pages.tif": "file holds 2 images, expected 1",
    }
    assert set(reasons) == set(wanted)
    for name, reason in wanted.items():
        assert reasons[name].startswith(reason), (name, reasons[name])
    out = images.parent / "out"
    assert set(snapshot(out)) == {"good.png"}
    assert np.array_equal(read(out / "good.png"), expected(generator, levels(8, 8)))
    assert f"1 images upscaled into {out}, 0 were there already, 14 skipped" in printed.out
    assert f"not read: 2 other files, the first is {images / 'notes.txt'}" in printed.out


def test_refusals(generator: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = arguments(generator, images)
    assert f"no images in {images}: looked for .png" in refused(good, capsys)
    save(images / "a.png", levels(8, 8))
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for more, message in (
        (("--images", tmp_path / "nowhere"), f"No such file or directory: '{tmp_path / 'nowhere'}'"),
        (("--images", tmp_path / "file"), f"Not a directory: '{tmp_path / 'file'}'"),
        (("--images", ""), "--images: is empty, expected a folder"),
        (("--out", images), f"--out is {images}, expected a folder that neither contains --images"),
        (("--out", images / "sub"), "nor is inside it"),
        (("--out", tmp_path), "nor is inside it"),
        (("--out", tmp_path / "file" / "out"), f"Not a directory: '{tmp_path / 'file' / 'out'}'"),
        (("--out", tmp_path / "loop"), f"File exists: '{tmp_path / 'loop'}'"),
        (("--ckpt_path", tmp_path / "nowhere.ckpt"), "no checkpoint: looked for"),
        (("--ckpt_path", tmp_path / "file"), "cannot be read"),
        (("--batch_size=0",), "--batch_size is 0, expected at least 1"),
        (("--devices=0",), "--devices is 0"),
        (("--devices=x",), "invalid int value: 'x'"),
        (("--batch=3",), "unrecognized arguments: --batch=3"),
        (("--accelerator=tpu",), "invalid choice: 'tpu'"),
        (("--accelerator=gpu", f"--devices={10**20}"), "--devices is 100000000000000000000, expected at most "),
    ):
        assert message in refused([*good, *map(str, more)], capsys)
    assert "required: --ckpt_path" in refused(["--images", str(images), "--out", "out"], capsys)
    assert "required: --ckpt_path, --images" in refused(["--out", "out"], capsys)
    save(images / "a.bmp", levels(8, 8))
    assert f"a.bmp and {images / 'a.png'} would both become {tmp_path / 'out' / 'a.png'}" in refused(good, capsys)
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


def test_heatmaps(generator: Path, images: Path) -> None:
    array = levels(16, 11)
    save(images / "a.png", array)
    out = upscaled(generator, images, "--heatmaps")
    assert np.abs(read(out / "a.png").astype(int) - expected(generator, array)).max() <= 1
    net = DIC.from_checkpoint(generator)
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
