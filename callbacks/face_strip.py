"""Show how a generator or hourglass does on a few fixed validation faces, once per validation.

Each face gives one strip: the pictures that the module returns (low resolution, bicubic, every step, high resolution),
and one of them with the landmarks that were found (red) and the true ones (green).
"""

from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from callbacks.pictures import write_picture
from run_state.ranks import gather

NUM_FACES = 6
HEADER = 12  # pixels above each panel, for its name
FOUND_COLOUR, TRUE_COLOUR = (255, 40, 40), (40, 220, 40)


def compose_strip(
    panels: dict[str, Tensor], marked: Tensor, found: Tensor, true: Tensor, synthetic: bool = False
) -> NDArray[np.uint8]:
    """Put the pictures of one face side by side: uint8 HEADER + H, (number of panels + 1) * H, 3, RGB.

    Args:
        panels: uint8 3,H,H by title; smaller ones, whose sides divide H, are repeated pixel by pixel.
        marked: uint8 3,H,H, the picture to draw the landmarks on.
        found: landmarks 68,2, (x, y) in HR pixels.
        true: the same, as annotated.
        synthetic: label the HR face as synthetic.
    """
    panels = panels | {"landmarks": marked}
    side = marked.shape[-1]
    strip = Image.new("RGB", (side * len(panels), side + HEADER))
    draw = ImageDraw.Draw(strip)
    for column, (title, picture) in enumerate(panels.items()):
        image = Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())
        strip.paste(image.resize((side, side), Image.Resampling.NEAREST), (column * side, HEADER))
        label = f"{title}, synthetic data" if synthetic and title == "HR" else title
        draw.text((column * side + 2, 0), label, fill="white")
    last, dot = side * (len(panels) - 1), side // 128  # dots of 2 x 2 pixels at 128
    for points, colour in ((true, TRUE_COLOUR), (found, FOUND_COLOUR)):
        for x, y in points.round().int().tolist():
            if 0 <= x < side and 0 <= y < side:
                draw.rectangle((last + x, HEADER + y, last + x + dot, HEADER + y + dot), fill=colour)
    return np.asarray(strip)


class FaceStrip(L.Callback):
    """Write strips of the same validation faces, spread evenly over the set, after every validation.

    For modules whose `validation_step` returns `panels`, `marked` and `landmarks`, as `GeneratorTask`'s does. They make
    one contact sheet, `<run folder>/faces/batch_<number>.png`. With several processes each contributes its own faces,
    and rank 0 writes.
    """

    def __init__(self) -> None:
        self._strips: dict[str, NDArray[np.uint8]] = {}

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        data = trainer.datamodule
        names = data.val_set.faces.names
        batch_size = trainer.val_dataloaders.batch_size * trainer.world_size
        served = min(len(names), int(trainer.num_val_batches[0]) * batch_size)
        chosen = {position * served // NUM_FACES for position in range(NUM_FACES)}
        for row, index in enumerate(batch["index"].tolist()):
            if index in chosen and not trainer.sanity_checking:
                self._strips[names[index]] = compose_strip(
                    panels={title: pictures[row] for title, pictures in outputs["panels"].items()},
                    marked=outputs["marked"][row],
                    found=outputs["landmarks"][row],
                    true=batch["landmarks"][row],
                    synthetic=data.synthetic,
                )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        strips = dict(sorted(item for part in gather(trainer, self._strips) for item in part.items()))
        self._strips = {}
        if trainer.is_global_zero and strips:
            write_picture(trainer, "faces", np.concatenate(list(strips.values())))
