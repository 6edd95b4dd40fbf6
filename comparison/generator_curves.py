"""Draw what generators reached during training (quality, landmark error, loss, discriminator), and name the best.

Against batches, from each run's `metrics.csv`. Validation values are points; those of single training batches are
averaged over a twentieth of the training.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from comparison.figures import ARM_COLOURS, ARM_MARKERS, new_figure
from comparison.reading import ComparisonError, read_info, read_metrics

Curve = tuple[np.ndarray, np.ndarray]  # batches, values

PANELS = {  # title: (drawn solid, drawn dashed)
    "PSNR on luma, dB (dashed: bicubic)": ("val/psnr_y", "val/psnr_y_bicubic"),
    "landmark error / inter-ocular distance": ("val/nme_interocular", None),
    "heatmap loss, training": ("train/g/heatmap", None),
    "discriminator output on real faces (dashed: generated)": ("train/d/logit_real", "train/d/logit_fake"),
}
BEST = {"val/psnr_y": 1, "val/ssim_y": 1, "val/nme_interocular": -1}  # 1: higher is better
_METRICS = [*BEST, *(name for names in PANELS.values() for name in names if name)]


def read_generators(folders: Sequence[Path]) -> dict[str, dict[str, Curve]]:
    """Return the curves of each run by its experiment, with the folder's name where several runs share one.

    Raises:
        ComparisonError: A run cannot be read, or has logged nothing that could be shown.
    """
    experiments = [str(read_info(folder).get("experiment")) for folder in folders]
    runs = {}
    for folder, experiment in zip(folders, experiments, strict=True):
        metrics = read_metrics(folder / "metrics.csv", _METRICS)
        if not metrics:
            raise ComparisonError(f"{folder / 'metrics.csv'} has no value of {', '.join(_METRICS)}: nothing to compare")
        name = experiment if experiments.count(experiment) == 1 else f"{experiment} {folder.resolve().name}"
        runs[name] = {
            metric: (np.array([step + 1 for _, step, _ in points]), np.array([value for *_, value in points]))
            for metric, points in metrics.items()
        }
    return runs


def best_and_last(runs: dict[str, dict[str, Curve]]) -> list[list[str]]:
    """Return a table, header first: the best and the last value of each validation metric, with the batch."""
    rows = [["run", "metric", "best", "at batch", "last", "at batch"]]
    for name, curves in runs.items():
        for metric in (metric for metric in BEST if metric in curves):
            batches, values = curves[metric]
            places = int(np.nan_to_num(BEST[metric] * values, nan=-np.inf).argmax()), -1
            rows.append([name, metric, *(text for i in places for text in (f"{values[i]:.4f}", f"{batches[i]:,}"))])
    return rows


def smooth(curve: Curve, parts: int = 20) -> Curve:
    """Average over equal numbers of neighbouring points, at most `parts` groups."""
    pieces = min(parts, len(curve[0]))
    batches, values = ([piece.mean() for piece in np.array_split(array, pieces)] for array in curve)
    return np.array(batches), np.array(values)


def draw_generators(runs: dict[str, dict[str, Curve]]) -> Figure:
    """Draw one panel per group of metrics, one colour per run."""
    figure = new_figure(10, 6.5)
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for number, (label, curves) in enumerate(runs.items()):
            _draw_run(axes, curves, names, number, label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("batches")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if names[0] == "train/g/heatmap":
            axes.set_yscale("log")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure


def _draw_run(axes: Axes, curves: dict[str, Curve], names: tuple[str, str | None], number: int, label: str) -> None:
    colour, marker = ARM_COLOURS[number % len(ARM_COLOURS)], ARM_MARKERS[number % len(ARM_MARKERS)]
    for name, style in zip(names, ("-", "--"), strict=True):
        if name in curves:
            validation = name.startswith("val/")
            batches, values = curves[name] if validation else smooth(curves[name])
            shown = marker if validation else ""
            axes.plot(batches, values, style, color=colour, marker=shown, label=label if style == "-" else None)
