"""Draw what generators reached during training, against batches, and name the best.

Validation values are points; those of single training batches are averaged over a twentieth of the training.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from comparison.figures import ARM_STYLES
from comparison.reading import read_metrics
from run_state.identity import read_record

Curve = tuple[np.ndarray, np.ndarray]  # batches, values

PANELS: dict[str, tuple[str, ...]] = {  # title: drawn solid, drawn dashed
    "PSNR on luma, dB (dashed: bicubic)": ("val/psnr_y", "val/psnr_y_bicubic"),
    "landmark error / inter-ocular distance": ("val/nme_interocular",),
    "heatmap loss, training": ("train/g/heatmap",),
    "discriminator output on real faces (dashed: generated)": ("train/d/logit_real", "train/d/logit_fake"),
}
BEST = {"val/psnr_y": 1, "val/ssim_y": 1, "val/nme_interocular": -1}  # 1: higher is better
_METRICS = [*BEST, *itertools.chain(*PANELS.values())]


def read_generators(folders: Sequence[Path]) -> dict[str, dict[str, Curve]]:
    """Return the curves of each run by its experiment, with the folder's name where several runs share one.

    Raises:
        ValueError: A run cannot be read, or has logged nothing that could be shown.
    """
    experiments = {folder: str(read_record(folder)["experiment"]) for folder in folders}
    runs = {}
    for folder, experiment in experiments.items():
        logged = read_metrics(folder / "metrics.csv", _METRICS)
        if not logged:
            raise ValueError(f"{folder / 'metrics.csv'} has no value of {', '.join(_METRICS)}: nothing to compare")
        alone = list(experiments.values()).count(experiment) == 1
        curves = {metric: np.array(points).T for metric, points in logged.items()}
        runs[experiment if alone else f"{experiment} {folder.resolve().name}"] = {
            metric: (steps.astype(int) + 1, values) for metric, (_, steps, values) in curves.items()
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


def smooth(curve: Curve) -> Curve:
    """Average over equal numbers of neighbouring points, at most twenty groups."""
    pieces = min(20, len(curve[0]))
    batches, values = (np.array([piece.mean() for piece in np.array_split(array, pieces)]) for array in curve)
    return batches, values


def draw_generators(runs: dict[str, dict[str, Curve]]) -> Figure:
    """Draw one panel per group of metrics, one colour per run."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for (label, curves), (colour, marker) in zip(runs.items(), itertools.cycle(ARM_STYLES), strict=False):
            for name, style in zip(names, ("-", "--"), strict=False):
                if name in curves:
                    validation = name.startswith("val/")
                    line = axes.plot(*(curves[name] if validation else smooth(curves[name])), style, color=colour)[0]
                    line.set(marker=marker if validation else "", label=label if style == "-" else None)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="batches", yscale="log" if names == ("train/g/heatmap",) else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure
