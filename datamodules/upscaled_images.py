"""Upscale batches of the images of a folder, and write PNGs that name the generator and the file they were made from.

Shapes: B batch, h x w low resolution, padded; H = 8h, W = 8w.
"""

import io
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from datamodules.image_folder import SourceImage, UpscaleTask, digest_of, pad, print_skipped
from datamodules.upscalers import DICUpscaler
from models.dic import SCALE, denormalise, normalise
from models.heatmaps import HEATMAP_STRIDE, heatmaps_to_landmarks, upscale_heatmaps
from models.resampling import luma_bt601, round_levels
from models.tiling import MIN_TILE, tile_side, upscale_in_tiles
from storage.atomic import remove_leftovers, write_atomically
from storage.images import check_png
from storage.reading import read_bytes
from storage.shortage import is_out_of_memory

HEAT_COLOUR, LANDMARK_COLOUR = (255, 210, 0), (255, 40, 40)
HEAT_OPACITY = 0.6  # where a heatmap is 1 or more
_GENERATOR_KEY, _SOURCE_KEY = "superfer_generator", "superfer_source"  # text chunks


def upscale_batch(
    upscaler: DICUpscaler, images: list[SourceImage], heatmaps: bool, pixels: int
) -> list[tuple[SourceImage, list[Image.Image]]]:
    """Upscale images of one padded size, each to one picture per target; gray ones become the luma of the result.

    An image of more than 2 * `pixels` is upscaled in tiles of about `pixels`. What does not fit the memory is upscaled
    image by image and in smaller tiles. An image that is too large even so, or too large for landmarks, which
    tiles do not have, is named and skipped.

    Raises:
        UpscalerError: The generator returned numbers that are not finite.
    """
    stacked = torch.from_numpy(np.stack([pad(image.rgb) for image in images])).permute(0, 3, 1, 2)
    in_tiles = stacked.shape[-2] * stacked.shape[-1] > 2 * pixels
    if heatmaps and in_tiles:
        print_skipped(images[0].task, f"too large for landmarks, expected at most {2 * pixels:,} padded pixels")
        return []
    try:
        large, maps = _run(upscaler, stacked, heatmaps, tile_side(pixels) if in_tiles else None)
        color, luma = round_levels(large).cpu(), round_levels(luma_bt601(large)).cpu()
        return [
            (image, _draw(image, (luma if image.gray else color)[row], None if maps is None else maps[row]))
            for row, image in enumerate(images)
        ]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Only here is the exception gone, and with it the tensors that it held.
    if len(images) > 1 or pixels >= MIN_TILE**2:
        return [one for image in images for one in upscale_batch(upscaler, [image], heatmaps, pixels // 4)]
    print_skipped(images[0].task, "too large for the memory")
    return []


@torch.inference_mode()
def _run(upscaler: DICUpscaler, stacked: Tensor, heatmaps: bool, tile: int | None) -> tuple[Tensor, Tensor | None]:
    """Upscale uint8 B,3,h,w to B,3,H,W, 0 to 255, and heatmaps B,68,H/4,W/4 on the CPU where they are asked for."""
    net, maps = upscaler.network, None
    lr = (stacked.to(next(net.parameters()).device).float() / 255).contiguous(memory_format=torch.channels_last)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as exact on GPUs as on CPUs
        if tile:
            large = upscale_in_tiles(net, lr, tile)
        elif heatmaps:
            steps, all_maps = net(normalise(lr))
            large, maps = denormalise(steps[-1]).clamp(0, 1), all_maps[-1].cpu()
            upscaler.check_finite(maps)
        else:
            large = net.upscale(lr)
    upscaler.check_finite(large)
    return large * 255, maps


def _draw(image: SourceImage, levels: Tensor, heatmaps: Tensor | None) -> list[Image.Image]:
    """Make pictures of uint8 C,H,W levels and 68,H/4,W/4 heatmaps, without the padding."""
    height, width = (SCALE * side for side in image.rgb.shape[:2])
    levels = levels[:, :height, :width]
    pictures = [Image.fromarray(levels.permute(1, 2, 0).squeeze(-1).numpy())]
    if image.alpha:
        pictures[0].putalpha(image.alpha.resize(pictures[0].size, Image.Resampling.BICUBIC))
    if heatmaps is not None:  # cut before the peaks are looked for
        inside = heatmaps[:, : height // HEATMAP_STRIDE, : width // HEATMAP_STRIDE]
        landmarks = heatmaps_to_landmarks(inside[None], subpixel=True)[0] * HEATMAP_STRIDE
        pictures.append(draw_landmarks(levels, inside.amax(dim=0).clamp(0, 1), landmarks))
    return pictures


def draw_landmarks(levels: Tensor, heat: Tensor, landmarks: Tensor) -> Image.Image:
    """Lay heatmaps, float32 H/4,W/4 in [0, 1], and landmarks, 68,2 (x, y) in its pixels, over a face, uint8 C,H,W."""
    opacity = HEAT_OPACITY * upscale_heatmaps(heat[None, None])[0, 0, :, :, None]  # H,W,1
    face = levels.expand(3, -1, -1).permute(1, 2, 0).float()
    mixed = (1 - opacity) * face + opacity * torch.tensor(HEAT_COLOUR)
    picture = Image.fromarray(mixed.round().to(torch.uint8).numpy())
    draw, dot = ImageDraw.Draw(picture), max(picture.size) // 128
    for x, y in landmarks.round().int().tolist():
        draw.rectangle((x, y, x + dot, y + dot), fill=LANDMARK_COLOUR)
    return picture


def write_upscaled(image: SourceImage, pictures: Iterable[Image.Image], generator: str) -> None:
    """Write the files of a task, each with the marks that `read_origin` reads."""
    origin = PngInfo()
    origin.add_text(_GENERATOR_KEY, generator)
    origin.add_text(_SOURCE_KEY, image.digest)
    for path, picture in zip(image.task.targets, pictures, strict=True):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", pnginfo=origin)
        try:
            write_atomically(path, buffer.getvalue())
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror or error})") from error


def read_origin(path: Path) -> tuple[str, str]:
    """Return the generator and the digest of the source that an upscaled image names; empty for any other file.

    A damaged image has no source, so that it is made again.
    """
    generator = ""
    try:
        content = read_bytes(path)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            generator, source = str(image.info.get(_GENERATOR_KEY, "")), str(image.info.get(_SOURCE_KEY, ""))
        check_png(content)
        return generator, source
    except Exception:  # a file of somebody else may be anything
        return generator, ""


def check_origins(tasks: Iterable[UpscaleTask], generator: str, overwrite: bool) -> None:
    """Refuse to replace what something else wrote, and remove what killed processes left."""
    files = [file for task in tasks for file in task.targets]
    for folder in {file.parent for file in files}:
        remove_leftovers(folder)
    for file in files if not overwrite else ():
        if file.exists() and read_origin(file)[0] != generator:
            raise ValueError(
                f"{file} is not an image of this generator ({generator}); name another --out, or replace such files "
                "with --overwrite"
            )


def is_upscaled(task: UpscaleTask, generator: str) -> bool:
    """Return whether all files of a task are there, made by this generator from the file as it is now."""
    origins = {read_origin(path) for path in task.targets}
    with suppress(OSError):  # a source that is gone
        return ("", "") not in origins and origins == {(generator, digest_of(read_bytes(task.source)))}
    return False
