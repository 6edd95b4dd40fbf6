"""Send runs to W&B: what it does not have of their rows and pictures, and the figures of their tests.

    superfer upload RUN [RUN ...]

For runs that were trained offline or without network, or killed. W&B has every row once, however often this is called.
"""

import sys
from collections.abc import Sequence

from commands.console import Parser, refusals
from run_state.folder import find_run
from run_state.wandb_run import WandbError, require_key
from run_state.wandb_run import upload as send


def upload(args: Sequence[str] | None = None) -> int:
    """Parse the command line and send the runs; return the exit code, 1 if W&B has not got everything."""
    parser = Parser(prog="superfer upload", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs/<experiment>/<time>_s<seed>")
    options = parser.parse_args(args)
    with refusals():
        runs = [find_run(name) for name in options.runs]
        require_key()
        for run in runs:
            try:
                complete = send(run)
            except WandbError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            if not complete:
                print(f"error: W&B has not got all of {run} yet; give the command again", file=sys.stderr)
                return 1
            print(f"uploaded to W&B: {run}", flush=True)
    return 0
