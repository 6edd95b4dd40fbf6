"""The table, the notes and the verdict of a comparison, and the files they are written into."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison.figures import draw_curves, draw_faces
from comparison.measures import (
    Accuracy,
    Arms,
    Difference,
    config_differences,
    group_by_arm,
    measure_accuracies,
    measure_differences,
    verdict,
)
from comparison.reading import (
    SPLITS,
    ComparisonError,
    Rule,
    Split,
    Subset,
    read_runs,
)
from comparison.statistics import CONFIDENCE, RESAMPLES, Estimate
from run_state.folder import status
from storage.atomic import write_atomically

SPLIT_TITLES: dict[Split, str] = {"train": "train", "val": "validation", "test": "test"}

SUBSET_TITLES: dict[Subset, str] = {
    "all": "all images",
    "without_train_duplicates": "without the images that also occur in training",
}

# The figures being reproduced: best accuracy of each curve, in percent; one run each, label rule not stated.
PAPER: dict[str, dict[Split, str]] = {
    "bilinear": {"train": "87.84", "val": "81.52", "test": "83.45"},
    "dic": {"train": "88.99", "val": "83.24", "test": "83.52"},
}

OUTPUTS = {"table.md", "comparison.json", "figure1.png", "figure2.png"}

REAL, SYNTHETIC = "FER+", "synthetic data"


def compare_runs(folders: Sequence[Path], rule: Rule = "majority", faces: bool = True) -> dict[str, bytes]:
    """Everything that the command writes, by file name.

    Args:
        folders: run folders; the arm named first is the one that the others are compared with.
        rule: which of the two label rules counts.
        faces: whether to draw figure1.png, for which the data set must be in the place where the runs found it.

    Raises:
        ComparisonError: if the runs, or the faces, cannot be read or do not belong together.
    """
    runs = read_runs(folders)
    arms = group_by_arm(runs)
    accuracies, differences = measure_accuracies(arms, rule), measure_differences(arms, rule)
    synthetic = bool(runs[0].info["synthetic"])
    label = SYNTHETIC if synthetic else REAL
    files = {"figure2.png": draw_curves(arms, label, _counts(accuracies))}
    notes = _notes(arms)
    common = [split for split in reversed(SPLITS) if all(any(split in r.tested for r in arms[arm]) for arm in arms)]
    if faces and common:
        files["figure1.png"] = draw_faces(arms, common[0], rule, label)
    elif faces:
        notes.append("figure1.png was not drawn: no split was tested in every arm.")
    missing = [
        (run, split) for members in arms.values() for run in members for split in SPLITS if split not in run.tested
    ]
    commands = [f"superfer test --ckpt_path {run.folder} --split {split}" for run, split in missing]
    files["table.md"] = _table(arms, rule, label, accuracies, differences, commands, notes).encode()
    report = {
        "data": {"label": label, "synthetic": synthetic, "fingerprint": runs[0].info["data_fingerprint"]},
        "rule": rule,
        "confidence": CONFIDENCE,
        "bootstrap_resamples": RESAMPLES,
        "runs": [
            {
                "folder": str(run.folder),
                **{key: run.info.get(key) for key in ("arm", "seed", "experiment", "git_commit")},
            }
            for run in runs
        ],
        "accuracies": [asdict(accuracy) for accuracy in accuracies],
        "differences": [asdict(difference) | {"verdict": verdict(difference)} for difference in differences],
        "commands_for_missing_splits": commands,
        "notes": notes,
    }
    files["comparison.json"] = (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Writes every file whole or not at all, and removes what an earlier comparison left and this one does not have.

    Raises:
        ComparisonError: if the folder cannot be made or written.
    """
    try:
        for name, content in sorted(files.items()):
            write_atomically(folder / name, content)
        for name in OUTPUTS - set(files):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise ComparisonError(f"--output {folder} cannot be written: {error}") from error
    return [folder / name for name in sorted(files)]


def _counts(accuracies: Sequence[Accuracy]) -> dict[Split, int]:
    """Images that count, per tested split; the same in every run, since read_runs compares their labels."""
    return {a.split: a.n for a in accuracies if a.images == "all"}


def _notes(arms: Arms) -> list[str]:
    runs = [run for members in arms.values() for run in members]
    notes = [
        "Accuracies: Wilson interval over images for one run, t-interval over seeds for a mean. Differences: paired "
        "bootstrap over images, Welch's t-interval over seeds; seeds and counts stand in the order of the arms.",
        "Each run was evaluated once, with one checkpoint. The training split was learnt and the validation split "
        "chose the checkpoint: only the test split is untouched.",
        "Curves: the training curves are taken while training, on augmented images with the training loss (soft "
        "targets, label smoothing); the validation curves on plain images with their majority labels.",
    ]
    if any(arm in PAPER for arm in arms) and not runs[0].info["synthetic"]:
        notes.append("The paper's rows are the best of each curve, each at its own epoch; ours are one checkpoint's.")
    if len(arms) > 2:
        notes.append("Several arms are compared with the first one; intervals and p-values are not corrected for that.")
    tested = {predictions.checkpoint for run in runs for predictions in run.tested.values()}
    if len(tested) > 1:
        notes.append(f"WARNING: different checkpoints were tested: {', '.join(sorted(tested))}.")
    notes += [
        f"WARNING: {run.folder} has status {found!r}, expected 'finished'."
        for run in runs
        if (found := status(run.folder)) != "finished"
    ]
    notes += [f"WARNING: the arms should differ only in the upscaler, but {line}." for line in config_differences(runs)]
    return notes


def _table(
    arms: Arms,
    rule: Rule,
    label: str,
    accuracies: Sequence[Accuracy],
    differences: Sequence[Difference],
    commands: Sequence[str],
    notes: Sequence[str],
) -> str:
    seeds = "; ".join(f"{arm} {_seeds([run.seed for run in runs])}" for arm, runs in arms.items())
    lines = [f"# {', '.join(arms)} on {label}", "", f"Labels: {rule} rule. Seeds: {seeds}."]
    lines += ["", *_accuracy_table(arms, label, accuracies, "all")]
    if commands:
        lines += ["", "A dash is a split that was not tested. To fill it:", "", *(f"    {c}" for c in commands)]
    lines += ["", *_accuracy_table(arms, label, accuracies, "without_train_duplicates")]
    if differences:
        lines += ["", *_difference_table(differences, label)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def _accuracy_table(arms: Arms, label: str, accuracies: Sequence[Accuracy], images: Subset) -> list[str]:
    cells = {(a.arm, tuple(a.seeds), a.split): a for a in accuracies if a.images == images}
    counts = {a.split: a.n for a in cells.values()}
    splits = SPLITS if images == "all" else SPLITS[1:]
    titles = [SPLIT_TITLES[s] + (f" (n = {counts[s]:,})" if s in counts else "") for s in splits]
    rows = [["arm", "seed", *titles], ["---"] * (2 + len(splits))]
    for arm, runs in arms.items():
        for run in runs:
            found = [cells.get((arm, (run.seed,), split)) for split in splits]
            rows.append([arm, str(run.seed), *("-" if a is None else _percent(a.estimate) for a in found)])
        if len(runs) > 1:
            means = [
                next((a for key, a in cells.items() if key[::2] == (arm, s) and len(key[1]) > 1), None) for s in splits
            ]
            texts = ["-" if a is None else f"{_percent(a.estimate)} ({len(a.seeds)} seeds)" for a in means]
            rows.append([arm, "mean", *texts])
    if images == "all" and label == REAL:
        rows += [[f"{arm}, in the paper", "?", *PAPER[arm].values()] for arm in arms if arm in PAPER]
    title = f"## Accuracy in percent with 95 % interval, {SUBSET_TITLES[images]} ({label})"
    return [title, "", *_markdown(rows)]


def _difference_table(differences: Sequence[Difference], label: str) -> list[str]:
    header = ["split", "images", "arms", "seeds", "n", "difference", "over seeds", "right alone", "McNemar p"]
    rows, verdicts = [header, ["---"] * len(header)], []
    for d in differences:
        last = ["-", "-"] if d.mcnemar_p is None else [f"{d.only_second} / {d.only_first}", f"{d.mcnemar_p:.3g}"]
        pair = f"{d.second} - {d.first}"
        images = "all" if d.images == "all" else "not in training"
        seeds = _seeds(d.second_seeds) + " / " + _seeds(d.first_seeds)
        over_seeds = "-" if d.over_seeds is None else _points(d.over_seeds)
        rows.append([SPLIT_TITLES[d.split], images, pair, seeds, f"{d.n:,}", _points(d.over_images), over_seeds, *last])
        if d.decides and (d.images == "all" or d.split == "test"):
            verdicts.append(f"{SPLIT_TITLES[d.split]}, {SUBSET_TITLES[d.images]}, {pair}: {verdict(d)}")
    title = f"## Difference in points on the same images, with 95 % paired-bootstrap interval ({label})"
    return [title, "", *_markdown(rows), "", *(f"- {line}" for line in verdicts)]


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.2f} [{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]"


def _points(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.2f} [{100 * estimate.low:+.2f}, {100 * estimate.high:+.2f}]"


def _markdown(rows: Sequence[Sequence[Any]]) -> list[str]:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return ["| " + " | ".join(str(v).ljust(w) for v, w in zip(row, widths, strict=True)) + " |" for row in rows]
