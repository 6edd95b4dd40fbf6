"""Run all trainings of an experiment that are not done yet, test them, and compare the arms.

    superfer experiment configs/experiments/NAME.yaml [--slots N] [--output results/NAME]

`commands/cells.py` describes the file. Each cell (an arm with a seed) is trained and tested by the commands that one
would type, N cells at a time. What is done is skipped, and what was interrupted is resumed: after any failure, give the
same command again.
"""

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from commands.cells import read_experiment
from commands.compare import compare
from commands.compare import parse_options as parse_compare
from commands.ending import Parser, fail, orderly, refusals
from commands.libraries import quieten
from commands.runs import span
from commands.slots import Runner, share_out
from run_state.folder import lock
from run_state.wandb_run import wandb_mode


@orderly()
def experiment(args: Sequence[str] | None = None) -> None:
    """Run what is missing of an experiment and compare its arms; exit with code 1 if a cell has failed."""
    parser = Parser(prog="superfer experiment", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="configs/experiments/NAME.yaml")
    slots_help = "cells at a time, which share out the GPUs and cores; default: one for each GPU, or one"
    parser.add_argument("--slots", type=int, metavar="N", help=slots_help)
    output_help = "for the comparison, and for what the cells print; default: results/NAME"
    parser.add_argument("--output", type=Path, metavar="DIR", help=output_help)
    options = parser.parse_args(args)
    quieten()
    start = time.monotonic()
    with ExitStack() as stack:
        with refusals():
            asked = read_experiment(options.file)
            parse_compare(["RUN", *asked.compare])
            slots = share_out(options.slots)
            asked.check()
            mode = wandb_mode()
            results = options.output or Path("results", asked.name)
            (results / "logs").mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(results))
            runner = Runner(asked.all_cells, slots, results / "logs")
        print(f"{options.file}: {len(asked.all_cells)} cells, {len(slots)} at a time", flush=True)
        runner.print_plan()
        runner.run()
        if runner.failed:
            names = "; ".join(cell.name for cell in runner.failed)
            fail(f"{len(runner.failed)} of {len(asked.all_cells)} cells failed: {names}; repeat the command to retry")
        runs = [str(cell.run()) for cell in asked.cells]
        if runs:
            compare([*runs, "--output", str(results), *asked.compare])
    print(f"all cells are done; this took {span(time.monotonic() - start)}")
    if mode == "offline":
        everything = shlex.join(str(cell.run()) for cell in asked.all_cells)
        print(f"to upload to W&B: superfer upload {everything}", flush=True)
