"""Draw the paper's two figures: faces upscaled by each arm, and accuracy and loss against epoch.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; what a colour says is also said by line
style, marker or text.
"""

import io
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from comparison.measures import Arms
from comparison.reading import ComparisonError, Predictions, Rule
from datamodules.labels import CLASSES, SPLIT_TITLES, Split

ARM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
ARM_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RIGHT, WRONG = "#0072B2", "#B24700"
CURVE_SPLITS: tuple[Split, ...] = ("train", "val")
_LEAST_FACES = 8


def upscaled_faces(config: Path, split: Split, names: list[str]) -> np.ndarray:
    """Return faces as the arm of a finished run saw them, before the reduction to its input size.

    Args:
        config: `config.yaml` of the run.
        split: where the faces are.
        names: which ones.

    Returns:
        uint8 N,384,384, or N,384,384,3 where the arm has colours.

    Raises:
        ValueError: The configuration, the data or a name is wrong.
    """
    # Imported here: they load torch, which nothing else in a comparison needs.
    import lightning as L
    from jsonargparse import ArgumentError, ArgumentParser

    from datamodules.ferplus.datamodule import FERPlusDataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data", required=True)
    try:
        parsed = parser.parse_object({"data": yaml.safe_load(config.read_text())["data"]})
    except (ArgumentError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{config} does not describe the data of a run ({error})") from error
    data = parser.instantiate(parsed).data
    if not isinstance(data, FERPlusDataModule):
        raise ValueError(f"{config}: data is {type(data).__name__}, expected FERPlusDataModule")
    images = data.faces(split, names)
    return images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)


def choose_faces(predictions: Sequence[Predictions], rule: Rule, count: int) -> list[int]:
    """Choose faces in turn: one that one arm alone gets right (per arm), one that all get right, one that none does.

    Within a kind, the class shown least comes first, then a fixed random order: the choice is reproducible and not one
    of looks.

    Args:
        predictions: one entry per arm, of the same images.
        rule: faces that it leaves out are not shown.
        count: number of faces wanted.

    Returns:
        At most `count` row numbers, in the order of the kinds.
    """
    labels = predictions[0].labels[rule]
    right = np.stack([p.right(rule) for p in predictions])
    names = predictions[0].names
    occurrences = Counter(names)
    usable = (labels >= 0) & np.array([occurrences[name] == 1 for name in names])
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


def draw_faces(
    arms: Arms,
    split: Split,
    rule: Rule,
    label: str,
    load: Callable[[Path, Split, list[str]], np.ndarray] = upscaled_faces,
) -> Figure:
    """Draw figure 1: the same faces upscaled by each arm, side by side, with each arm's answer.

    Args:
        arms: runs per arm; the one with the smallest seed that was tested on `split` is shown.
        split: where the faces come from.
        rule: which labels are the truth.
        label: name of the data, for the title.
        load: where to get the faces.

    Raises:
        ComparisonError: The faces cannot be loaded, or none has a label.
    """
    runs = [next(run for run in members if split in run.tested) for members in arms.values()]
    predictions = [run.tested[split] for run in runs]
    per_row = max(1, 6 // len(runs))
    rows = choose_faces(predictions, rule, per_row * math.ceil(_LEAST_FACES / per_row))
    if not rows:
        raise ComparisonError(f"{runs[0].folder}: no image of split {split} has a label under the {rule} rule")
    names = [predictions[0].names[row] for row in rows]
    images = []
    for run in runs:
        try:
            images.append(load(run.folder / "config.yaml", split, names))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ComparisonError(
                f"could not load the upscaled faces of {run.folder}: {error}; --no-faces leaves figure1.png out"
            ) from error

    columns, lines = min(per_row, len(rows)), math.ceil(len(rows) / per_row)
    figure = new_figure(max(columns * (2.05 * len(runs) + 0.15), 8.0), 2.75 * lines + 0.75)
    groups = figure.subfigures(lines, columns, squeeze=False, wspace=0.03).flat
    for position, (row, group) in enumerate(zip(rows, groups, strict=False)):
        truth = int(predictions[0].labels[rule][row])
        group.suptitle(f"label: {CLASSES[truth]}", fontsize=10, weight="bold")
        panels = group.subplots(1, len(runs), squeeze=False)[0]
        for axes, run, prediction, faces in zip(panels, runs, predictions, images, strict=True):
            axes.imshow(faces[position], cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
            _annotate(axes, run.arm, prediction.probabilities[row], truth)
    n = int(predictions[0].counted(rule, "all").sum())
    seeds = ", ".join(f"{run.arm} {run.seed}" for run in runs)
    _title(
        figure,
        f"The same faces upscaled by each arm: {label}, {SPLIT_TITLES[split]} split, seeds: {seeds}",
        f"{len(rows)} of n = {n:,} images ({rule} rule), chosen evenly over outcomes, not in proportion",
    )
    return figure


def _annotate(axes: Axes, arm: str, probabilities: np.ndarray, truth: int) -> None:
    answer = int(probabilities.argmax())
    mark, colour = ("\N{CHECK MARK}", RIGHT) if answer == truth else ("\N{BALLOT X}", WRONG)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(arm, fontsize=9, pad=3)
    axes.set_xlabel(f"{mark} {CLASSES[answer]} {probabilities[answer]:.2f}", fontsize=9, color=colour, labelpad=3)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1.5, linestyle="-" if answer == truth else "--")


def draw_curves(arms: Arms, label: str, counts: dict[Split, int]) -> Figure:
    """Draw figure 2: accuracy and loss against epoch, training and validation, all arms.

    Several runs of an arm are thin lines with their mean over the epochs that all of them reached.

    Args:
        arms: runs per arm.
        label: name of the data, for the title.
        counts: images per tested split, for the title.
    """
    figure = new_figure(11, 5.4)
    panels = figure.subplot_mosaic([["acc", "loss"]])
    for quantity, panel in panels.items():
        for number, (arm, runs) in enumerate(arms.items()):
            for split in CURVE_SPLITS:
                curves = [run.curves[f"{split}/{quantity}"] for run in runs]
                _draw_arm(panel, curves, number, f"{arm}, {SPLIT_TITLES[split]}", split == "train", quantity == "acc")
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels["acc"].set_ylabel("accuracy (%)")
    panels["loss"].set_ylabel("loss")
    # Below the panels, where it hides no curve: training on the left, validation on the right.
    handles, names = panels["acc"].get_legend_handles_labels()
    columns = {"handles": handles[::2] + handles[1::2], "labels": names[::2] + names[1::2], "ncols": 2}
    figure.legend(**columns, loc="outside lower center", frameon=False, handlelength=3.5, fontsize=9)
    images = [f"{SPLIT_TITLES[split]} n = {n:,}" for split, n in counts.items() if split in CURVE_SPLITS]
    seeds = [f"{arm} {', '.join(str(run.seed) for run in runs)}" for arm, runs in arms.items()]
    _title(figure, f"Accuracy and loss against epoch: {label}", "; ".join([*images, f"seeds: {'; '.join(seeds)}"]))
    return figure


def _draw_arm(panel: Axes, curves: Sequence[dict[int, float]], number: int, name: str, train: bool, acc: bool) -> None:
    """Draw one arm's curve, named for the legend; with several runs, their mean over thin lines."""
    colour, style, scale = ARM_COLOURS[number % len(ARM_COLOURS)], "--" if train else "-", 100.0 if acc else 1.0
    if len(curves) > 1:
        name += f", mean of {len(curves)}"
        for curve in curves:
            panel.plot(list(curve), scale * np.array(list(curve.values())), style, color=colour, alpha=0.35, lw=0.8)
    epochs = sorted(set(curves[0]).intersection(*curves[1:]))
    values = scale * np.array([[curve[epoch] for epoch in epochs] for curve in curves]).mean(axis=0)
    if acc and len(epochs) and not np.isnan(values).all():
        name += f" (best accuracy {np.nanmax(values):.2f})"
    marker = ARM_MARKERS[number % len(ARM_MARKERS)] if len(epochs) < 30 else ""
    filling = "white" if train else colour  # a single epoch has no line style
    panel.plot(epochs, values, style, color=colour, lw=1.8, marker=marker, ms=4, mfc=filling, label=name)


def png(figure: Figure) -> bytes:
    """Return the figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    # "tight" widens the picture for a legend with long names; the software's version would change the bytes.
    metadata: dict[str, Any] = {"Software": None}
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Make a figure in inches on the Agg canvas, without pyplot: no display, no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _title(figure: Figure, *lines: str) -> None:
    width = int(11 * figure.get_figwidth())  # characters of this size
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in lines), fontsize=12)
