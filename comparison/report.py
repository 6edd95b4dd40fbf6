"""Write the verdict, the tables and the notes of a comparison, as text and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple

from comparison.confounders import find_confounders
from comparison.measures import ACCURACY, FINAL_EPOCH, Difference, group_by_arm, measure_accuracies, measure_differences
from comparison.reading import Rule, Run
from comparison.statistics import CONFIDENCE, Estimate
from comparison.verdict import judge
from datamodules.labels import SPLIT_TITLES, SPLITS, Split

# The figures being reproduced: best accuracy of each curve, in percent; one run each, label rule not stated.
PAPER: dict[str, dict[Split, str]] = {
    "bilinear": {"train": "87.84", "val": "81.52", "test": "83.45"},
    "dic": {"train": "88.99", "val": "83.24", "test": "83.52"},
}


class Report:
    """What a comparison of tested classifiers reports, besides its figures. The arm named first is the baseline.

    Args:
        runs: of all arms.
        rule: which labels count.
        margin: the largest difference in accuracy, in [0, 1], that does not matter.
    """

    def __init__(self, runs: Sequence[Run], rule: Rule, margin: float) -> None:
        self.runs, self.rule, self.margin = runs, rule, margin
        self.arms = group_by_arm(runs)
        self.label = "synthetic data" if runs[0].info["synthetic"] else "FER+"
        self.accuracies = measure_accuracies(self.arms, rule)
        self.differences = measure_differences(self.arms, rule)
        self.counts = {a.split: a.n for a in self.accuracies}  # the same in every run
        # The split to show faces of: the last one that was tested in every arm.
        shared = set.intersection(*({split for run in group for split in run.tested} for group in self.arms.values()))
        self.shared_split = next((split for split in reversed(SPLITS) if split in shared), None)
        untested = [(run.folder, split) for run in runs for split in SPLITS if split not in run.tested]
        self.missing = [f"superfer test --ckpt_path {folder} --split {split}" for folder, split in untested]
        self.in_paper = [arm for arm in self.arms if arm in PAPER and self.label == "FER+"]
        self.verdicts = judge(self.differences, margin, {arm: self._doubt(arm) for arm in self.arms})
        self.warnings, self.notes = [sentence for _, sentence in find_confounders(runs)], self._notes()

    def json(self) -> str:
        """Return every number in machine-readable form."""
        info = self.runs[0].info
        keys = ("run_id", "arm", "seed", "experiment", "starts")
        content = {
            "data": {"label": self.label, "synthetic": info["synthetic"], "fingerprint": info["data_fingerprint"]},
            "rule": self.rule,
            "confidence": CONFIDENCE,
            "margin": self.margin,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "runs": [{"folder": str(run.folder)} | {key: run.info.get(key) for key in keys} for run in self.runs],
            "accuracies": [asdict(accuracy) for accuracy in self.accuracies],
            "differences": [_as_json(difference) for difference in self.differences],
            "commands_for_missing_splits": self.missing,
            "warnings": self.warnings,
            "notes": self.notes,
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def markdown(self) -> str:
        """Return the verdict, the tables and the notes; warnings come first."""
        seeds = "; ".join(f"{arm} {_seeds(runs)}" for arm, runs in self.arms.items())
        blocks = [f"# {', '.join(self.arms)} on {self.label}"]
        blocks += [f"**WARNING:** {warning}" for warning in self.warnings]
        blocks += [f"**{verdict.sentence}**" for verdict in self.verdicts]
        blocks += self._accuracy_table()
        blocks += [f"Labels: {self.rule} rule. Seeds: {seeds}."]
        if self.missing:
            blocks += ["A dash is a split that was not tested. To fill it:"]
            blocks += ["\n".join(f"    {command}" for command in self.missing)]
        if self.differences:
            blocks += self._difference_table()
        blocks += ["\n".join(f"- {note}" for note in self.notes)]
        return "\n\n".join(blocks) + "\n"

    def _accuracy_table(self) -> list[str]:
        cells = {}
        for a in self.accuracies:
            seed, count = (str(a.seeds[0]), "") if len(a.seeds) == 1 else ("mean", f" ({len(a.seeds)} seeds)")
            cells[a.arm, seed, a.split] = _percent(a.estimate) + count
        counts = {split: f" (n = {n:,})" for split, n in self.counts.items()}
        rows = [["arm", "seed", *(SPLIT_TITLES[split] + counts.get(split, "") for split in SPLITS)]]
        for arm, runs in self.arms.items():
            for seed in [str(run.seed) for run in runs] + ["mean"] * (len(runs) > 1):
                rows.append([arm, seed, *(cells.get((arm, seed, split), "-") for split in SPLITS)])
        rows += [[f"{arm}, in the paper", "?", *PAPER[arm].values()] for arm in self.in_paper]
        return [f"## Accuracy in percent with 95 % interval ({self.label})", markdown_table(rows)]

    def _difference_table(self) -> list[str]:
        """Return a line per measure; of further splits than the one that the verdict is about, accuracy alone."""
        first, *others = self.arms
        main = self.differences[0].split
        by_line: dict[tuple[Split, str], dict[str, Difference]] = {}
        for d in self.differences:
            if d.split == main or d.measure in (ACCURACY, FINAL_EPOCH):
                by_line.setdefault((d.split, d.measure), {})[d.second] = d
        rows = [["split", "measure", "n", *self.arms, *(f"{arm} - {first}" for arm in others)]]
        for (split, measure), found in by_line.items():
            baseline = next(iter(found.values()))
            values = [f"{100 * baseline.first_value:.2f}"]
            values += [f"{100 * found[arm].second_value:.2f}" if arm in found else "-" for arm in others]
            changes = [_change(found[arm]) if arm in found else "-" for arm in others]
            rows.append([SPLIT_TITLES[split], measure, f"{baseline.n:,}", *values, *changes])
        title = f"## Differences in points with 95 % interval, and what accuracy hides ({self.label})"
        return [title, markdown_table(rows)]

    def _doubt(self, arm: str) -> str | None:
        """Say why the comparison of an arm with the first gives no verdict on the upscaler; None if it gives one."""
        found = find_confounders([*next(iter(self.arms.values())), *self.arms[arm]])
        return f"the arms differ in {', '.join(dict.fromkeys(what for what, _ in found))}" if found else None

    def _notes(self) -> list[str]:
        notes = [
            "Intervals cover seeds and images together where an arm has several seeds, images alone where it has one. "
            "Runs of both arms with the same seeds are paired from 3 seeds on.",
            "The verdict is about the first line of the differences. The others are there to understand it: some of "
            "so many intervals exclude 0 by chance.",
            "Each run was evaluated once, with one checkpoint. The model was fit on the training split and selected on "
            "the validation split: only the test split is untouched.",
            "Figure 2 shows training as it went, on augmented images and with the training loss (soft targets, label "
            "smoothing), so its training accuracy is not the table's; validation is on plain images with majority "
            "labels.",
        ]
        if self.in_paper:
            notes += ["The paper's rows are the best of each curve, each at its own epoch; ours are one checkpoint's."]
        if len(self.arms) > 2:
            notes += [
                "Each arm is compared with the first. The p-values of the verdicts are corrected for the number of "
                "arms by Holm's method; the intervals are not."
            ]
        if not self.shared_split:
            notes += ["figure1.png was not drawn: no split was tested in every arm."]
        return notes


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first row is its header, padded to read well as plain text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *body = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["-" * width for width in widths], *body])


def _as_json(difference: Difference) -> dict[str, object]:
    mean = difference.mean
    more = {"interval": asdict(mean.interval()), "smallest_shown": mean.smallest_shown()} if mean else {}
    return asdict(difference) | {"value": difference.value} | more


def _change(difference: Difference) -> str:
    """Return the difference with its interval, if there is any: a few images may all be answered alike."""
    mean = difference.mean
    return _percent(mean.interval(), "+") if mean and mean.error else f"{100 * difference.value:+z.2f}"


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.seed) for run in runs)


def _percent(estimate: Estimate, sign: str = "") -> str:
    value, low, high = (f"{100 * x:{sign}z.2f}" for x in astuple(estimate))
    return f"{value} [{low}, {high}]"
