"""The command `curves`."""

import argparse
from pathlib import Path

from commands.console import refuse
from comparison.generator_curves import PANELS, draw, read_curves
from run_state.folder import find_run, read_record


def curves(args: list[str] | None = None) -> Path:
    """Parse the command line, draw.

    Returns:
        The figure's file.
    """
    parser = argparse.ArgumentParser(
        prog="superfer curves", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of generators")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args(args)
    try:
        folders = [find_run(run) for run in options.runs]
        names = [str(read_record(folder).get("experiment")) for folder in folders]
        curves = {folder: read_curves(folder) for folder in folders}
        for folder in folders:
            if not any(name in curves[folder] for panel in PANELS.values() for name in panel if name):
                raise ValueError(f"{folder} has nothing to draw: no validation, and no loss of a generator was logged")
        runs = {
            name if names.count(name) == 1 else f"{name} {folder.name}": curves[folder]
            for name, folder in zip(names, folders, strict=True)
        }
        draw(runs).savefig(options.out, dpi=100)
    except (ValueError, OSError) as error:
        refuse(error)
    out: Path = options.out
    return out
