"""Pictures of a validation: `<run folder>/<kind>/batch_<number>.png`, which W&B shows with the validation's figures."""

import io
from pathlib import Path

import lightning as L
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.atomic import write_atomically


def write_picture(trainer: L.Trainer, kind: str, pixels: NDArray[np.uint8]) -> None:
    """Write uint8 H,W,3, RGB, as the picture of the validation under way."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    path = Path(trainer.default_root_dir) / kind / f"batch_{trainer.global_step:07d}.png"
    write_atomically(path, buffer.getvalue())
