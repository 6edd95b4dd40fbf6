"""Draws what generator runs reached while they were trained: quality, landmark error, loss, and the discriminator.

    superfer curves RUN [RUN ...] --out FILE.png

Against batches, from each run's `metrics.csv`. Figures of validation are points; those of single training batches are
averaged over a twentieth of the training.
"""

import csv
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from comparison.figures import ARM_COLOURS, ARM_MARKERS

Curve = tuple[np.ndarray, np.ndarray]  # batches, values

PANELS = {  # title: (what is drawn in full, what is drawn dashed)
    "PSNR on luma, dB (dashed: bicubic)": ("val/psnr_y", "val/psnr_y_bicubic"),
    "landmark error / inter-ocular distance": ("val/nme_interocular", None),
    "heatmap loss, training": ("train/g/heatmap", None),
    "discriminator's output on real faces (dashed: generated)": ("train/d/logit_real", "train/d/logit_fake"),
}


def read_curves(run: Path) -> dict[str, Curve]:
    """Every metric of a run that was logged at least once.

    Raises:
        ValueError: the run has no `metrics.csv`, or one that cannot be read.
    """
    path = run / "metrics.csv"
    curves: dict[str, list[tuple[int, float]]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step")) + 1
                for name, cell in row.items():
                    if cell:
                        curves.setdefault(name, []).append((step, float(cell)))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    return {
        name: (np.array([p[0] for p in points]), np.array([p[1] for p in points])) for name, points in curves.items()
    }


def smooth(curve: Curve, parts: int = 20) -> Curve:
    """Means over equal numbers of neighbouring points, at most `parts` of them."""
    steps, values = curve
    pieces = min(parts, len(steps))
    means = [[piece.mean() for piece in np.array_split(array, pieces)] for array in (steps, values)]
    return np.array(means[0]), np.array(means[1])


def draw(runs: dict[str, dict[str, Curve]]) -> Figure:
    """One panel for each kind of figure, one colour for each run.

    Args:
        runs: `read_curves` by the name that the legend shall show.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for place, (label, curves) in enumerate(runs.items()):
            _draw_run(
                axes, curves, names, ARM_COLOURS[place % len(ARM_COLOURS)], ARM_MARKERS[place % len(ARM_MARKERS)], label
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("batches")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if names[0] == "train/g/heatmap":
            axes.set_yscale("log")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure


def _draw_run(
    axes: Axes, curves: dict[str, Curve], names: tuple[str, str | None], colour: str, marker: str, label: str
) -> None:
    for name, style in zip(names, ("-", "--"), strict=True):
        if name in curves:
            validation = name.startswith("val/")
            steps, values = curves[name] if validation else smooth(curves[name])
            shown = marker if validation else ""
            axes.plot(steps, values, style, color=colour, marker=shown, label=label if style == "-" else None)
