"""Draw the paper's two figures: faces upscaled by each arm, and accuracy and loss against epoch.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; what a colour says is also said by line
style, marker or text.
"""

import io
import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from comparison.measures import Arms
from comparison.reading import Predictions, Rule, Run
from datamodules.labels import CLASSES, SPLIT_TITLES, Split

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
ARM_STYLES = tuple(zip(_COLOURS, "os^DvPX", strict=True))  # colour and marker
_LEAST_FACES = 8
_DRAWN_SPLITS: tuple[Split, ...] = ("train", "val")


def upscaled_faces(run: Run, split: Split, names: list[str]) -> np.ndarray:
    """Return faces as the arm of a finished run saw them, uint8 N,384,384 or, where it has colours, N,384,384,3.

    Where the configuration, the data or a name is wrong, the errors are those of the parser and of the data module.
    """
    # Imported here: they load torch, which nothing else in a comparison needs.
    from jsonargparse import ArgumentParser

    from datamodules.ferplus.datamodule import FERPlusDataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FERPlusDataModule, "data", required=True)
    data = parser.instantiate(parser.parse_object({"data": run.config["data"]})).data
    images: np.ndarray = data.faces(split, names)
    return images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)


def choose_faces(predictions: Sequence[Predictions], rule: Rule, count: int) -> list[int]:
    """Choose faces in turn: one that one arm alone gets right (per arm), one that all get right, one that none does.

    Within a kind, the class shown least comes first, then a fixed random order: the choice is reproducible and not one
    of looks. A face without a label under the rule is not shown. The row numbers are in the order of the kinds.
    """
    labels = predictions[0].labels[rule]
    right = np.stack([p.right(rule) for p in predictions])
    votes = right.sum(axis=0)
    order = np.random.default_rng(0).permutation(len(labels))
    kinds = [*(right & (votes == 1)), right.all(axis=0) & (votes > 1), votes == 0]
    pools = [order[(kind & (labels >= 0))[order]].tolist() for kind in kinds]
    chosen: list[tuple[int, int]] = []
    shown: Counter[Any] = Counter()
    turns = itertools.cycle(enumerate(pools))
    while len(chosen) < count and any(pools):
        kind, pool = next(turns)
        if pool:
            row = min(pool, key=lambda row: shown[labels[row]])  # the first of the rarest class
            pool.remove(row)
            chosen.append((kind, row))
            shown[labels[row]] += 1
    return [row for _, row in sorted(chosen, key=lambda choice: choice[0])]


def draw_faces(
    arms: Arms,
    split: Split,
    rule: Rule,
    data: str,
    load: Callable[[Run, Split, list[str]], np.ndarray],
) -> Figure:
    """Draw figure 1: the same faces upscaled by each arm, side by side, with each arm's answer.

    Of each arm, the run with the smallest seed that was tested on `split` is shown.

    Raises:
        ValueError: The faces cannot be loaded, or none has a label.
    """
    runs = [next(run for run in members if split in run.tested) for members in arms.values()]
    predictions = [run.tested[split] for run in runs]
    per_row = max(1, 6 // len(runs))
    rows = choose_faces(predictions, rule, per_row * math.ceil(_LEAST_FACES / per_row))
    if not rows:
        raise ValueError(f"{runs[0].folder}: no image of split {split} has a label under the {rule} rule")
    images = [load(run, split, [predictions[0].images[row][0] for row in rows]) for run in runs]

    columns, lines = min(per_row, len(rows)), math.ceil(len(rows) / per_row)
    width, height = max(columns * (2.05 * len(runs) + 0.15), 8.0), 2.75 * lines + 0.75
    figure = Figure(figsize=(width, height), layout="constrained")
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
        f"The same faces upscaled by each arm: {data}, {SPLIT_TITLES[split]} split, seeds: {seeds}",
        f"{len(rows)} of n = {n:,} images ({rule} rule), chosen evenly over outcomes, not in proportion",
    )
    return figure


def _annotate(axes: Axes, arm: str, probabilities: np.ndarray, truth: int) -> None:
    answer = int(probabilities.argmax())
    right = "\N{CHECK MARK}", "#0072B2", "-"
    mark, colour, style = right if answer == truth else ("\N{BALLOT X}", "#B24700", "--")
    axes.set(xticks=[], yticks=[])
    axes.set_title(arm, fontsize=9, pad=3)
    axes.set_xlabel(f"{mark} {CLASSES[answer]} {probabilities[answer]:.2f}", fontsize=9, color=colour, labelpad=3)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1.5, linestyle=style)


def draw_curves(arms: Arms, data: str, counts: dict[Split, int]) -> Figure:
    """Draw figure 2: accuracy and loss against epoch, training and validation, all arms.

    Several runs of an arm are thin lines with their mean, over the epochs that all of them reached. `counts` are the
    images per tested split, for the title.
    """
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    styled = zip(arms.items(), itertools.cycle(ARM_STYLES), strict=False)
    for split, ((arm, runs), (colour, marker)) in itertools.product(_DRAWN_SPLITS, styled):
        style, filling = ("--", "white") if split == "train" else ("-", colour)  # a single epoch has no line style
        name = f"{arm}, {SPLIT_TITLES[split]}" + (f", mean of {len(runs)}" if len(runs) > 1 else "")
        for panel, quantity, scale in ((accuracy, "acc", 100.0), (loss, "loss", 1.0)):
            curves = [run.curves[f"{split}/{quantity}"] for run in runs]
            epochs = sorted(set(curves[0]).intersection(*curves[1:]))
            values = scale * np.array([[curve[epoch] for curve in curves] for epoch in epochs])
            mean, shown = values.mean(axis=1), marker if len(epochs) < 30 else ""
            if len(runs) > 1:
                panel.plot(epochs, values, style, color=colour, alpha=0.35, lw=0.8)
            label = f"{name} (best accuracy {mean.max():.2f})" if panel is accuracy else name
            panel.plot(epochs, mean, style, color=colour, lw=1.8, marker=shown, ms=4, mfc=filling, label=label)
    for panel, name in ((accuracy, "accuracy (%)"), (loss, "loss")):
        panel.set(xlabel="epoch", ylabel=name)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    # Below the panels, where it hides no curve: training on the left, validation on the right.
    handles, _ = accuracy.get_legend_handles_labels()
    figure.legend(handles=handles, ncols=2, loc="outside lower center", frameon=False, handlelength=3.5, fontsize=9)
    images = [f"{SPLIT_TITLES[split]} n = {counts[split]:,}; " for split in _DRAWN_SPLITS if split in counts]
    seeds = "; ".join(f"{arm} {', '.join(str(run.seed) for run in runs)}" for arm, runs in arms.items())
    _title(figure, f"Accuracy and loss against epoch: {data}", f"{''.join(images)}seeds: {seeds}")
    return figure


def png(figure: Figure) -> bytes:
    """Return the figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")  # "tight" makes room for legends of long names
    return buffer.getvalue()


def _title(figure: Figure, *lines: str) -> None:
    width = int(11 * figure.get_figwidth())  # characters of this size
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in lines), fontsize=12)
