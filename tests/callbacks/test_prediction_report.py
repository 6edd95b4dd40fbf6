"""What a test writes, from predictions in any order."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from callbacks.prediction_report import TestReport
from datamodules.ferplus.datamodule import FERPlusDataModule
from datamodules.labels import CLASSES, argmax_labels, majority_labels
from datamodules.synthetic.writing import write_ferplus
from tests.tiny_runs import read_csv


@pytest.fixture(scope="module")
def disputed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FER+ with test images on which the two label rules differ; the tests' usual one has none."""
    root = tmp_path_factory.mktemp("disputed")
    write_ferplus(root, {"train": 24, "val": 24, "test": 40}, seed=5)
    return root


@pytest.fixture
def tested(disputed: Path, tmp_path: Path) -> Any:
    data = FERPlusDataModule(str(disputed))
    data.setup("test")
    return SimpleNamespace(
        world_size=1,
        is_global_zero=True,
        datamodule=data,
        default_root_dir=str(tmp_path),
        ckpt_path=str(tmp_path / "best.ckpt"),
        loggers=[],
    )


def probabilities(count: int) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(0)).softmax(dim=1)


def report(trainer: Any, indices: list[torch.Tensor], predicted: torch.Tensor) -> None:
    callback, module = TestReport(), SimpleNamespace()
    callback.on_test_epoch_start(trainer, module)  # type: ignore[arg-type]
    for number, index in enumerate(indices):
        callback.on_test_batch_end(trainer, module, {"index": index, "probability": predicted[index]}, None, number)  # type: ignore[arg-type]
    callback.on_test_epoch_end(trainer, module)  # type: ignore[arg-type]


def test_files_agree_with_predictions(tested: Any, tmp_path: Path) -> None:
    dataset = tested.datamodule.datasets["test"]
    predicted = probabilities(len(dataset))
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(1))
    report(tested, list(order.split(5)), predicted)

    votes = dataset.table.votes[dataset.rows]
    assert (majority_labels(votes) != argmax_labels(votes)).any()
    rows = read_csv(tmp_path / "predictions_test.csv")
    assert list(rows[0]) == ["name", "label", "label_argmax", "in_train", *CLASSES]
    assert [row["name"] for row in rows] == dataset.table.names[dataset.rows].tolist()
    written = np.array([[float(row[name]) for name in CLASSES] for row in rows])
    assert (written.astype(np.float32) == predicted.numpy()).all(), "probabilities are written in full"

    metrics = json.loads((tmp_path / "metrics_test.json").read_text())
    assert metrics["split"] == "test" and metrics["checkpoint"] == "best.ckpt"
    for rule, column, labels in (
        ("majority", "label", majority_labels(votes)),
        ("argmax", "label_argmax", argmax_labels(votes)),
    ):
        assert [row[column] for row in rows] == [CLASSES[label] if label >= 0 else "" for label in labels]
        for subset, kept in (
            ("all", labels >= 0),
            ("without_train_duplicates", (labels >= 0) & np.array([row["in_train"] == "0" for row in rows])),
        ):
            figures = metrics["rules"][rule][subset]
            assert figures["n"] == kept.sum() > 0
            assert figures["acc"] == pytest.approx(accuracy_score(labels[kept], written.argmax(1)[kept]))


def test_an_image_without_prediction_is_an_error(tested: Any, tmp_path: Path) -> None:
    count = len(tested.datamodule.datasets["test"])
    with pytest.raises(RuntimeError, match=f"1 of {count} images have no"):
        report(tested, [torch.arange(count - 1)], probabilities(count))
    assert not list(tmp_path.iterdir())
