"""Run folders of classifiers, written here, and what `superfer compare` makes of them."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from commands.compare import compare
from datamodules.labels import CLASSES
from metrics.classification import classification_report
from tests.tiny_runs import read_csv, run_record

OUTPUTS = ["comparison.json", "figure2.png", "table.md"]
SIZE = 40
IN_TRAIN = np.arange(SIZE) % 10 == 0  # 4 of 40
NO_MAJORITY = np.arange(SIZE) % 8 == 7  # 5 of 40, none of them in training
COUNTED = ~NO_MAJORITY
LABELS = np.arange(SIZE) % 7


def write_run(
    folder: Path, arm: str, seed: int, right: np.ndarray, splits: tuple[str, ...] = ("val", "test"), **info: Any
) -> Path:
    """A finished run whose answer to image i of every split is right where ``right[i]``."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run_record(folder, seed, experiment=arm, arm=arm, **info)))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    upscaler = {"class_path": f"upscalers.{arm}", "init_args": {}}
    data = {"class_path": "FERPlusDataModule", "init_args": {"root": "data", "upscaler": upscaler, "batch_size": 64}}
    (folder / "config.yaml").write_text(json.dumps({"seed_everything": seed, "data": data, "model": {"depth": 18}}))
    lines = ["epoch,step,train/loss,train/acc,val/loss,val/acc,lr"]
    for epoch in range(8):
        lines += [
            f"{epoch},{10 * epoch},,,,,0.1",
            f"{epoch},{10 * epoch + 9},,,{2 / (epoch + 2)},{0.5 + epoch / 20 - len(arm) / 100},",
        ]
        lines += [f"{epoch},{10 * epoch + 9},{2 / (epoch + 1.5) + seed / 50},{0.4 + epoch / 15},,,"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    for split in splits:
        _write_split(folder, split, right)
    return folder


def _write_split(folder: Path, split: str, right: np.ndarray) -> None:
    answers = np.where(right, LABELS, (LABELS + 1) % 8)
    with (folder / f"predictions_{split}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "label", "label_argmax", "in_train", *CLASSES])
        for i in range(SIZE):
            probabilities = np.full(8, 0.05)
            probabilities[answers[i]] = 0.65
            label = CLASSES[LABELS[i]]
            row = [f"fer{i:07d}.png", "" if NO_MAJORITY[i] else label, label, int(IN_TRAIN[i]), *probabilities]
            writer.writerow(row)
    seal(folder, split)


def seal(folder: Path, split: str) -> None:
    """Write the figures that belong to predictions and settings, as a test does."""
    path, record = folder / f"predictions_{split}.csv", json.loads((folder / "run.json").read_text())
    rows = read_csv(path)
    probabilities = torch.tensor([[float(row[name]) for name in CLASSES] for row in rows])
    rules: dict[str, dict[str, Any]] = {}
    for rule, column in (("majority", "label"), ("argmax", "label_argmax")):
        labels = torch.tensor([CLASSES.index(row[column]) if row[column] else -1 for row in rows])
        new = torch.tensor([row["in_train"] == "0" for row in rows])
        subsets = {"all": labels, "without_train_duplicates": labels.where(new, -1)}
        rules[rule] = {name: classification_report(probabilities, kept, CLASSES) for name, kept in subsets.items()}
    content = {
        "split": split,
        "run_id": record["run_id"],
        "checkpoint": {
            "name": "best.ckpt",
            "sha256": hashlib.sha256(b"weights").hexdigest(),
            "global_step": 80,
            "epoch": 7,
        },
        "predictions_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **{name: record["starts"][0][name] for name in ("git_commit", "git_dirty", "versions", "precision", "device")},
        "settings": json.loads((folder / "config.yaml").read_text()),
        "rules": rules,
    }
    (folder / f"metrics_{split}.json").write_text(json.dumps(content))


def right_except(*wrong: int) -> np.ndarray:
    right = np.ones(SIZE, bool)
    right[list(wrong)] = False
    return right


BILINEAR = right_except(0, 1, 2, 3, 4, 5, 6, 7)  # 7 of them count under the majority rule
DIC = right_except(0, 1, 2, 3, 8)


def run_compare(output: Path, *arguments: str | Path, faces: bool = False) -> int:
    """Run the command; only with `faces` does it need the data that the runs name."""
    try:
        compare([*map(str, arguments), "--output", str(output), *([] if faces else ["--no-faces"])])
    except SystemExit as end:
        return int(str(end.code))
    return 0


def report_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return content


def rows_of(table: str) -> list[list[str]]:
    """Cells of every line of every table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]


def one(entries: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (found,) = [entry for entry in entries if all(entry[key] == value for key, value in wanted.items())]
    return found


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def retrain(folder: Path, old: str, new: str) -> None:
    """Change a setting of a run, and test it again."""
    edit(folder / "config.yaml", old, new)
    for path in folder.glob("predictions_*.csv"):
        seal(folder, path.stem.removeprefix("predictions_"))
