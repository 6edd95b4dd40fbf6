"""Reads finished run folders for ``compare.py`` and refuses what cannot be compared.

A run folder holds ``run.json``, ``config.yaml`` and ``metrics.csv`` from training, and ``metrics_{split}.json`` with
``predictions_{split}.csv`` for every split that was tested. Nothing here writes.
"""

import csv
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from datamodules.labels import CLASSES, SPLITS, Split

Rule = Literal["majority", "argmax"]
Subset = Literal["all", "without_train_duplicates"]
RULES: tuple[Rule, ...] = ("majority", "argmax")
SUBSETS: tuple[Subset, ...] = ("all", "without_train_duplicates")
CURVES = ("train/acc", "val/acc", "train/loss", "val/loss")

_HEADER = ["name", "label", "label_argmax", "in_train", *CLASSES]
_LABEL_COLUMN: dict[Rule, int] = {"majority": 1, "argmax": 2}
_CLASS_INDEX = {"": -1} | {name: index for index, name in enumerate(CLASSES)}  # empty: left out by the rule
_ACCURACY_TOLERANCE = 1e-6  # float32 rounding of a share; one image of 30,000 is 3e-5


class ComparisonError(ValueError):
    """Runs that cannot be read or compared; the message names the file, the value and what is allowed."""


@dataclass(frozen=True)
class Predictions:
    """One tested split of one run, N images sorted by name.

    Attributes:
        names: image names.
        labels: per rule, int64 N, index into ``CLASSES`` or -1 where the rule leaves the image out.
        in_train: bool N, whether the same pixels also occur in the training split.
        probabilities: float64 N,8 in [0, 1].
        checkpoint: file name of the weights that were tested.
    """

    names: list[str]
    labels: dict[Rule, np.ndarray]
    in_train: np.ndarray
    probabilities: np.ndarray
    checkpoint: str

    def right(self, rule: Rule) -> np.ndarray:
        """bool N: the most probable class is the label."""
        right: np.ndarray = self.probabilities.argmax(axis=1) == self.labels[rule]
        return right

    def counted(self, rule: Rule, subset: Subset) -> np.ndarray:
        """bool N: the image has a label under ``rule`` and belongs to ``subset``."""
        kept = self.labels[rule] >= 0
        return kept if subset == "all" else kept & ~self.in_train


@dataclass(frozen=True)
class Run:
    """What ``compare.py`` needs of one run folder.

    Attributes:
        folder: as given by the user.
        info: ``run.json``.
        config: ``config.yaml``.
        curves: per name in ``CURVES``, epoch -> value (loss, or accuracy in [0, 1]).
        tested: predictions per tested split.
    """

    folder: Path
    info: dict[str, Any]
    config: dict[str, Any]
    curves: dict[str, dict[int, float]]
    tested: dict[Split, Predictions]

    @property
    def arm(self) -> str:
        """Name of the upscaler."""
        return str(self.info["arm"])

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.info["seed"])


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads and cross-checks run folders.

    Args:
        folders: run folders, in the order in which the arms are to appear.

    Returns:
        One ``Run`` per folder.

    Raises:
        ComparisonError: if a folder is not a finished run, appears twice, or does not fit the others.
    """
    seen: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in seen:
            raise ComparisonError(f"{folder} is the same run as {seen[folder.resolve()]}: name every run once")
        seen[folder.resolve()] = folder
    runs = [_read_run(folder) for folder in folders]
    _check_together(runs)
    return runs


def _read_run(folder: Path) -> Run:
    if not (folder / "run.json").is_file():
        kind = "has no run.json" if folder.is_dir() else "is not a folder"
        raise ComparisonError(f"{folder} {kind}: expected a run folder such as runs/<experiment>/<time>_s<seed>")
    info = _read_mapping(folder / "run.json")
    if "arm" in info and info["arm"] is None:
        raise ComparisonError(f"{folder} is the run of a generator; what is compared are tested classifiers")
    for key, expected in {"arm": str, "seed": int, "data_fingerprint": str, "synthetic": bool}.items():
        if type(info.get(key)) is not expected:  # not isinstance: True is no seed
            raise ComparisonError(f"{folder / 'run.json'}: {key} is {info.get(key)!r}, expected {expected.__name__}")
    tested: dict[Split, Predictions] = {}
    for split in SPLITS:
        pair = folder / f"metrics_{split}.json", folder / f"predictions_{split}.csv"
        if any(path.exists() for path in pair):
            tested[split] = _read_split(*pair, split)
    if not tested:
        command = f"superfer test --ckpt_path {folder} --split test"
        raise ComparisonError(f"{folder} has no metrics_SPLIT.json: it was not tested; run `{command}` first")
    config = _read_mapping(folder / "config.yaml")
    return Run(folder, info, config, _read_curves(folder / "metrics.csv"), tested)


def _check_together(runs: Sequence[Run]) -> None:
    first = runs[0]
    seeds: dict[tuple[str, int], Run] = {}
    generators: dict[str, Run] = {}
    for run in runs:
        if run.info["data_fingerprint"] != first.info["data_fingerprint"]:
            shown = [f"{r.folder} ({r.info['data_fingerprint'][:12]})" for r in (first, run)]
            raise ComparisonError(f"{shown[0]} and {shown[1]} were made from different data (data_fingerprint)")
        if run.info["synthetic"] != first.info["synthetic"]:
            raise ComparisonError(f"{first.folder} and {run.folder}: run.json says synthetic for only one of them")
        same = seeds.setdefault((run.arm, run.seed), run)
        if same is not run:
            raise ComparisonError(
                f"{same.folder} and {run.folder} are both arm {run.arm} with seed {run.seed}: a repeated run is not "
                "another seed; name one of them"
            )
        other = generators.setdefault(run.arm, run)
        if run.info.get("generator_fingerprint") != other.info.get("generator_fingerprint"):
            raise ComparisonError(
                f"{other.folder} and {run.folder} are both arm {run.arm}, but of different generators "
                "(generator_fingerprint): they are not seeds of one arm"
            )
    for split in SPLITS:
        tested = [run for run in runs if split in run.tested]
        for run in tested[1:]:
            _check_same_images(tested[0], run, split)


def _check_same_images(first: Run, second: Run, split: Split) -> None:
    a, b = first.tested[split], second.tested[split]
    where = f"{second.folder / f'predictions_{split}.csv'} and {first.folder / f'predictions_{split}.csv'}"
    if a.names != b.names:
        different = sorted((Counter(a.names) - Counter(b.names)) + (Counter(b.names) - Counter(a.names)))
        raise ComparisonError(f"{where} list different images, such as {different[0]}")
    for what, left, right in (
        *((f"label under the {rule} rule", a.labels[rule], b.labels[rule]) for rule in RULES),
        ("in_train", a.in_train, b.in_train),
    ):
        if (left != right).any():
            raise ComparisonError(f"{where} disagree on {what} of {a.names[int(np.argmax(left != right))]}")


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ComparisonError(
            f"{path} is missing: the run did not finish, or its folder was not copied whole"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ComparisonError(f"{path} cannot be read: {error}") from error
    if not text.strip():
        raise ComparisonError(f"{path} is empty")
    return text


def _read_mapping(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ComparisonError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ComparisonError(f"{path} holds a {type(content).__name__}, expected key: value pairs")
    return content


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows; at least one row, all as long as the header."""
    try:
        header, *rows = csv.reader(_read_text(path).splitlines())
    except csv.Error as error:
        raise ComparisonError(f"{path} is damaged: {error}") from error
    if not rows:
        raise ComparisonError(f"{path} is empty: it has a header but no rows")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ComparisonError(f"{path}, line {number}: {len(row)} values, expected {len(header)}")
    return header, rows


def _read_curves(path: Path) -> dict[str, dict[int, float]]:
    """Last value per epoch; a resumed run may have logged an epoch twice."""
    header, rows = _read_rows(path)
    missing = [name for name in ("epoch", *CURVES) if name not in header]
    if missing:
        raise ComparisonError(f"{path} has no column {missing[0]}, only {', '.join(header)}")
    epoch_column = header.index("epoch")
    curves: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    for number, row in enumerate(rows, start=2):
        for name, curve in curves.items():
            if text := row[header.index(name)].strip():
                epoch = _number(row[epoch_column], path, number, "epoch")
                if epoch < 0 or epoch % 1 != 0:
                    raise ComparisonError(f"{path}, line {number}: epoch is {epoch}, expected 0, 1, 2, ...")
                curve[int(epoch)] = _number(text, path, number, name, finite=False)  # a diverged loss is a fact
    for name, curve in curves.items():
        if not curve:
            raise ComparisonError(f"{path}: column {name} is empty, no epoch was finished")
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def _number(text: str, path: Path, line: int, what: str, finite: bool = True) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
        finite = True
    if finite and not math.isfinite(value):
        raise ComparisonError(f"{path}, line {line}: {what} is {text!r}, expected a number")
    return value


def _read_split(metrics_path: Path, predictions_path: Path, split: Split) -> Predictions:
    metrics = _read_mapping(metrics_path)
    predictions = _read_predictions(predictions_path, str(metrics.get("checkpoint", "unknown")))
    # Without its training images nothing is left of the training split: there is nothing to check.
    for rule, subset in itertools.product(RULES, SUBSETS if split != "train" else SUBSETS[:1]):
        counted = predictions.counted(rule, subset)
        n, correct = int(counted.sum()), int(predictions.right(rule)[counted].sum())
        try:
            stored = metrics["rules"][rule][subset]
            stored_n, accuracy = stored["n"], stored["acc"]
        except (KeyError, TypeError) as error:
            raise ComparisonError(f"{metrics_path}: rules.{rule}.{subset} lacks n or acc") from error
        if stored_n != n or (n > 0 and not _close(accuracy, correct / n)):
            raise ComparisonError(
                f"{metrics_path} does not match {predictions_path.name}: rules.{rule}.{subset} has n {stored_n} and "
                f"acc {accuracy}, the predictions give {correct} right of {n}; test the run again"
            )
    return predictions


def _close(stored: Any, recomputed: float) -> bool:
    return isinstance(stored, (int, float)) and abs(stored - recomputed) <= _ACCURACY_TOLERANCE


def _read_predictions(path: Path, checkpoint: str) -> Predictions:
    header, rows = _read_rows(path)
    if header != _HEADER:
        raise ComparisonError(f"{path}: header is {','.join(header)}, expected {','.join(_HEADER)}")
    lines = list(range(2, len(rows) + 2))
    for line, row in zip(lines, rows, strict=True):
        for column in _LABEL_COLUMN.values():
            if row[column] not in _CLASS_INDEX:
                raise ComparisonError(f"{path}, line {line}: {header[column]} is {row[column]!r}, not one of {CLASSES}")
        if row[3] not in ("0", "1"):
            raise ComparisonError(f"{path}, line {line}: in_train is {row[3]!r}, expected 0 or 1")
    # Tests on several devices may write in another order: sorting by name (and labels, for names that occur twice)
    # makes the rows of all runs correspond.
    order = sorted(range(len(rows)), key=lambda index: rows[index][:4])
    ordered = [rows[index] for index in order]
    values = [[_number(t, path, lines[i], "a probability") for t in rows[i][4:]] for i in order]
    probabilities = np.array(values)
    wrong = (probabilities < 0).any(1) | (probabilities > 1).any(1) | (np.abs(probabilities.sum(1) - 1) > 1e-3)
    if wrong.any():
        line = lines[order[int(np.argmax(wrong))]]
        raise ComparisonError(f"{path}, line {line}: probabilities must be in [0, 1] and sum to 1")
    labels = {rule: np.array([_CLASS_INDEX[row[c]] for row in ordered]) for rule, c in _LABEL_COLUMN.items()}
    in_train = np.array([row[3] == "1" for row in ordered])
    return Predictions([row[0] for row in ordered], labels, in_train, probabilities, checkpoint)
