"""Test a trained classifier on one split of its data, on one device."""

import sys
from collections.abc import Sequence
from pathlib import Path

from commands.cli import SuperFERCLI
from commands.ending import Parser, finishing, orderly, print_upload, refusals
from commands.libraries import quieten
from run_state.checkpoints import RunCheckpoint, read_own
from run_state.folder import find_checkpoint, find_run
from run_state.identity import read_record
from run_state.may_differ import refuse_changes
from run_state.wandb_run import WandbError, upload, wandb_mode
from storage.atomic import check_writable

_ONE_DEVICE = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")  # exact and simple


@orderly()
def test(args: Sequence[str] | None = None) -> Path:
    """Test a checkpoint on one split: `--ckpt_path RUN_OR_FILE [--split train|val|test]`, then any overrides.

    Return the run folder, which now holds `metrics_{split}.json` and `predictions_{split}.csv`.
    """
    quieten()
    parser = Parser(add_help=False)
    parser.add_argument("--ckpt_path")
    parser.add_argument("--split", default="test")
    options, arguments = parser.parse_known_args(args)
    with refusals():
        if options.ckpt_path is None and {"-h", "--help"} & set(arguments):
            SuperFERCLI("test", ["--help"])
        run, checkpoint = _find_tested(options.ckpt_path)
        config = ["--config", str(run / "config.yaml"), *_ONE_DEVICE, f"--data.test_split={options.split}"]
        cli = SuperFERCLI("test", [*config, *arguments])
        if cli.config.trainer.fast_dev_run or cli.config.trainer.limit_test_batches is not None:
            raise ValueError("trainer.limit_test_batches and fast_dev_run leave images out; a test needs all of them")
        refuse_changes(run, checkpoint.settings, cli.settings, "test")
        check_writable(run)  # now, not when the work is done
        mode = wandb_mode()
        trainer = cli.build(run, checkpoint)
    with finishing(trainer):
        trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint.path, weights_only=True)
    if mode == "online":
        try:
            upload(run)
        except (WandbError, ValueError) as error:  # the latter: it is being trained
            print(f"warning: {error}", file=sys.stderr, flush=True)
            mode = "offline"
    if mode == "offline":
        print_upload(run)
    return run


def _find_tested(path: str | None) -> tuple[Path, RunCheckpoint]:
    """Run folder and checkpoint that `--ckpt_path` means."""
    if path is None:
        raise FileNotFoundError("--ckpt_path is missing: expected a run folder or a checkpoint in one")
    run, checkpoint = find_run(path), find_checkpoint(path)
    if read_record(run)["arm"] is None:
        figures = "a generator's figures are in metrics.csv"
        raise FileNotFoundError(f"{run} is the run of a generator; only classifiers are tested ({figures})")
    if checkpoint.name != "best.ckpt" and Path(path).is_dir():
        print(f"warning: {run} has no best.ckpt; testing {checkpoint.name}", file=sys.stderr, flush=True)
    return run, read_own(checkpoint, run)  # a damaged file is named here, before anything starts
