"""What the tests of `superfer upscale` on a folder do and expect."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands.upscale import upscale
from datamodules.image_folder import pad
from models.dic import DIC
from models.resampling import round_levels


def levels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng((seed, height, width)).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)  # type: ignore[arg-type]


def arguments(generator: Path, images: Path, *more: str) -> list[str]:
    out = images.parent / "out"
    return ["--ckpt_path", str(generator), "--images", str(images), "--out", str(out), "--accelerator=cpu", *more]


def upscaled(generator: Path, images: Path, *more: str) -> Path:
    """Upscale everything; return the output folder."""
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
    net = DIC.from_checkpoint(generator).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
