"""Read run folders, and refuse what cannot be compared.

A run folder holds `run.json`, `config.yaml` and `metrics.csv` from training, and `metrics_{split}.json` with
`predictions_{split}.csv` for every tested split. Nothing here writes.
"""

import csv
import io
import itertools
import json
import os
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
    """Runs that cannot be read or compared; the message names the file, the value and the remedy."""


@dataclass(frozen=True)
class Predictions:
    """One tested split of one run, N images sorted by name.

    Attributes:
        images: the first four columns of the file: name, one label per rule, in_train.
        labels: per rule, int64 N, index into `CLASSES` or -1 where the rule leaves the image out.
        in_train: bool N, whether the same pixels also occur in the training split.
        probabilities: float64 N,8 in [0, 1].
        checkpoint: file name of the tested weights.
    """

    images: list[tuple[str, ...]]
    labels: dict[Rule, np.ndarray]
    in_train: np.ndarray
    probabilities: np.ndarray
    checkpoint: str

    @property
    def names(self) -> list[str]:
        """Image names."""
        return [image[0] for image in self.images]

    def right(self, rule: Rule) -> np.ndarray:
        """bool N: the most probable class is the label."""
        right: np.ndarray = self.probabilities.argmax(axis=1) == self.labels[rule]
        return right

    def counted(self, rule: Rule, subset: Subset) -> np.ndarray:
        """bool N: the image has a label under `rule` and belongs to `subset`."""
        labelled = self.labels[rule] >= 0
        return labelled if subset == "all" else labelled & ~self.in_train


@dataclass(frozen=True)
class Run:
    """A tested classifier.

    Attributes:
        folder: as given by the user.
        info: `run.json`.
        config: `config.yaml`.
        curves: per name in `CURVES`, epoch -> value (loss, or accuracy in [0, 1]).
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


def are_generators(folders: Sequence[Path]) -> bool:
    """Tell whether the runs trained generators (True) or classifiers (False).

    Raises:
        ComparisonError: A folder is not a run, or the runs are of both kinds.
    """
    generator = {folder: read_info(folder).get("arm", "") is None for folder in folders}
    if len(set(generator.values())) > 1:
        one, other = (next(folder for folder in folders if generator[folder] is kind) for kind in (True, False))
        raise ComparisonError(f"{one} trained a generator, {other} a classifier: compare them separately")
    return all(generator.values())


def read_info(folder: Path) -> dict[str, Any]:
    """Return `run.json` of a run.

    Raises:
        ComparisonError: The folder is not a run, or the file is damaged.
    """
    if not (folder / "run.json").is_file():
        kind = "has no run.json" if folder.is_dir() else "is not a folder"
        raise ComparisonError(f"{folder} {kind}, expected a run folder such as runs/<experiment>/<time>_s<seed>")
    return _read_mapping(folder / "run.json")


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read tested classifiers, in the order in which the arms are to appear.

    Raises:
        ComparisonError: A folder is not a tested run, appears twice, or does not fit the others.
    """
    runs = [_read_run(folder) for folder in folders]
    for one, other in itertools.combinations(runs, 2):
        _check_pair(one, other)
    return runs


def read_metrics(path: Path, names: Sequence[str]) -> dict[str, list[tuple[int, int, float]]]:
    """Return epoch, step and value of every logged value of some metrics, in the order of the file.

    Args:
        path: `metrics.csv` of a run.
        names: the wanted metrics; one that was never logged gets no entry.

    Raises:
        ComparisonError: The file cannot be read.
    """
    header, rows = _read_rows(path)
    points: dict[str, list[tuple[int, int, float]]] = {}
    try:
        epoch, step = header.index("epoch"), header.index("step")
        for name in set(names) & set(header):
            column = header.index(name)
            logged = [(int(row[epoch]), int(row[step]), float(row[column])) for row in rows if row[column]]
            points |= {name: logged} if logged else {}
    except ValueError as error:
        raise ComparisonError(f"{path} is damaged: {error}") from error
    return points


def _read_run(folder: Path) -> Run:
    info = read_info(folder)
    for key, expected in {"arm": str, "seed": int, "data_fingerprint": str, "synthetic": bool}.items():
        if not isinstance(info.get(key), expected):
            raise ComparisonError(f"{folder / 'run.json'}: {key} is {info.get(key)!r}, expected {expected.__name__}")
    tested: dict[Split, Predictions] = {}
    for split in SPLITS:
        pair = folder / f"metrics_{split}.json", folder / f"predictions_{split}.csv"
        if any(path.exists() for path in pair):
            tested[split] = _read_split(*pair, split)
    if not tested:
        command = f"superfer test --ckpt_path {folder} --split test"
        raise ComparisonError(f"{folder} was not tested (no metrics_SPLIT.json); run `{command}` first")
    path = folder / "metrics.csv"
    points = read_metrics(path, CURVES)
    for name in CURVES:
        if name not in points:
            raise ComparisonError(f"{path} has no value of {name}: no epoch was finished; resume the training")
    # The last value of an epoch: a resumed run may have logged it twice.
    curves = {name: {epoch: value for epoch, _, value in points[name]} for name in CURVES}
    return Run(folder, info, _read_mapping(folder / "config.yaml"), curves, tested)


def _check_pair(one: Run, other: Run) -> None:
    both = f"{one.folder} and {other.folder}"
    if os.path.realpath(one.folder) == os.path.realpath(other.folder):
        raise ComparisonError(f"{both} are the same run: name every run once")
    for key in ("data_fingerprint", "synthetic"):
        if one.info[key] != other.info[key]:
            values = " and ".join(f"{str(run.info[key])[:12]} in {run.folder}" for run in (one, other))
            raise ComparisonError(f"{key} is {values}: runs on different data cannot be compared")
    if one.arm == other.arm and one.seed == other.seed:
        raise ComparisonError(
            f"{both} are both arm {one.arm} with seed {one.seed}: a repeated run is not another seed; name one of them"
        )
    if one.arm == other.arm and one.info.get("generator_fingerprint") != other.info.get("generator_fingerprint"):
        raise ComparisonError(
            f"{both} are both arm {one.arm}, but their generators differ (generator_fingerprint): they are not seeds "
            "of one arm; compare them in two calls"
        )
    for split in SPLITS:
        if split in one.tested and split in other.tested and one.tested[split].images != other.tested[split].images:
            counts = [Counter(run.tested[split].images) for run in (one, other)]
            shown = ",".join(min((counts[0] - counts[1]) + (counts[1] - counts[0])))
            files = " and ".join(str(run.folder / f"predictions_{split}.csv") for run in (one, other))
            raise ComparisonError(f"{files} differ in images, labels or in_train: {shown}; test both runs again")


def _read_split(metrics_path: Path, predictions_path: Path, split: Split) -> Predictions:
    """Read the predictions, and believe the stored accuracies only if the predictions give the same."""
    metrics = _read_mapping(metrics_path)
    predictions = _read_predictions(predictions_path, str(metrics.get("checkpoint", "unknown")))
    # Nothing is left of the training split without its training images.
    for rule, subset in itertools.product(RULES, SUBSETS if split != "train" else SUBSETS[:1]):
        counted = predictions.counted(rule, subset)
        n, correct = int(counted.sum()), int(predictions.right(rule)[counted].sum())
        try:
            stored = metrics["rules"][rule][subset]
            matches = stored["n"] == n and (n == 0 or abs(stored["acc"] - correct / n) <= _ACCURACY_TOLERANCE)
        except (KeyError, TypeError) as error:
            raise ComparisonError(
                f"{metrics_path}: rules.{rule}.{subset} lacks n or acc; test the run again"
            ) from error
        if not matches:
            raise ComparisonError(
                f"{metrics_path} does not match {predictions_path.name}: rules.{rule}.{subset} has n {stored['n']} and "
                f"acc {stored['acc']}, the predictions give {correct} right of {n}; test the run again"
            )
    return predictions


def _read_predictions(path: Path, checkpoint: str) -> Predictions:
    header, rows = _read_rows(path)
    if header != _HEADER:
        raise ComparisonError(f"{path}: header is {','.join(header)}, expected {','.join(_HEADER)}")
    # A test on several devices may write another order: sorting by name (and labels, for names that occur twice)
    # makes the rows of all runs correspond.
    rows.sort(key=lambda row: row[:4])
    try:
        labels = {rule: np.array([_CLASS_INDEX[row[c]] for row in rows]) for rule, c in _LABEL_COLUMN.items()}
        probabilities = np.array([row[4:] for row in rows], dtype=np.float64)
    except KeyError as error:
        raise ComparisonError(f"{path}: label is {error}, expected one of {', '.join(CLASSES)}") from error
    except ValueError as error:
        raise ComparisonError(f"{path} is damaged: {error}; test the run again") from error
    wrong = ~(np.abs(probabilities.sum(axis=1) - 1.0) <= 1e-3)  # NaN, too
    if wrong.any():
        name = rows[int(np.argmax(wrong))][0]
        raise ComparisonError(f"{path}: the probabilities of {name} do not sum to 1; test the run again")
    in_train = np.array([row[3] == "1" for row in rows])
    return Predictions([tuple(row[:4]) for row in rows], labels, in_train, probabilities, checkpoint)


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: at least one row, all as long as the header."""
    try:
        lines = list(csv.reader(io.StringIO(_read_text(path), newline="")))
    except csv.Error as error:
        raise ComparisonError(f"{path} is damaged: {error}") from error
    if len(lines) < 2:
        raise ComparisonError(f"{path} is empty, expected a header and at least one row")
    header, *rows = lines
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ComparisonError(f"{path}: line {number} has {len(row)} values, expected {len(header)}")
    return header, rows


def _read_mapping(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ComparisonError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ComparisonError(f"{path} holds a {type(content).__name__}, expected key: value pairs")
    return content


def _read_text(path: Path) -> str:
    if not path.is_file():  # reading a pipe would hang
        raise ComparisonError(f"{path} is missing: the run did not finish, or its folder was not copied completely")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ComparisonError(f"{path} cannot be read: {error}") from error
