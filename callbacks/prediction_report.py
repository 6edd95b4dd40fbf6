"""Collects the predictions of a test, on any number of devices, and writes them into the run folder."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger

from datamodules.labels import CLASSES, argmax_labels, majority_labels
from metrics.classification import classification_report
from storage.atomic import write_atomically


class TestReport(L.Callback):
    """Writes ``metrics_{split}.json`` and ``predictions_{split}.csv``.

    Figures are given by both label rules, and each also without the images that occur in training. Every image counts
    once, however the devices shared them out.

    Raises:
        RuntimeError: At the end of the test, if an image was not predicted.
    """

    __test__ = False  # not a test case, whatever its name says to pytest

    def __init__(self) -> None:
        self._parts: list[dict[str, torch.Tensor]] = []

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._parts = []

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._parts.append({name: value.cpu() for name, value in outputs.items()})

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parts: list[Any] = [self._parts]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._parts)
        batches = [batch for part in parts for batch in part]
        dataset = trainer.datamodule.datasets["test"]  # type: ignore[attr-defined]
        probabilities = torch.full((len(dataset), len(CLASSES)), torch.nan)
        for batch in batches:
            probabilities[batch["index"]] = batch["probability"]
        missing = int(probabilities.isnan().any(dim=1).sum())
        if missing:
            raise RuntimeError(f"{missing} of {len(dataset)} images have no (finite) prediction; nothing was written")
        if trainer.is_global_zero:
            self._write(trainer, dataset, probabilities)

    def _write(self, trainer: L.Trainer, dataset: Any, probabilities: torch.Tensor) -> None:
        table, rows = dataset.table, dataset.rows
        split = trainer.datamodule.test_split  # type: ignore[attr-defined]
        votes, in_train = table.votes[rows], table.in_train()[rows]
        labels = {"majority": majority_labels(votes), "argmax": argmax_labels(votes)}
        rules = {
            rule: {
                "all": classification_report(probabilities, torch.from_numpy(values), CLASSES),
                "without_train_duplicates": classification_report(
                    probabilities, torch.from_numpy(np.where(in_train, -1, values)), CLASSES
                ),
            }
            for rule, values in labels.items()
        }
        synthetic = trainer.datamodule.synthetic  # type: ignore[attr-defined]
        checkpoint = Path(trainer.ckpt_path or "").name
        report = {"split": split, "synthetic": synthetic, "checkpoint": checkpoint, "rules": rules}
        folder = Path(trainer.default_root_dir)
        predictions = _predictions(table.names[rows], labels, in_train, probabilities)
        contents = {
            folder / f"predictions_{split}.csv": predictions,
            folder / f"metrics_{split}.json": json.dumps(report, indent=1) + "\n",
        }
        try:
            for path, content in contents.items():
                write_atomically(path, content)
        except BaseException:  # a signal between the two as well: one without the other is half a result
            for path in contents:
                path.unlink(missing_ok=True)
            raise
        figures = {
            f"test/{split}_{rule}_{subset}_{name}": value
            for rule, subsets in rules.items()
            for subset, values in subsets.items()
            for name, value in values.items()
            if isinstance(value, float)
        }
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_metrics(figures)
        main = rules["majority"]["all"]
        if main["n"]:
            shown = f"accuracy {main['acc']:.4f}, macro-F1 {main['macro_f1']:.4f}"
            images = "synthetic images" if synthetic else "images"
            print(f"{split}: {shown} on {main['n']} {images} (majority rule)")


def _predictions(
    names: np.ndarray, labels: dict[str, np.ndarray], in_train: np.ndarray, probabilities: torch.Tensor
) -> str:
    """The CSV with a row per image; label columns are empty where their rule leaves the image out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "label", "label_argmax", "in_train", *CLASSES])
    for row, name in enumerate(names):
        words = [CLASSES[values[row]] if values[row] >= 0 else "" for values in labels.values()]
        writer.writerow([name, *words, int(in_train[row]), *probabilities[row].tolist()])
    return text.getvalue()
