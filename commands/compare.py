"""Compare tested classifiers, arm by arm.

    superfer compare runs/bilinear/RUN runs/dic/RUN [--margin POINTS] [--rule majority|argmax] [--output results]

Accuracies are recomputed from `predictions_{split}.csv`, several runs of one arm are its seeds, and `table.md` with the
verdict, `comparison.json`, `figure1.png` and `figure2.png` are written, once everything has worked.
"""

from argparse import ArgumentError, Namespace
from pathlib import Path

import numpy as np

from commands.ending import Parser, orderly, refusals, refuse
from commands.parser_words import tell
from comparison.figures import draw_curves, draw_faces, png, upscaled_faces
from comparison.reading import RULES, Run, Split, read_runs
from comparison.report import Report
from storage.atomic import write_atomically


def parse_options(args: list[str] | None) -> Namespace:
    """Parse the command line; exit with code 2 if it is wrong."""
    parser = Parser(prog="superfer compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs/<experiment>/<time>_s<seed>")
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--rule", choices=RULES, default="majority", help="which labels count; default: majority")
    help_margin = "largest difference in accuracy, in points, that does not matter; to be fixed before; default: 0.5"
    parser.add_argument("--margin", type=float, default=0.5, metavar="POINTS", help=help_margin)
    help_faces = "leave out figure1.png, which needs the data where the runs found it, and may fill the cache of an arm"
    parser.add_argument("--no-faces", action="store_true", help=help_faces)
    options: Namespace = parser.parse_args(args)
    if not 0 < options.margin < 100:
        refuse(f"--margin is {options.margin}, expected more than 0 and less than 100 points")
    return options


@orderly()
def compare(args: list[str] | None = None) -> None:
    """Parse the command line, compare, write the results."""
    options = parse_options(args)
    with refusals():
        runs = read_runs(options.runs)
        from comparison.recomputing import check_figures  # loads PyTorch: not before the runs are found to fit

        check_figures(runs)
        report = Report(runs, options.rule, options.margin / 100)
        files: dict[str, bytes | str] = {"comparison.json": report.json(), "table.md": report.markdown()}
        if report.shared_split and not options.no_faces:
            faces = draw_faces(report.arms, report.shared_split, options.rule, report.label, load_faces)
            files["figure1.png"] = png(faces)
        files["figure2.png"] = png(draw_curves(report.arms, report.label, report.counts))
        for name, content in files.items():
            write_atomically(options.output / name, content)
        if "figure1.png" not in files:
            (options.output / "figure1.png").unlink(missing_ok=True)  # that of an earlier comparison
    print(report.markdown())
    print("\n".join(f"written: {options.output / name}" for name in files))


def load_faces(run: Run, split: Split, names: list[str]) -> np.ndarray:
    """Return what `upscaled_faces` does, or say in a line why not, and what to do."""
    try:
        return upscaled_faces(run, split, names)
    except (ArgumentError, OSError, ValueError) as error:
        problem = f"could not load the upscaled faces of {run.folder}: {tell(str(error))}"
        raise ValueError(f"{problem}; --no-faces leaves figure1.png out") from error
