"""Train what the configurations describe, or resume a run. `run_state` tells what happens in which order, and why."""

import faulthandler
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from commands.cli import SuperFERCLI
from commands.ending import Parser, finishing, orderly, refusals, refuse
from commands.libraries import quieten
from run_state.checkpoints import newest_intact
from run_state.folder import NEWEST_FIRST, can_go_on, find_checkpoint, find_run, lock, newest_run, only_auto
from run_state.identity import detach_copy, read_record
from run_state.may_differ import refuse_changes
from run_state.metrics_csv import cut_back
from storage.atomic import remove_leftovers
from storage.reading import read_mapping


@orderly()
def train(args: Sequence[str] | None = None) -> Path:
    """Train what the configurations describe, or with `--resume` go on with a run; return the run folder."""
    quieten()
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)  # kill -USR2 PID shows where a rank hangs
    options, arguments = _parse(args)
    leads = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # of the processes that share the run, the one that writes
    with ExitStack() as stack:
        with refusals():
            run = _named_run(options.resume)
            cli = SuperFERCLI("train", arguments, read_mapping(run / "config.yaml") if run else None)
            if options.resume == "auto":
                if leads:
                    stack.enter_context(only_auto(cli.settings))
                run, notes = newest_run(cli.settings, options.allow_change)
                if leads:
                    print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr, flush=True)
                    print(f"resuming {run}" if run else "no run to resume; starting one", flush=True)
            if run and leads:
                stack.enter_context(lock(run))  # first: nobody else may change what is read from here on
                remove_leftovers(run / "checkpoints", older_than=0)
                detach_copy(run)
            checkpoint = newest_intact(run) if run else None
            if run:
                if leads and not checkpoint:
                    print(f"{run} has no checkpoint: it begins again", flush=True)
                before = checkpoint.settings if checkpoint else read_mapping(run / "config.yaml")
                refuse_changes(run, before, cli.settings, "resume", options.allow_change)
            trainer = cli.build(run, checkpoint)
            folder = Path(trainer.default_root_dir)
            if run and leads:
                cut_back(folder / "metrics.csv", checkpoint.global_step if checkpoint else 0)
            elif leads:
                stack.enter_context(lock(folder))
        stack.enter_context(finishing(trainer))
        path = checkpoint.path if checkpoint else None
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
    return folder


def _parse(args: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    """Options that are about the run and not about its configuration, and the arguments that are left."""
    parser = Parser(add_help=False)
    parser.add_argument("--resume")
    parser.add_argument("--allow_change", default="")
    options, arguments = parser.parse_known_args(args)
    options.allow_change = [name.strip() for name in options.allow_change.split(",") if name.strip()]
    if options.allow_change and options.resume is None:
        refuse("--allow_change needs --resume")
    if options.resume == "auto" and not any(word.startswith(("--config", "-c")) for word in arguments):
        refuse("--config is missing: --resume auto resumes the newest run of a configuration")
    return options, arguments


def _named_run(resume: str | None) -> Path | None:
    """The run folder that `--resume` names, or None; its checkpoints must be there."""
    if resume in (None, "auto"):
        return None
    run = find_run(str(resume))
    if not Path(str(resume)).is_dir():
        raise FileNotFoundError(f"--resume {resume}: name the run folder, {run}; its newest checkpoint is taken")
    if not can_go_on(run, read_record(run)):
        find_checkpoint(run, NEWEST_FIRST)  # raises: says where it was looked for
    return run
