"""Compare runs: tested classifiers arm by arm, or the training curves of generators.

    superfer compare runs/bilinear/RUN runs/dic/RUN [--rule majority|argmax] [--output results]

Classifiers: accuracies are recomputed from `predictions_{split}.csv`, several runs of one arm are its seeds, and
`table.md`, `comparison.json`, `figure1.png` and `figure2.png` are written. Generators: `curves.png` is written.
Nothing is written before everything has worked. Exit code 0, or 2 with one message on stderr.
"""

import argparse
import sys
from pathlib import Path

from commands.console import Parser
from comparison.figures import draw_curves, draw_faces, png
from comparison.generator_curves import best_and_last, draw_generators, read_generators
from comparison.reading import RULES, ComparisonError, are_generators, read_runs
from comparison.report import Report, markdown_table, write_files


def compare(args: list[str] | None = None) -> int:
    """Run the command and return its exit code; argparse itself exits with 2 on a wrong command line."""
    parser = Parser(
        prog="superfer compare",
        description="Compare tested classifiers arm by arm, or the training curves of generators.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder: runs/<experiment>/<time>_s<seed>"
    )
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--rule", choices=RULES, default="majority", help="which labels count; default: majority")
    parser.add_argument(
        "--no-faces",
        action="store_true",
        help="leave out figure1.png, which needs the data where the runs found it, and may fill the cache of an arm",
    )
    options = parser.parse_args(args)
    try:
        text, files = _compare_generators(options) if are_generators(options.runs) else _compare_arms(options)
        written = write_files(options.output, files)
    except (ComparisonError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(text)
    print("\n".join(f"written: {path}" for path in written))
    return 0


def _compare_generators(options: argparse.Namespace) -> tuple[str, dict[str, bytes | None]]:
    runs = read_generators(options.runs)
    table = "\n".join(markdown_table(best_and_last(runs)))
    return f"{table}\n", {"curves.png": png(draw_generators(runs))}


def _compare_arms(options: argparse.Namespace) -> tuple[str, dict[str, bytes | None]]:
    report = Report(read_runs(options.runs), options.rule)
    files: dict[str, bytes | None] = {"figure2.png": png(draw_curves(report.arms, report.label, report.counts))}
    files["figure1.png"] = None  # that of an earlier comparison
    if not options.no_faces and report.shared_split:
        files["figure1.png"] = png(draw_faces(report.arms, report.shared_split, options.rule, report.label))
    elif not options.no_faces:
        report.notes.append("figure1.png was not drawn: no split was tested in every arm.")
    files |= {"comparison.json": report.json(), "table.md": report.markdown()}
    return report.markdown().decode(), files
