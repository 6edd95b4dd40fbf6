"""Writes the enlarged images of `lightning_modules.enlarger`, and pictures of the landmarks in them."""

import io
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from lightning_modules.enlarger import Enlarged
from models.heatmaps import enlarge_heatmaps
from storage.atomic import write_atomically

GENERATOR_KEY, SOURCE_KEY = "superfer_generator", "superfer_source"  # text chunks of the PNG
HEAT_COLOUR, LANDMARK_COLOUR = (255, 210, 0), (255, 40, 40)
HEAT_OPACITY = 0.6  # where a heatmap is 1 or more


@dataclass
class Report:
    """What a process did.

    Attributes:
        written: number of images.
        skipped: reasons by name for those that were not.
        finite: whether the generator returned nothing but numbers.
    """

    written: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    finite: bool = True


def read_origin(path: Path) -> tuple[str, str] | None:
    """Generator and source that an enlarged image names, empty where it names none; None where none is there whole."""
    if not path.exists():
        return None
    if not path.is_file():
        return "", ""
    origin = "", ""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            origin = str(image.info.get(GENERATOR_KEY, "")), str(image.info.get(SOURCE_KEY, ""))
            image.load()
            return origin
    except Exception:  # somebody else's file may be anything; one of ours that is damaged is made again
        return None if origin[0] else origin


def draw_landmarks(levels: Tensor, heat: Tensor, landmarks: Tensor) -> Image.Image:
    """Lay heatmaps and landmarks over a face.

    Args:
        levels: uint8 C,H,W.
        heat: float32 H/4,W/4, [0, 1]; its pixel u stands for pixel 4u of the face (see `models.heatmaps`).
        landmarks: float32 68,2, (x, y) in pixels of the face.
    """
    opacity = HEAT_OPACITY * enlarge_heatmaps(heat[None, None])[0, 0, :, :, None]  # H,W,1
    face = levels.expand(3, -1, -1).permute(1, 2, 0).float()
    mixed = (1 - opacity) * face + opacity * torch.tensor(HEAT_COLOUR)
    picture = Image.fromarray(mixed.round().to(torch.uint8).numpy())
    draw, dot = ImageDraw.Draw(picture), max(picture.size) // 128
    for x, y in landmarks.round().int().tolist():
        draw.rectangle((x, y, x + dot, y + dot), fill=LANDMARK_COLOUR)
    return picture


class ImageWriter(L.Callback):
    """Writes PNGs that name the generator and the file they were made from, while the next batch is enlarged.

    Args:
        generator: fingerprint of the generator.
        every: images between two lines of progress; 0 for none.

    Attributes:
        report: what this process has done so far.
    """

    def __init__(self, generator: str, every: int = 0) -> None:
        self.generator, self.every = generator, every
        self.report = Report()
        self._pending: list[tuple[str, Future[None]]] = []
        # Threads: Pillow compresses without holding the interpreter lock.
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start, self._done = time.monotonic(), 0

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._finish()  # at most two batches are in memory
        self._pending = [(one.face.task.name, self._pool.submit(self._write, one)) for one in outputs["enlarged"]]
        self.report.skipped |= outputs["refused"]
        before, self._done = self._done, self._done + len(batch["faces"]) + len(batch["refused"])
        if self.every and trainer.is_global_zero and self._done // self.every > before // self.every:
            self._print_progress(trainer)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish()
        self._pool.shutdown()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._pool.shutdown()  # what has been enlarged is written, also after Ctrl-C

    def _print_progress(self, trainer: L.Trainer) -> None:
        share = trainer.datamodule.share_of(trainer)  # type: ignore[attr-defined]
        of = "" if trainer.world_size == 1 else f" of the first of {trainer.world_size} processes"
        rate = self._done / (time.monotonic() - self._start)
        print(f"image {self._done}/{sum(map(len, share))}{of}, {rate:.2f} images/s", flush=True)

    def _finish(self) -> None:
        for name, written in self._pending:
            try:
                written.result()
                self.report.written += 1
            except OSError as error:
                self.report.skipped[name] = f"cannot be written ({error.strerror or error})"
        self._pending = []

    def _write(self, one: Enlarged) -> None:
        levels = one.levels.numpy()
        picture = Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))
        if one.face.alpha:
            picture.putalpha(one.face.alpha.resize(picture.size, Image.Resampling.BICUBIC))
        pictures = [picture]
        if one.heat is not None and one.landmarks is not None:
            pictures.append(draw_landmarks(one.levels, one.heat, one.landmarks))
        notes = PngInfo()
        notes.add_text(GENERATOR_KEY, self.generator)
        notes.add_text(SOURCE_KEY, one.face.digest)
        for path, content in zip(one.face.task.targets, pictures, strict=True):
            buffer = io.BytesIO()
            content.save(buffer, "PNG", pnginfo=notes)
            write_atomically(path, buffer.getvalue())
