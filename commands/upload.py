"""Send runs to W&B: what it does not have of their rows and pictures, and the figures of their tests.

    superfer upload RUN [RUN ...]

For runs that were trained offline or without network, or killed. W&B has every row once, however often this is called.
"""

import os
from collections.abc import Sequence

from commands.ending import Parser, fail, orderly, refusals
from run_state.folder import find_run
from run_state.wandb_run import WandbError, require_key, wandb_mode
from run_state.wandb_run import upload as send


@orderly()
def upload(args: Sequence[str] | None = None) -> None:
    """Parse the command line and send the runs; exit with code 1 if W&B has not got everything."""
    parser = Parser(prog="superfer upload", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs/<experiment>/<time>_s<seed>")
    options = parser.parse_args(args)
    with refusals():
        wandb_mode()  # refuses one that does not exist
        os.environ["WANDB_MODE"] = "online"  # also where trainings of this shell are offline
        runs = [find_run(name) for name in options.runs]
        require_key()
        problems = []
        for run in runs:
            try:
                send(run)
                print(f"uploaded to W&B: {run}", flush=True)
            except WandbError as error:
                problems.append(f"{run}: {error}")
    if problems:
        fail("; ".join(problems))
