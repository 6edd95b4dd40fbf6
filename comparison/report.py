"""Write the tables, the notes and the verdicts of a comparison, as text and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from comparison.measures import (
    Accuracy,
    Arms,
    config_differences,
    group_by_arm,
    measure_accuracies,
    measure_differences,
    verdict,
)
from comparison.reading import ComparisonError, Rule, Run, Subset
from comparison.statistics import CONFIDENCE, RESAMPLES, Estimate
from datamodules.labels import SPLIT_TITLES, SPLITS, Split
from run_state.folder import status
from storage.atomic import write_atomically

SUBSET_TITLES: dict[Subset, str] = {
    "all": "all images",
    "without_train_duplicates": "without images that also occur in training",
}

# The figures being reproduced: best accuracy of each curve, in percent; one run each, label rule not stated.
PAPER: dict[str, dict[Split, str]] = {
    "bilinear": {"train": "87.84", "val": "81.52", "test": "83.45"},
    "dic": {"train": "88.99", "val": "83.24", "test": "83.52"},
}


class Report:
    """What a comparison of tested classifiers says, apart from its figures.

    Args:
        runs: the arm named first is the one that the others are compared with.
        rule: which label rule counts.

    Attributes:
        arms: the runs per arm.
        label: name of the data.
        counts: images that count, per tested split; the same in every run.
        shared_split: the split to show faces of: test, else validation, else training; None if no split was tested in
            every arm.
        notes: what a reader has to know about the numbers; more may be appended.
    """

    def __init__(self, runs: Sequence[Run], rule: Rule) -> None:
        self.runs, self.rule = runs, rule
        self.arms: Arms = group_by_arm(runs)
        self.synthetic = bool(runs[0].info["synthetic"])
        self.label = "synthetic data" if self.synthetic else "FER+"
        self.accuracies = measure_accuracies(self.arms, rule)
        self.differences = measure_differences(self.arms, rule)
        self.counts: dict[Split, int] = {a.split: a.n for a in self.accuracies if a.images == "all"}
        tested = [{split for run in members for split in run.tested} for members in self.arms.values()]
        shared = set.intersection(*tested)
        self.shared_split = next((split for split in reversed(SPLITS) if split in shared), None)
        self.missing = [
            f"superfer test --ckpt_path {run.folder} --split {split}"
            for members in self.arms.values()
            for run in members
            for split in SPLITS
            if split not in run.tested
        ]
        self.warnings = _warnings(runs)
        self.notes = _notes(self.arms, self.synthetic)

    def json(self) -> bytes:
        """Return every number, for programs."""
        keys = ("arm", "seed", "experiment", "git_commit")
        content = {
            "data": {
                "label": self.label,
                "synthetic": self.synthetic,
                "fingerprint": self.runs[0].info["data_fingerprint"],
            },
            "rule": self.rule,
            "confidence": CONFIDENCE,
            "bootstrap_resamples": RESAMPLES,
            "runs": [{"folder": str(run.folder)} | {key: run.info.get(key) for key in keys} for run in self.runs],
            "accuracies": [asdict(accuracy) for accuracy in self.accuracies],
            "differences": [asdict(difference) | {"verdict": verdict(difference)} for difference in self.differences],
            "commands_for_missing_splits": self.missing,
            "warnings": self.warnings,
            "notes": self.notes,
        }
        return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()

    def markdown(self) -> bytes:
        """Return the tables with verdicts and notes; warnings come first."""
        seeds = "; ".join(f"{arm} {_seeds([run.seed for run in runs])}" for arm, runs in self.arms.items())
        blocks = [[f"# {', '.join(self.arms)} on {self.label}"], [f"Labels: {self.rule} rule. Seeds: {seeds}."]]
        blocks += [[f"**WARNING:** {warning}"] for warning in self.warnings]
        blocks += self._accuracy_table("all")
        if self.missing:
            blocks += [["A dash is a split that was not tested. To fill it:"], [f"    {line}" for line in self.missing]]
        blocks += self._accuracy_table("without_train_duplicates")
        if self.differences:
            blocks += self._difference_table()
        blocks += [[f"- {note}" for note in self.notes]]
        return ("\n\n".join("\n".join(block) for block in blocks) + "\n").encode()

    def _accuracy_table(self, images: Subset) -> list[list[str]]:
        measured = [a for a in self.accuracies if a.images == images]
        cells = {(a.arm, str(a.seeds[0]) if len(a.seeds) == 1 else "mean", a.split): a for a in measured}
        counts = {a.split: a.n for a in measured}
        splits = SPLITS if images == "all" else SPLITS[1:]
        titles = [SPLIT_TITLES[s] + (f" (n = {counts[s]:,})" if s in counts else "") for s in splits]
        rows = [["arm", "seed", *titles]]
        for arm, runs in self.arms.items():
            for seed in [str(run.seed) for run in runs] + ["mean"] * (len(runs) > 1):
                rows.append([arm, seed, *(_cell(cells.get((arm, seed, split))) for split in splits)])
        if images == "all" and not self.synthetic:
            rows += [[f"{arm}, in the paper", "?", *PAPER[arm].values()] for arm in self.arms if arm in PAPER]
        title = f"## Accuracy in percent with 95 % interval, {SUBSET_TITLES[images]} ({self.label})"
        return [[title], markdown_table(rows)]

    def _difference_table(self) -> list[list[str]]:
        rows = [["split", "images", "arms", "seeds", "n", "difference", "over seeds", "only one correct", "McNemar p"]]
        verdicts = []
        for d in self.differences:
            last = ["-", "-"] if d.mcnemar_p is None else [f"{d.only_second} / {d.only_first}", f"{d.mcnemar_p:.3g}"]
            pair = f"{d.second} - {d.first}"
            images = "all" if d.images == "all" else "not in training"
            seeds = f"{_seeds(d.second_seeds)} / {_seeds(d.first_seeds)}"
            over_seeds = "-" if d.over_seeds is None else _points(d.over_seeds)
            place = [SPLIT_TITLES[d.split], images, pair, seeds, f"{d.n:,}"]
            rows.append([*place, _points(d.over_images), over_seeds, *last])
            if d.decides and (d.images == "all" or d.split == "test"):
                verdicts.append(f"- {SPLIT_TITLES[d.split]}, {SUBSET_TITLES[d.images]}, {pair}: {verdict(d)}")
        title = f"## Difference in points on the same images, with 95 % interval of the paired bootstrap ({self.label})"
        return [[title], markdown_table(rows), verdicts]


def write_files(folder: Path, files: dict[str, bytes | None]) -> list[Path]:
    """Write each file completely or not at all; a file without content is one to remove.

    Raises:
        ComparisonError: The folder cannot be made or written.
    """
    written = []
    try:
        for name, content in sorted(files.items()):
            if content is None:
                (folder / name).unlink(missing_ok=True)
            else:
                write_atomically(folder / name, content)
                written.append(folder / name)
    except OSError as error:
        raise ComparisonError(f"--output {folder} cannot be written: {error}") from error
    return written


def markdown_table(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return the lines of a table whose first row is its header, padded to read well as plain text."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(str(v).ljust(w) for v, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]]


def _warnings(runs: Sequence[Run]) -> list[str]:
    checkpoints = sorted({predictions.checkpoint for run in runs for predictions in run.tested.values()})
    warnings = [f"different checkpoints were tested: {', '.join(checkpoints)}."] if len(checkpoints) > 1 else []
    warnings += [
        f"{run.folder} is not finished: its status is {found}."
        for run in runs
        if (found := status(run.folder)) != "finished"
    ]
    return warnings + [f"the arms should differ only in the upscaler, but {line}." for line in config_differences(runs)]


def _notes(arms: Arms, synthetic: bool) -> list[str]:
    notes = [
        "Accuracies: Wilson interval over images for a single run, t-interval over seeds for a mean. Differences: "
        "paired bootstrap over images, Welch's t-interval over seeds. Seeds and counts are in the order of the arms.",
        "Each run was evaluated once, with one checkpoint. The model was fit on the training split and selected on the "
        "validation split: only the test split is untouched.",
        "Figure 2 shows training as it went, on augmented images and with the training loss (soft targets, label "
        "smoothing), so its training accuracy is not the table's; validation is on plain images with majority labels.",
    ]
    if not synthetic and any(arm in PAPER for arm in arms):
        notes.append("The paper's rows are the best of each curve, each at its own epoch; ours are one checkpoint's.")
    if len(arms) > 2:
        notes.append(
            "Each arm is compared with the first; intervals and p-values are not corrected for multiple comparisons."
        )
    return notes


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _cell(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "-"
    value, low, high = (100 * x for x in astuple(accuracy.estimate))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" + (
        f" ({len(accuracy.seeds)} seeds)" if len(accuracy.seeds) > 1 else ""
    )


def _points(estimate: Estimate) -> str:
    value, low, high = (100 * x for x in astuple(estimate))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
