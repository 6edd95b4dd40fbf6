"""The paper's two figures, drawn from runs: faces enlarged by each arm, and accuracy and loss against epoch.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers; what a colour says is also said by line
style, marker or text. PNG bytes are returned, so that the caller writes nothing before everything has worked.
"""

import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comparison.measures import Arms
from comparison.reading import ComparisonError, Predictions, Rule, Run
from datamodules.labels import CLASSES, SPLIT_TITLES, Split

ARM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
ARM_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RIGHT, WRONG = "#0072B2", "#B24700"
CURVE_SPLITS: tuple[Split, ...] = ("train", "val")
_LEAST_FACES = 8


def choose_faces(predictions: Sequence[Predictions], rule: Rule, count: int) -> list[int]:
    """Rows to show: in turn faces that one arm alone gets right (per arm), that all get right, and that none does.

    Within a kind, a class that was shown less comes first, and then a fixed random order, so that the choice is the
    same every time and not one of looks.

    Args:
        predictions: one entry per arm, of the same images.
        rule: faces that it leaves out are not shown.
        count: number of faces wanted.

    Returns:
        At most ``count`` row numbers, in the order of the kinds.
    """
    labels = predictions[0].labels[rule]
    right = np.stack([p.right(rule) for p in predictions])
    twice = {name for name, times in Counter(predictions[0].names).items() if times > 1}
    usable = (labels >= 0) & np.array([name not in twice for name in predictions[0].names])
    kinds = [right[arm] & (right.sum(axis=0) == 1) for arm in range(len(right))] if len(right) > 1 else []
    kinds += [right.all(axis=0), ~right.any(axis=0)]
    order = np.random.default_rng(0).permutation(len(labels))
    pools = [[int(row) for row in order if usable[row] and kind[row]] for kind in kinds]
    chosen: list[list[int]] = [[] for _ in pools]
    shown: Counter[int] = Counter()
    while sum(map(len, chosen)) < count and any(pools):
        for pool, rows in zip(pools, chosen, strict=True):
            if pool and sum(map(len, chosen)) < count:
                row = min(pool, key=lambda r: shown[int(labels[r])])  # the first of the rarest class
                pool.remove(row)
                rows.append(row)
                shown[int(labels[row])] += 1
    return [row for rows in chosen for row in rows]


def draw_faces(arms: Arms, split: Split, rule: Rule, label: str) -> bytes:
    """Figure 1: the same faces enlarged by each arm, side by side, with each arm's answer.

    Args:
        arms: runs per arm; the one with the smallest seed that was tested on ``split`` is shown.
        split: where the faces come from.
        rule: which labels are the truth.
        label: name of the data, for the title.

    Returns:
        PNG.

    Raises:
        ComparisonError: if the enlarged faces cannot be had, or no face has a label.
    """
    runs = [next(run for run in members if split in run.tested) for members in arms.values()]
    predictions = [run.tested[split] for run in runs]
    per_row = max(1, 6 // len(runs))
    rows = choose_faces(predictions, rule, per_row * math.ceil(_LEAST_FACES / per_row))
    if not rows:
        raise ComparisonError(f"{runs[0].folder}: no image of split {split} has a label under the {rule} rule")
    names = [predictions[0].names[row] for row in rows]
    images = [_load_faces(run, split, names) for run in runs]

    # All in inches: the size of a face, what stands above and below it, and the gaps within and between groups.
    side, above, below, gap, group_gap, edge, head = 2.0, 0.45, 0.3, 0.06, 0.3, 0.15, 0.75
    lines, group = math.ceil(len(rows) / per_row), len(runs) * (side + gap) - gap
    width = max(2 * edge + min(per_row, len(rows)) * (group + group_gap) - group_gap, 8.0)
    height = head + lines * (above + side + below) + edge
    figure = _figure(width, height)
    for position, row in enumerate(rows):
        line, place = divmod(position, per_row)
        truth = int(predictions[0].labels[rule][row])
        bottom = height - head - line * (above + side + below) - above - side
        for column, (run, prediction) in enumerate(zip(runs, predictions, strict=True)):
            left = edge + place * (group + group_gap) + column * (side + gap)
            axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
            axes.imshow(images[column][position], cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
            _annotate(axes, run.arm, prediction.probabilities[row], truth)
            if column == 0:
                axes.text(0, 1.1, f"label: {CLASSES[truth]}", transform=axes.transAxes, fontsize=10, weight="bold")
    n = int(predictions[0].counted(rule, "all").sum())
    seeds = ", ".join(f"{run.arm} {run.seed}" for run in runs)
    title = f"The same faces enlarged by each arm: {label}, {SPLIT_TITLES[split]} split, seed: {seeds}"
    choice = f"{len(rows)} of n = {n:,} images ({rule} rule), picked evenly over outcomes, not in proportion"
    figure.suptitle(f"{title}\n{choice}", fontsize=12, y=1 - 0.1 / height)
    return _png(figure)


def _load_faces(run: Run, split: Split, names: list[str]) -> np.ndarray:
    # Imported here: it brings torch along, which a comparison without faces does not need.
    from comparison.faces import arm_images

    try:
        images = np.asarray(arm_images(Path(run.folder) / "config.yaml", split, names))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ComparisonError(
            f"the enlarged faces of {run.folder} cannot be had: {error}; --no-faces leaves figure1.png out"
        ) from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(names):
        raise ComparisonError(f"{run.folder}: faces are {images.dtype} {images.shape}, expected uint8 {len(names)},H,W")
    return images


def _annotate(axes: Any, arm: str, probabilities: np.ndarray, truth: int) -> None:
    answer = int(probabilities.argmax())
    mark, colour = ("\N{CHECK MARK}", RIGHT) if answer == truth else ("\N{BALLOT X}", WRONG)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(arm, fontsize=9, pad=3)
    axes.set_xlabel(f"{mark} {CLASSES[answer]} {probabilities[answer]:.2f}", fontsize=9, color=colour, labelpad=3)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1.5, linestyle="-" if answer == truth else "--")


def draw_curves(arms: Arms, label: str, counts: dict[Split, int]) -> bytes:
    """Figure 2: accuracy and loss against epoch, training and validation, all arms.

    Several runs of an arm are thin lines with their mean over the epochs that all of them reached.

    Args:
        arms: runs per arm.
        label: name of the data, for the title.
        counts: images per tested split, for the title.

    Returns:
        PNG.
    """
    figure = _figure(11, 5.4)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, 2)
    for panel, quantity, scale in zip(panels, ("acc", "loss"), (100.0, 1.0), strict=True):
        for number, (arm, runs) in enumerate(arms.items()):
            for split in CURVE_SPLITS:
                curves = [run.curves[f"{split}/{quantity}"] for run in runs]
                name, train = f"{arm}, {SPLIT_TITLES[split]}", split == "train"
                _draw_arm(panel, curves, scale, number, name, dashed=train, best=quantity == "acc")
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy (%)")
    panels[1].set_ylabel("loss")
    # Below the panels, where it hides no curve; one column per arm.
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(len(arms), 3), frameon=False, handlelength=3.5)
    images = ", ".join(f"{SPLIT_TITLES[s]} n = {n:,}" for s, n in counts.items() if s != "test") or "n not known"
    seeds = "; ".join(f"{arm} {', '.join(str(run.seed) for run in runs)}" for arm, runs in arms.items())
    figure.suptitle(f"Accuracy and loss against epoch: {label}\n{images}; seeds: {seeds}", fontsize=12)
    return _png(figure)


def _draw_arm(
    panel: Any, curves: Sequence[dict[int, float]], scale: float, number: int, name: str, dashed: bool, best: bool
) -> None:
    """One arm's curve with its name for the legend; with several runs, their mean over thin lines."""
    colour, style = ARM_COLOURS[number % len(ARM_COLOURS)], "--" if dashed else "-"
    if len(curves) > 1:
        name += f", mean of {len(curves)}"
        for curve in curves:
            panel.plot(list(curve), scale * np.array(list(curve.values())), style, color=colour, alpha=0.35, lw=0.8)
    epochs, values = _mean_curve(curves)
    if best and len(epochs) and not np.isnan(values).all():
        name += f" (best accuracy {scale * np.nanmax(values):.2f})"
    marker = ARM_MARKERS[number % len(ARM_MARKERS)] if len(epochs) < 30 else ""
    panel.plot(epochs, scale * values, style, color=colour, lw=1.8, marker=marker, ms=4, label=name)


def _mean_curve(curves: Sequence[dict[int, float]]) -> tuple[list[int], np.ndarray]:
    epochs = sorted(set(curves[0]).intersection(*curves[1:]))
    return epochs, np.array([[curve[epoch] for epoch in epochs] for curve in curves]).mean(axis=0)


def _figure(width: float, height: float) -> Figure:
    """A figure on the Agg canvas without pyplot: no display, no global state."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No software version in the file: the same input gives the same bytes.
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
