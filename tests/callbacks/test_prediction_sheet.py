"""The sheets of a classifier show its mistakes, and nothing that is right before them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import prediction_sheet
from callbacks.prediction_sheet import HEADER, SIDE, draw_confusion, draw_faces
from commands.test import test as run_test
from commands.train import train
from datamodules.ferplus import FERPlusDataModule
from datamodules.labels import CLASSES
from tests.tiny_runs import classifier_args, read_csv


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_worst_faces_come_first(tiny_ferplus: Path, tmp_path: Path) -> None:
    """As the predictions of the same checkpoint say."""
    run = train(classifier_args(tiny_ferplus, tmp_path, "--trainer.max_epochs=2"))
    steps = [int(row["step"]) + 1 for row in read_csv(run / "metrics.csv") if row["val/acc"]]
    for kind in ("faces", "confusion"):
        assert sorted(path.name for path in (run / kind).iterdir()) == [f"batch_{step:07d}.png" for step in steps]
    run_test(["--ckpt_path", str(run), "--split=val"])
    batch = json.loads((run / "metrics_val.json").read_text())["checkpoint"]["global_step"]
    data = FERPlusDataModule(str(tiny_ferplus), input_size=32)
    data.setup("fit")
    data.val_dataloader()
    predicted = [row for row in read_csv(run / "predictions_val.csv") if row["label"]]
    probability = torch.tensor([[float(row[name]) for name in CLASSES] for row in predicted])
    label = torch.tensor([CLASSES.index(row["label"]) for row in predicted])
    given = [(bool(p.argmax() == true), float(p[true])) for p, true in zip(probability, label, strict=True)]
    order = sorted(range(len(given)), key=given.__getitem__)[:24]
    assert not given[order[0]][0], "something is wrong in so short a training"
    names = data.datasets["val"].names
    index = [names.index(predicted[i]["name"]) for i in order]
    faces = data.datasets["val"].__getitems__([(0, i) for i in index])["image"]
    expected = draw_faces(faces, label[order], probability[order], synthetic=True)
    np.testing.assert_array_equal(picture(run / "faces" / f"batch_{batch:07d}.png"), expected)
    expected = draw_confusion(label, probability.argmax(dim=1))
    np.testing.assert_array_equal(picture(run / "confusion" / f"batch_{batch:07d}.png"), expected)


def test_confusion_is_in_percent_of_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []
    plot = prediction_sheet.plot_confusion_matrix
    monkeypatch.setattr(
        prediction_sheet, "plot_confusion_matrix", lambda cells, **more: (drawn.append(cells), plot(cells, **more))
    )
    sheet = draw_confusion(torch.tensor([0, 0, 3, 3]), torch.tensor([0, 1, 5, 5]))
    expected = torch.zeros(8, 8, dtype=torch.int32)
    expected[0, :2], expected[3, 5] = 50, 100
    assert torch.equal(drawn[0], expected) and sheet.shape == (480, 480, 3) and sheet.std() > 10


def test_faces_lie_in_rows_of_eight() -> None:
    faces = torch.arange(9, dtype=torch.uint8).reshape(9, 1, 1, 1).expand(9, 1, 4, 4) * 20
    sheet = draw_faces(faces, torch.zeros(9, dtype=torch.int64), torch.eye(8)[[0] * 9], synthetic=False)
    assert sheet.shape == (2 * (SIDE + HEADER), 8 * SIDE, 3)
    for place in range(9):
        row, column = divmod(place, 8)
        assert (sheet[(row + 1) * (SIDE + HEADER) - 1, column * SIDE + 9] == place * 20).all()
