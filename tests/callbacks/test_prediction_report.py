"""What a test writes, from predictions in any order."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from callbacks.prediction_report import PredictionReport
from datamodules.ferplus.datamodule import FERPlusDataModule
from datamodules.labels import CLASSES, argmax_labels, process_votes
from datamodules.synthetic.writing import write_ferplus
from run_state.checkpoints import RunCheckpoint
from run_state.identity import sha256
from tests.tiny_runs import read_csv

CHECKPOINT = RunCheckpoint(Path(__file__), sha256(Path(__file__)), "b" * 32, 7, 1, {})  # any file will do


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
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        datamodule=data, default_root_dir=str(tmp_path), strategy=strategy, precision="32-true", world_size=1
    )


def probabilities(count: int) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(0)).softmax(dim=1)


def report(trainer: Any, indices: list[torch.Tensor], predicted: torch.Tensor) -> None:
    callback, module = PredictionReport(CHECKPOINT), SimpleNamespace()
    dataset = trainer.datamodule.datasets["test"]
    callback.on_test_epoch_start(trainer, module)  # type: ignore[arg-type]
    for number, index in enumerate(indices):
        batch = dataset.__getitems__([(0, row) for row in index.tolist()])
        outputs = {"index": index, "probability": predicted[index]}
        callback.on_test_batch_end(trainer, module, outputs, batch, number)  # type: ignore[arg-type]
    callback.on_test_epoch_end(trainer, module)  # type: ignore[arg-type]


def test_files_agree_with_predictions(tested: Any, tmp_path: Path) -> None:
    data = tested.datamodule
    predicted = probabilities(len(data.datasets["test"]))
    order = torch.randperm(len(predicted), generator=torch.Generator().manual_seed(1))
    report(tested, list(order.split(5)), predicted)

    table = data.table
    all_rows = table.rows("test")
    kept, targets = process_votes(table.votes[all_rows], "majority")
    by_rule = {
        "majority": np.where(kept, targets.argmax(axis=1), -1),
        "argmax": argmax_labels(table.votes[all_rows]),
    }
    used = np.maximum(*by_rule.values()) >= 0
    rows = read_csv(tmp_path / "predictions_test.csv")
    assert list(rows[0]) == ["name", "label", "label_argmax", "in_train", *CLASSES]
    assert [row["name"] for row in rows] == table.names[all_rows[used]].tolist()
    assert [row["in_train"] for row in rows] == [str(int(value)) for value in table.in_train()[all_rows[used]]]
    written = np.array([[float(row[name]) for name in CLASSES] for row in rows])
    assert (written.astype(np.float32) == predicted.numpy()).all(), "probabilities are written in full"

    metrics = json.loads((tmp_path / "metrics_test.json").read_text())
    assert (metrics["split"], metrics["synthetic"], metrics["run_id"]) == ("test", True, "b" * 32)
    assert metrics["checkpoint"] == CHECKPOINT.facts() | {"name": Path(__file__).name, "global_step": 7, "epoch": 1}
    written_bytes = (tmp_path / "predictions_test.csv").read_bytes()
    assert metrics["predictions_sha256"] == hashlib.sha256(written_bytes).hexdigest()
    assert (metrics["precision"], metrics["device"]) == ("32-true", "cpu")
    assert metrics["versions"]["torch"] == version("torch") and {"git_commit", "git_dirty"} <= set(metrics)
    for rule, column in (("majority", "label"), ("argmax", "label_argmax")):
        labels = by_rule[rule][used]
        assert [row[column] for row in rows] == [CLASSES[label] if label >= 0 else "" for label in labels]
        for subset, counted in (
            ("all", labels >= 0),
            ("without_train_duplicates", (labels >= 0) & np.array([row["in_train"] == "0" for row in rows])),
        ):
            figures = metrics["rules"][rule][subset]
            assert figures["n"] == counted.sum() > 0
            assert figures["acc"] == pytest.approx(accuracy_score(labels[counted], written.argmax(1)[counted]))


@pytest.mark.parametrize("fault", ["left out", "not finite", "twice"])
def test_an_image_without_prediction_is_an_error(fault: str, tested: Any, tmp_path: Path) -> None:
    predicted = probabilities(len(tested.datamodule.datasets["test"]))
    index = torch.arange(len(predicted))
    if fault == "left out":
        index = index[:-1]
    elif fault == "not finite":
        predicted[3, 2] = torch.nan
    else:
        index[5] = 4
    with pytest.raises(RuntimeError, match=f"1 of {len(predicted)} images have no finite prediction"):
        report(tested, [index], predicted)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_replaced_meanwhile_is_not_tested(tmp_path: Path) -> None:
    """By the training that goes on."""
    path = tmp_path / "best.ckpt"
    path.write_bytes(b"first")
    callback = PredictionReport(RunCheckpoint(path, sha256(path), "b" * 32, 7, 1, {}))
    path.write_bytes(b"second")
    with pytest.raises(RuntimeError, match=r"best\.ckpt has changed since the test began"):
        callback.on_test_epoch_start(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
