"""Show which validation faces a classifier gets wrong, and which emotions it confuses, once per validation."""

from typing import Any

import lightning as L
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.utilities.plot import plot_confusion_matrix

from callbacks.pictures import write_picture
from datamodules.labels import CLASSES
from run_state.ranks import gather

NUM_FACES = 24
SIDE, HEADER = 96, 24  # pixels of a face, and above it for two lines of text
RIGHT_COLOUR, WRONG_COLOUR = "lightgreen", "salmon"


class PredictionSheet(L.Callback):
    """Write two pictures after every validation, on rank 0.

    `<run folder>/faces/batch_<number>.png` shows the faces whose true emotion was given the least probability: wrong
    ones first, the surest of them at the top. `<run folder>/confusion/batch_<number>.png` is the confusion matrix. For
    modules whose `validation_step` returns `index`, `label` and `probability`, as `EmotionClassifier`'s does.
    """

    def __init__(self) -> None:
        self._seen: list[dict[str, Tensor]] = []

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self._seen.append({name: outputs[name].cpu() for name in ("index", "label", "probability")})

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        batches = [batch for part in gather(trainer, self._seen) for batch in part]
        self._seen = []
        if not trainer.is_global_zero or not batches:
            return
        index, label, probability = (
            torch.cat([batch[name] for batch in batches]) for name in ("index", "label", "probability")
        )
        data = trainer.datamodule  # type: ignore[attr-defined]
        worst = _worst_first(label, probability)[:NUM_FACES]
        faces = data.datasets["val"].__getitems__([(trainer.current_epoch, int(i)) for i in index[worst]])["image"]
        write_picture(trainer, "faces", draw_faces(faces, label[worst], probability[worst], data.synthetic))
        write_picture(trainer, "confusion", draw_confusion(label, probability.argmax(dim=1)))


def _worst_first(label: Tensor, probability: Tensor) -> Tensor:
    """Order images, wrong ones first, by the probability of their label; equal ones by their place."""
    given = probability.gather(1, label[:, None])[:, 0]
    right = probability.argmax(dim=1) == label
    return (right + given).argsort(stable=True)


def draw_faces(faces: Tensor, label: Tensor, probability: Tensor, synthetic: bool) -> NDArray[np.uint8]:
    """Put faces, uint8 B,C,S,S, into rows of eight; above each its label, and the prediction with its probability.

    Labels are int64 B, probabilities B,8; the sheet is uint8 H,W,3, RGB, and says of every face if it is synthetic.
    """
    columns = min(8, len(faces))
    sheet = Image.new("RGB", (columns * SIDE, -(-len(faces) // columns) * (SIDE + HEADER)))
    draw = ImageDraw.Draw(sheet)
    for place, (face, true, row) in enumerate(zip(faces, label.tolist(), probability, strict=True)):
        x, y = place % columns * SIDE, place // columns * (SIDE + HEADER)
        picture = Image.fromarray(face.expand(3, -1, -1).permute(1, 2, 0).numpy())
        sheet.paste(picture.resize((SIDE, SIDE)), (x, y + HEADER))
        found = int(row.argmax())
        draw.text((x + 2, y), CLASSES[true] + (" (drawn)" if synthetic else ""), fill="white")
        colour = RIGHT_COLOUR if found == true else WRONG_COLOUR
        draw.text((x + 2, y + HEADER // 2), f"{CLASSES[found]} {row[found]:.0%}", fill=colour)
    return np.asarray(sheet)


def draw_confusion(label: Tensor, found: Tensor) -> NDArray[np.uint8]:
    """Draw the confusion matrix of labels and predictions, int64 N: rows are labels, in percent; uint8 H,W,3, RGB."""
    counts = multiclass_confusion_matrix(found, label, len(CLASSES))
    percent = 100 * counts / counts.sum(dim=1, keepdim=True).clamp(min=1)  # not every class may be there
    figure = Figure(figsize=(6, 6), dpi=80, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    plot_confusion_matrix(percent.round().int(), ax=axes, labels=list(CLASSES), cmap="Blues")
    axes.set_title("percent of each true class")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
