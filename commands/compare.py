"""Compare runs: tested classifiers arm by arm, or the training curves of generators.

    superfer compare runs/bilinear/RUN runs/dic/RUN [--rule majority|argmax] [--output results]

Classifiers: accuracies are recomputed from `predictions_{split}.csv`, several runs of one arm are its seeds, and
`table.md`, `comparison.json`, `figure1.png` and `figure2.png` are written. Generators: `curves.png` is written.
Nothing is written before everything has worked.
"""

import argparse
from argparse import ArgumentError
from pathlib import Path

import numpy as np

from commands.ending import Parser, orderly, refusals
from commands.parser_words import tell
from comparison.figures import draw_curves, draw_faces, png, upscaled_faces
from comparison.generator_curves import best_and_last, draw_generators, read_generators
from comparison.reading import RULES, Run, Split, are_generators, read_runs
from comparison.report import Report, markdown_table
from storage.atomic import write_atomically


@orderly()
def compare(args: list[str] | None = None) -> None:
    """Parse the command line, compare, write the results."""
    parser = Parser(prog="superfer compare", description="Compare tested classifiers, or the curves of generators.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs/<experiment>/<time>_s<seed>")
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--rule", choices=RULES, default="majority", help="which labels count; default: majority")
    help_faces = "leave out figure1.png, which needs the data where the runs found it, and may fill the cache of an arm"
    parser.add_argument("--no-faces", action="store_true", help=help_faces)
    options = parser.parse_args(args)
    with refusals():
        text, files = _compare_generators(options) if are_generators(options.runs) else _compare_arms(options)
        for name, content in files.items():
            write_atomically(options.output / name, content)
        if "table.md" in files and "figure1.png" not in files:
            (options.output / "figure1.png").unlink(missing_ok=True)  # that of an earlier comparison
    print(text)
    print("\n".join(f"written: {options.output / name}" for name in files))


def _compare_generators(options: argparse.Namespace) -> tuple[str, dict[str, bytes | str]]:
    runs = read_generators(options.runs)
    return markdown_table(best_and_last(runs)) + "\n", {"curves.png": png(draw_generators(runs))}


def _compare_arms(options: argparse.Namespace) -> tuple[str, dict[str, bytes | str]]:
    runs = read_runs(options.runs)
    from comparison.recomputing import check_figures  # loads PyTorch: not before the runs are found to fit

    check_figures(runs)
    report = Report(runs, options.rule)
    files: dict[str, bytes | str] = {"comparison.json": report.json(), "table.md": report.markdown()}
    if report.shared_split and not options.no_faces:
        files["figure1.png"] = png(draw_faces(report.arms, report.shared_split, options.rule, report.label, load_faces))
    files["figure2.png"] = png(draw_curves(report.arms, report.label, report.counts))
    return report.markdown(), files


def load_faces(run: Run, split: Split, names: list[str]) -> np.ndarray:
    """Return what `upscaled_faces` does, or say in a line why not, and what to do."""
    try:
        return upscaled_faces(run, split, names)
    except (ArgumentError, OSError, ValueError) as error:
        problem = f"could not load the upscaled faces of {run.folder}: {tell(str(error))}"
        raise ValueError(f"{problem}; --no-faces leaves figure1.png out") from error
