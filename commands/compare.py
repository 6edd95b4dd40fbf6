"""Finished runs -> the paper's table with intervals, the difference of the arms with a verdict, and both figures.

    superfer compare runs/bilinear/RUN runs/dic/RUN [--rule majority|argmax] [--output results]

Accuracies are recomputed from ``predictions_{split}.csv``. Several runs of one arm are its seeds. Everything is
computed before the first file is written; ``table.md``, ``comparison.json``, ``figure1.png`` and ``figure2.png`` are
written beside their place and renamed. Exit code 0, or 2 with one message on stderr.
"""

import argparse
import sys
from pathlib import Path

from comparison.reading import (
    RULES,
    ComparisonError,
)
from comparison.report import compare_runs, write_files


def compare(args: list[str] | None = None) -> int:
    """Runs the command; returns the exit code (argparse itself exits with 2 on a wrong command line)."""
    parser = argparse.ArgumentParser(
        prog="superfer compare", description="Compare finished, tested runs arm by arm.", allow_abbrev=False
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder: runs/<experiment>/<time>_s<seed>"
    )
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--rule", choices=RULES, default="majority", help="which labels count; default: majority")
    parser.add_argument("--no-faces", action="store_true", help="leave out figure1.png, which needs the data")
    options = parser.parse_args(args)
    try:
        files = compare_runs(options.runs, options.rule, faces=not options.no_faces)
        written = write_files(options.output, files)
    except ComparisonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(files["table.md"].decode())
    print("\n".join(f"written: {path}" for path in written))
    return 0
