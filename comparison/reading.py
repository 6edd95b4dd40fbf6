"""Read run folders, and refuse what cannot be compared.

A run folder holds `run.json` and `metrics.csv` from training, and `metrics_{split}.json` with
`predictions_{split}.csv` for every tested split. Which settings may differ between arms: `run_state/may_differ.py`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from datamodules.labels import CLASSES, SPLITS, Split
from run_state.identity import read_record, sha256
from run_state.may_differ import changed_settings
from storage.reading import read_mapping, read_table

Rule = Literal["majority", "argmax"]
Subset = Literal["all", "without_train_duplicates"]
RULES: tuple[Rule, ...] = get_args(Rule)
SUBSETS: tuple[Subset, ...] = get_args(Subset)
CURVES = ("train/acc", "val/acc", "train/loss", "val/loss")

_LABEL_COLUMN: dict[Rule, str] = {"majority": "label", "argmax": "label_argmax"}
_CLASS_INDEX = {"": -1} | {name: index for index, name in enumerate(CLASSES)}  # empty: dropped by the rule
_MOST_EPOCHS = 10**6


@dataclass(frozen=True)
class Predictions:
    """One tested split of one run: N images in the order of the data."""

    images: list[tuple[str, ...]]  # name, one label per rule and in_train, as in the file
    labels: dict[Rule, np.ndarray]  # int64 N, index into CLASSES or -1 where the rule drops the image
    in_train: np.ndarray  # bool N, whether the same pixels also occur in the training split
    probabilities: np.ndarray  # float64 N,8 in [0, 1]
    checkpoint: str  # file name of the tested weights
    global_step: int  # optimiser steps that they have behind them
    is_stale: bool  # whether the file of that name is another one now
    settings: dict[str, Any]  # what the checkpoint was trained with
    results: dict[str, Any]  # metrics_{split}.json

    def right(self, rule: Rule) -> np.ndarray:
        """Return bool N: the most probable class is the label."""
        right: np.ndarray = self.probabilities.argmax(axis=1) == self.labels[rule]
        return right

    def counted(self, rule: Rule, subset: Subset) -> np.ndarray:
        """Return bool N: the image has a label under `rule` and belongs to `subset`."""
        labelled = self.labels[rule] >= 0
        return labelled if subset == "all" else labelled & ~self.in_train


@dataclass(frozen=True)
class Run:
    """A tested classifier."""

    folder: Path  # as given by the user
    arm: str  # name of the upscaler
    seed: int
    info: dict[str, Any]  # run.json
    config: dict[str, Any]  # what the tested checkpoint was trained with; config.yaml may have been edited since
    curves: dict[str, dict[int, float]]  # per name in CURVES, epoch -> value (loss, or accuracy in [0, 1])
    tested: dict[Split, Predictions]


def are_generators(folders: Sequence[Path]) -> bool:
    """Tell whether the runs trained generators (True) or classifiers (False); refuse runs of both kinds."""
    kinds = {read_record(folder)["arm"] is None: folder for folder in folders}
    if len(kinds) > 1:
        raise ValueError(f"{kinds[True]} trained a generator, {kinds[False]} a classifier: compare them separately")
    return True in kinds


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read tested classifiers; raise a ValueError if two of them cannot be compared."""
    runs = [_read_run(folder) for folder in folders]
    for one, other in itertools.combinations(runs, 2):
        _check_pair(one, other)
    return runs


def read_metrics(path: Path, names: Sequence[str]) -> dict[str, list[tuple[int, int, float]]]:
    """Return epoch, step and value of each row of `metrics.csv`, by metric; one never logged gets no entry."""
    _, rows = read_table(path)
    try:
        points = {
            name: [(int(row["epoch"]), int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            for name in names
        }
        for name, (epoch, _, value) in ((name, point) for name, logged in points.items() for point in logged):
            if not 0 <= epoch < _MOST_EPOCHS:
                raise ValueError(f"epoch is {epoch}, expected 0 to {_MOST_EPOCHS}")
            if name.endswith("/acc") and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value} in epoch {epoch}, expected 0 to 1")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return {name: logged for name, logged in points.items() if logged}


def _read_run(folder: Path) -> Run:
    info = read_record(folder)
    files = {split: folder / f"metrics_{split}.json" for split in SPLITS}
    tested = {split: _read_split(folder, split, info["run_id"]) for split, path in files.items() if path.exists()}
    if not tested:
        command = f"superfer test --ckpt_path {folder} --split test"
        raise ValueError(f"{folder} was not tested (no metrics_SPLIT.json); run `{command}` first")
    points = read_metrics(folder / "metrics.csv", CURVES)
    missing = [name for name in CURVES if name not in points]
    if missing:
        raise ValueError(f"{folder / 'metrics.csv'} has no value of {missing[0]}: no epoch ended; resume the training")
    # The last value of an epoch: a resumed run may have logged it twice.
    curves = {name: {epoch: value for epoch, _, value in points[name]} for name in CURVES}
    config = next(iter(tested.values())).settings
    return Run(folder, info["arm"], info["seed"], info, config, curves, tested)


def _check_pair(one: Run, other: Run) -> None:
    both = f"{one.folder} and {other.folder}"
    if one.info["run_id"] == other.info["run_id"]:
        raise ValueError(f"{both} are one run, or copies of one (run_id {one.info['run_id']}): name one of them")
    for key in ("data_fingerprint", "synthetic"):
        if one.info[key] != other.info[key]:
            values = " and ".join(f"{str(run.info[key])[:12]} in {run.folder}" for run in (one, other))
            raise ValueError(f"{key} is {values}: runs on different data cannot be compared")
    if one.arm == other.arm and one.seed == other.seed:
        settings = changed_settings(one.config, other.config, "compare")
        other_settings = f"but their settings differ ({'; '.join(settings)})"
        why = other_settings if settings else "and a repeated run is not another seed"
        raise ValueError(f"{both} are both arm {one.arm} with seed {one.seed}, {why}; name one of them")
    if one.arm == other.arm and one.info.get("generator_fingerprint") != other.info.get("generator_fingerprint"):
        raise ValueError(f"{both} are both arm {one.arm}, but their generators differ: compare them separately")
    for split in one.tested.keys() & other.tested.keys():
        images = one.tested[split].images, other.tested[split].images
        for pair in itertools.zip_longest(*images, fillvalue=("no image",)):
            if pair[0] != pair[1]:
                rows = " and ".join(",".join(row) for row in pair)
                raise ValueError(f"predictions_{split}.csv differ: {rows}; test both runs again: {both}")


def _read_split(folder: Path, split: Split, run_id: str) -> Predictions:
    """Read the predictions of a test, and refuse results that are not of them, or not of this run."""
    metrics_path, path = folder / f"metrics_{split}.json", folder / f"predictions_{split}.csv"
    metrics, (_, rows) = read_mapping(metrics_path), read_table(path)
    for name, expected in {"split": split, "run_id": run_id, "predictions_sha256": sha256(path)}.items():
        if metrics.get(name) != expected:
            of = path.name if name == "predictions_sha256" else "the run"
            found = f"{name} is {metrics.get(name)!r}, expected {expected!r}"
            raise ValueError(f"{metrics_path} does not match {of}: {found}; test the run again")
    try:
        tested = metrics["checkpoint"]
        checkpoint = (folder / "checkpoints" / "x").with_name(str(tested["name"]))  # refuses a path
        settings = dict(metrics["settings"])
        step, is_stale = int(tested["global_step"]), checkpoint.is_file() and sha256(checkpoint) != tested["sha256"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{metrics_path} does not say which checkpoint, with which settings, was tested; test the run again"
        ) from None
    return Predictions(
        images=[(row["name"], row["label"], row["label_argmax"], row["in_train"]) for row in rows],
        labels={rule: np.array([_CLASS_INDEX[row[key]] for row in rows]) for rule, key in _LABEL_COLUMN.items()},
        in_train=np.array([row["in_train"] == "1" for row in rows]),
        probabilities=np.array([[float(row[name]) for name in CLASSES] for row in rows]),
        checkpoint=checkpoint.name,
        global_step=step,
        is_stale=is_stale,
        settings=settings,
        results=metrics,
    )
