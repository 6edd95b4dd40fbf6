"""Write what a test predicted, and how right it was, into the run folder."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from datamodules.labels import CLASSES
from metrics.classification import classification_report
from run_state.checkpoints import RunCheckpoint
from run_state.identity import sha256
from run_state.record import conditions
from storage.atomic import write_atomically


class PredictionReport(L.Callback):
    """Write `metrics_{split}.json` and `predictions_{split}.csv` when a test ends.

    Figures are given by both label rules, and each also without the images that occur in training. They come from
    `probability` B,8 of the test step and `index`, `label`, `label_argmax` and `in_train` of the batch. The figures say
    which run and checkpoint they are of, which predictions, and under what they were computed.

    Args:
        checkpoint: what is tested.

    Raises:
        RuntimeError: The checkpoint was replaced while it was read, or an image was not predicted.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self.checkpoint = checkpoint

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches: list[dict[str, Tensor]] = []
        if sha256(self.checkpoint.path) != self.checkpoint.sha256:
            raise RuntimeError(f"{self.checkpoint.path} has changed since the test began (in training?); test again")

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        seen = {name: batch[name] for name in ("index", "label", "label_argmax", "in_train")}
        self._batches.append({name: value.cpu() for name, value in (seen | outputs).items()})

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        names: list[str] = data.datasets["test"].names
        order = torch.cat([batch["index"] for batch in self._batches]).argsort()
        seen = {name: torch.cat([batch[name] for batch in self._batches])[order] for name in self._batches[0]}
        missing = len(names) - len(seen["index"][seen["probability"].isfinite().all(dim=1)].unique())
        if missing:
            raise RuntimeError(f"{missing} of {len(names)} images have no finite prediction; nothing was written")
        subsets = {"all": torch.ones_like(seen["in_train"]), "without_train_duplicates": ~seen["in_train"]}
        rules = {
            rule: {
                subset: classification_report(seen["probability"], seen[label].where(counted, -1), CLASSES)
                for subset, counted in subsets.items()
            }
            for rule, label in (("majority", "label"), ("argmax", "label_argmax"))
        }
        folder, split, tested = Path(trainer.default_root_dir), data.test_split, self.checkpoint
        predictions = folder / f"predictions_{split}.csv"
        write_atomically(predictions, _predictions(names, seen))
        report = {
            "split": split,
            "run_id": tested.run_id,
            "synthetic": data.synthetic,
            "checkpoint": tested.facts(),
            "predictions_sha256": sha256(predictions),
            "settings": tested.settings,
            **conditions(trainer),
            "rules": rules,
        }
        write_atomically(folder / f"metrics_{split}.json", json.dumps(report, indent=1) + "\n")
        main = rules["majority"]["all"]
        if main["n"]:
            images = "synthetic images" if data.synthetic else "images"
            shown = f"accuracy {main['acc']:.4f}, macro-F1 {main['macro_f1']:.4f} on {main['n']} {images}"
            print(f"{split}: {shown} (majority rule)")


def _predictions(names: list[str], seen: dict[str, Tensor]) -> str:
    """Return the CSV with a row per image; a label is empty where its rule drops the image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "label", "label_argmax", "in_train", *CLASSES])
    words = [*CLASSES, ""]  # the last for -1
    columns = (seen[name].tolist() for name in ("label", "label_argmax", "in_train", "probability"))
    for name, label, label_argmax, in_train, probability in zip(names, *columns, strict=True):
        writer.writerow([name, words[label], words[label_argmax], int(in_train), *probability])
    return text.getvalue()
