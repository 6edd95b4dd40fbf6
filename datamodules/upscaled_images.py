"""Upscale batches of the images of a folder, and write PNGs that name the generator and the file they were made from.

Shapes: B batch, h x w low resolution, padded; H = 8h, W = 8w.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from datamodules.image_folder import SourceImage, UpscaleTask, digest_of, pad
from datamodules.upscalers import DICUpscaler
from models.dic import SCALE, denormalise, normalise
from models.heatmaps import HEATMAP_STRIDE, heatmaps_to_landmarks, upscale_heatmaps
from models.resampling import luma_bt601, round_levels
from models.tiling import tile_side, upscale_in_tiles
from storage.atomic import remove_leftovers, write_atomically

HEAT_COLOUR, LANDMARK_COLOUR = (255, 210, 0), (255, 40, 40)
HEAT_OPACITY = 0.6  # where a heatmap is 1 or more
_GENERATOR_KEY, _SOURCE_KEY = "superfer_generator", "superfer_source"  # text chunks


class UpscaledImage(NamedTuple):
    """A result, on the CPU and without the padding.

    Attributes:
        image: what it was made from.
        levels: uint8 C,H,W; C is 1 for gray images and 3 for the others.
        heat: float32 H/4,W/4, the maximum over the 68 heatmaps, [0, 1]; None where heatmaps are not asked for.
        landmarks: float32 68,2, (x, y) of their peaks in pixels of `levels`; None likewise.
    """

    image: SourceImage
    levels: Tensor
    heat: Tensor | None
    landmarks: Tensor | None


def find_targets(names: Sequence[Path], out: Path, heatmaps: bool) -> dict[Path, tuple[Path, ...]]:
    """Return the files that each image becomes; refuse two images that would become the same."""
    made_from: dict[Path, Path] = {}
    targets: dict[Path, tuple[Path, ...]] = {}
    for name in names:
        plain = out / name.with_suffix(".png")
        targets[name] = (plain, plain.with_name(f"{plain.stem}_landmarks.png"))[: 1 + heatmaps]
        for target in targets[name]:
            other = made_from.setdefault(target, name)
            if other != name:
                raise ValueError(f"{other} and {name} would both become {target}; rename one of them")
    return targets


def upscale_batch(
    upscaler: DICUpscaler,
    images: list[SourceImage],
    heatmaps: bool,
    pixels: int,
    skip: Callable[[UpscaleTask, object], None],
    in_tiles: bool = False,
) -> list[UpscaledImage]:
    """Upscale images of one padded size; gray ones become the luma of the result.

    A batch that does not fit the memory of a GPU is upscaled image by image, and an image that does not fit alone in
    tiles; these find no landmarks.

    Args:
        upscaler: the generator, on its device.
        images: at least one.
        heatmaps: find landmarks, too, at the cost of one more pass of the hourglass.
        pixels: LR pixels in a tile; an image of more than twice as many is always upscaled in tiles.
        skip: told about each image that does not fit the memory at all, with the reason.
        in_tiles: upscale in tiles, whatever the size.

    Raises:
        ValueError: the generator returned numbers that are not finite.
    """
    stacked = torch.from_numpy(np.stack([pad(image.rgb) for image in images])).permute(0, 3, 1, 2)
    in_tiles = in_tiles or stacked.shape[-2] * stacked.shape[-1] > 2 * pixels
    with contextlib.suppress(torch.OutOfMemoryError):
        large, maps = _run(upscaler, stacked, heatmaps, tile_side(pixels) if in_tiles else None)
        color, luma = round_levels(large).cpu(), round_levels(luma_bt601(large)).cpu()
        return [
            _cut(image, (luma if image.gray else color)[row], None if maps is None else maps[row])
            for row, image in enumerate(images)
        ]
    # Only here is the exception gone, and with it the tensors that it held.
    if len(images) > 1:
        return [one for image in images for one in upscale_batch(upscaler, [image], heatmaps, pixels, skip)]
    if not (heatmaps or in_tiles):
        return upscale_batch(upscaler, images, heatmaps, pixels, skip, in_tiles=True)
    skip(images[0].task, "too large for the memory of the GPU")
    return []


@torch.inference_mode()
def _run(upscaler: DICUpscaler, stacked: Tensor, heatmaps: bool, tile: int | None) -> tuple[Tensor, Tensor | None]:
    """Return images B,3,H,W, 0 to 255, and heatmaps B,68,H/4,W/4 where they are asked for; uint8 B,3,h,w is given."""
    net, maps = upscaler.network, None
    lr = (stacked.to(next(net.parameters()).device).float() / 255).contiguous(memory_format=torch.channels_last)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as exact on GPUs as on CPUs
        if tile:
            large = upscale_in_tiles(net, lr, tile)
        elif heatmaps:
            steps, all_maps = net(normalise(lr))
            large, maps = denormalise(steps[-1]).clamp(0, 1), all_maps[-1]
            upscaler.check_finite(maps)
        else:
            large = net.upscale(lr)
    upscaler.check_finite(large)
    return large * 255, maps


def _cut(image: SourceImage, levels: Tensor, heatmaps: Tensor | None) -> UpscaledImage:
    """Cut the padding off C,H,W levels and 68,H/4,W/4 heatmaps, whose peaks must not lie in it."""
    height, width = (SCALE * side for side in image.rgb.shape[:2])
    levels = levels[:, :height, :width]
    if heatmaps is None:
        return UpscaledImage(image, levels, None, None)
    inside = heatmaps[:, : height // HEATMAP_STRIDE, : width // HEATMAP_STRIDE]
    landmarks = heatmaps_to_landmarks(inside[None], subpixel=True)[0] * HEATMAP_STRIDE
    return UpscaledImage(image, levels, inside.amax(dim=0).clamp(0, 1).cpu(), landmarks.cpu())


def write_upscaled(upscaled: UpscaledImage, generator: str) -> None:
    """Write the files of a task.

    Raises:
        OSError: a file cannot be written.
    """
    picture = Image.fromarray(upscaled.levels.permute(1, 2, 0).squeeze(-1).numpy())
    if upscaled.image.alpha:
        picture.putalpha(upscaled.image.alpha.resize(picture.size, Image.Resampling.BICUBIC))
    pictures = [picture]
    if upscaled.heat is not None and upscaled.landmarks is not None:
        pictures.append(draw_landmarks(upscaled.levels, upscaled.heat, upscaled.landmarks))
    origin = PngInfo()
    origin.add_text(_GENERATOR_KEY, generator)
    origin.add_text(_SOURCE_KEY, upscaled.image.digest)
    for path, content in zip(upscaled.image.task.targets, pictures, strict=True):
        buffer = io.BytesIO()
        content.save(buffer, "PNG", pnginfo=origin)
        try:
            write_atomically(path, buffer.getvalue())
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror or error})") from error


def read_origin(path: Path) -> tuple[str, str] | None:
    """Return the generator and the source's digest that an upscaled image names.

    Both are empty if `path` is anything else; None if nothing is there, or a damaged image of ours.
    """
    if not path.exists():
        return None
    if not path.is_file():
        return "", ""
    origin = "", ""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            origin = str(image.info.get(_GENERATOR_KEY, "")), str(image.info.get(_SOURCE_KEY, ""))
            image.verify()  # the checksums of all chunks
            return origin
    except Exception:  # somebody else's file may be anything; one of ours that is damaged is made again
        return None if origin[0] else origin


def check_origins(targets: dict[Path, tuple[Path, ...]], generator: str, overwrite: bool) -> None:
    """Refuse to replace what something else wrote, and remove what killed processes left."""
    files = [file for made in targets.values() for file in made]
    for folder in {file.parent for file in files}:
        remove_leftovers(folder)
    for file in files if not overwrite else ():
        origin = read_origin(file)
        if origin and origin[0] != generator:
            raise ValueError(
                f"{file} was not made by this generator ({generator}) but by {origin[0] or 'something else'}; name "
                "another --out, or replace such files with --overwrite"
            )


def is_upscaled(task: UpscaleTask, generator: str) -> bool:
    """Return whether all files of a task are there, made by this generator from the file as it is now."""
    origins = {read_origin(path) for path in task.targets}
    try:
        # The file is read only if it matters: before most tasks nothing is there.
        return None not in origins and origins == {(generator, digest_of(task.source.read_bytes()))}
    except OSError:
        return False


def draw_landmarks(levels: Tensor, heat: Tensor, landmarks: Tensor) -> Image.Image:
    """Lay heatmaps and landmarks over a face.

    Args:
        levels: uint8 C,H,W.
        heat: float32 H/4,W/4, [0, 1]; its pixel u stands for pixel 4u of the face (see `models.heatmaps`).
        landmarks: float32 68,2, (x, y) in pixels of the face.
    """
    opacity = HEAT_OPACITY * upscale_heatmaps(heat[None, None])[0, 0, :, :, None]  # H,W,1
    face = levels.expand(3, -1, -1).permute(1, 2, 0).float()
    mixed = (1 - opacity) * face + opacity * torch.tensor(HEAT_COLOUR)
    picture = Image.fromarray(mixed.round().to(torch.uint8).numpy())
    draw, dot = ImageDraw.Draw(picture), max(picture.size) // 128
    for x, y in landmarks.round().int().tolist():
        draw.rectangle((x, y, x + dot, y + dot), fill=LANDMARK_COLOUR)
    return picture
