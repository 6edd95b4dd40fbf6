"""Write the tables, the notes and the verdicts of a comparison, as text and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple

from comparison.confounders import find_confounders
from comparison.measures import Difference, group_by_arm, measure_accuracies, measure_differences, verdict
from comparison.reading import Rule, Run, Subset
from comparison.statistics import CONFIDENCE, RESAMPLES, Estimate
from datamodules.labels import SPLIT_TITLES, SPLITS, Split

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
    """What a comparison of tested classifiers reports, besides its figures. The arm named first is the baseline."""

    def __init__(self, runs: Sequence[Run], rule: Rule) -> None:
        self.runs, self.rule = runs, rule
        self.arms = group_by_arm(runs)
        self.label = "synthetic data" if runs[0].info["synthetic"] else "FER+"
        self.accuracies = measure_accuracies(self.arms, rule)
        self.differences = measure_differences(self.arms, rule)
        self.counts = {a.split: a.n for a in self.accuracies if a.images == "all"}  # the same in every run
        # The split to show faces of: the last one that was tested in every arm.
        shared = set.intersection(*({split for run in group for split in run.tested} for group in self.arms.values()))
        self.shared_split = next((split for split in reversed(SPLITS) if split in shared), None)
        untested = [(run.folder, split) for run in runs for split in SPLITS if split not in run.tested]
        self.missing = [f"superfer test --ckpt_path {folder} --split {split}" for folder, split in untested]
        self.in_paper = [arm for arm in self.arms if arm in PAPER and self.label == "FER+"]
        self.doubts = {arm: self._doubt(arm) for arm in self.arms}
        self.warnings, self.notes = [sentence for _, sentence in find_confounders(runs)], self._notes()

    def json(self) -> str:
        """Return every number in machine-readable form."""
        info = self.runs[0].info
        keys = ("run_id", "arm", "seed", "experiment", "starts")
        content = {
            "data": {"label": self.label, "synthetic": info["synthetic"], "fingerprint": info["data_fingerprint"]},
            "rule": self.rule,
            "confidence": CONFIDENCE,
            "bootstrap_resamples": RESAMPLES,
            "runs": [{"folder": str(run.folder)} | {key: run.info.get(key) for key in keys} for run in self.runs],
            "accuracies": [asdict(accuracy) for accuracy in self.accuracies],
            "differences": [asdict(difference) | self._verdict(difference) for difference in self.differences],
            "commands_for_missing_splits": self.missing,
            "warnings": self.warnings,
            "notes": self.notes,
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def markdown(self) -> str:
        """Return the tables with verdicts and notes; warnings come first."""
        seeds = "; ".join(f"{arm} {_seeds([run.seed for run in runs])}" for arm, runs in self.arms.items())
        blocks = [f"# {', '.join(self.arms)} on {self.label}"]
        blocks += [f"**WARNING:** {warning}" for warning in self.warnings]
        blocks += [f"Labels: {self.rule} rule. Seeds: {seeds}."]
        blocks += self._accuracy_table("all")
        if self.missing:
            blocks += ["A dash is a split that was not tested. To fill it:"]
            blocks += ["\n".join(f"    {command}" for command in self.missing)]
        blocks += self._accuracy_table("without_train_duplicates")
        if self.differences:
            blocks += self._difference_table()
        blocks += ["\n".join(f"- {note}" for note in self.notes)]
        return "\n\n".join(blocks) + "\n"

    def _accuracy_table(self, images: Subset) -> list[str]:
        measured = [a for a in self.accuracies if a.images == images]
        cells = {}
        for a in measured:
            seed, count = (str(a.seeds[0]), "") if len(a.seeds) == 1 else ("mean", f" ({len(a.seeds)} seeds)")
            cells[a.arm, seed, a.split] = _percent(a.estimate) + count
        counts = {a.split: f" (n = {a.n:,})" for a in measured}
        splits = SPLITS if images == "all" else SPLITS[1:]
        rows = [["arm", "seed", *(SPLIT_TITLES[split] + counts.get(split, "") for split in splits)]]
        for arm, runs in self.arms.items():
            for seed in [str(run.seed) for run in runs] + ["mean"] * (len(runs) > 1):
                rows.append([arm, seed, *(cells.get((arm, seed, split), "-") for split in splits)])
        if images == "all":
            rows += [[f"{arm}, in the paper", "?", *PAPER[arm].values()] for arm in self.in_paper]
        title = f"## Accuracy in percent with 95 % interval, {SUBSET_TITLES[images]} ({self.label})"
        return [title, markdown_table(rows)]

    def _difference_table(self) -> list[str]:
        rows = [["split", "images", "arms", "seeds", "n", "difference", "over seeds", "only one correct", "McNemar p"]]
        verdicts = []
        for d in self.differences:
            split, pair = SPLIT_TITLES[d.split], f"{d.second} - {d.first}"
            images = "all" if d.images == "all" else "not in training"
            seeds = f"{_seeds(d.second_seeds)} / {_seeds(d.first_seeds)}"
            intervals = [_percent(d.over_images, "+"), _percent(d.over_seeds, "+") if d.over_seeds else "-"]
            last = ["-", "-"] if d.mcnemar_p is None else [f"{d.only_second} / {d.only_first}", f"{d.mcnemar_p:.3g}"]
            rows.append([split, images, pair, seeds, f"{d.n:,}", *intervals, *last])
            said = self._verdict(d)["verdict"] or f"no verdict: {self.doubts[d.second]}."
            if d.images == "all" or d.split == "test":
                verdicts.append(f"- {split}, {SUBSET_TITLES[d.images]}, {pair}: {said}")
        title = f"## Difference in points on the same images, with 95 % interval of the paired bootstrap ({self.label})"
        return [title, markdown_table(rows), "\n".join(verdicts)]

    def _doubt(self, arm: str) -> str | None:
        """Say why the comparison of an arm with the first gives no verdict on the upscaler; None if it gives one."""
        found = find_confounders([*next(iter(self.arms.values())), *self.arms[arm]])
        return f"the arms differ in {', '.join(dict.fromkeys(what for what, _ in found))}" if found else None

    def _verdict(self, difference: Difference) -> dict[str, str | None]:
        reason = self.doubts[difference.second]
        return {"verdict": None if reason else verdict(difference), "reason": reason}

    def _notes(self) -> list[str]:
        notes = [
            "Accuracies: Wilson interval over images for a single run, t-interval over seeds for a mean. Differences: "
            "paired bootstrap over images, Welch's t-interval over seeds. Seeds and counts are in the arms' order.",
            "Each run was evaluated once, with one checkpoint. The model was fit on the training split and selected on "
            "the validation split: only the test split is untouched.",
            "Figure 2 shows training as it went, on augmented images and with the training loss (soft targets, label "
            "smoothing), so its training accuracy is not the table's; validation is on plain images with majority "
            "labels.",
        ]
        if self.in_paper:
            notes += ["The paper's rows are the best of each curve, each at its own epoch; ours are one checkpoint's."]
        if len(self.arms) > 2:
            corrected = "intervals and p-values are not corrected for multiple comparisons"
            notes += [f"Each arm is compared with the first; {corrected}."]
        if not self.shared_split:
            notes += ["figure1.png was not drawn: no split was tested in every arm."]
        return notes


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first row is its header, padded to read well as plain text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *body = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["-" * width for width in widths], *body])


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _percent(estimate: Estimate, sign: str = "") -> str:
    value, low, high = (f"{100 * x:{sign}.2f}" for x in astuple(estimate))
    return f"{value} [{low}, {high}]"
