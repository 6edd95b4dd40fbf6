"""Test a trained classifier on one split of its data, on one device."""

import sys
from collections.abc import Sequence
from pathlib import Path

from commands.cli import SuperFERCLI
from commands.ending import Parser, finishing, orderly, print_upload, refusals
from commands.libraries import quieten
from datamodules.labels import SPLITS
from run_state.checkpoints import RunCheckpoint, read_own
from run_state.folder import find_checkpoint, find_run
from run_state.identity import read_record
from run_state.may_differ import refuse_changes
from run_state.wandb_run import WandbError, upload, wandb_mode
from storage.atomic import check_writable

_ONE_DEVICE = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")  # exact and simple


@orderly()
def test(args: Sequence[str] | None = None) -> Path:
    """Test a checkpoint on one split, with the settings that it was trained with; return the run folder.

    It now holds `metrics_{split}.json` and `predictions_{split}.csv`.
    """
    quieten()
    parser = Parser(
        prog="superfer test",
        usage="%(prog)s --ckpt_path RUN_OR_CHECKPOINT [--split train|val|test] [--KEY VALUE ...]",
        description="Test a classifier on one split of its data, on one device, with the settings of its training; "
        "write metrics_SPLIT.json and predictions_SPLIT.csv into the run folder. Where and how it is tested may be "
        "overridden, for instance --data.root FOLDER, --data.batch_size 64 or --trainer.accelerator cpu.",
    )
    parser.add_argument("--ckpt_path", required=True, help="run folder (its best checkpoint), or a checkpoint in one")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    options, overrides = parser.parse_known_args(args)
    with refusals():
        run, checkpoint = _find_tested(options.ckpt_path)
        words = [*_ONE_DEVICE, *overrides, f"--data.test_split={options.split}"]
        cli = SuperFERCLI("test", words, checkpoint.settings)
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


def _find_tested(path: str) -> tuple[Path, RunCheckpoint]:
    """Run folder and checkpoint that `--ckpt_path` means."""
    run, checkpoint = find_run(path), find_checkpoint(path)
    if read_record(run)["arm"] is None:
        figures = "a generator's figures are in metrics.csv"
        raise FileNotFoundError(f"{run} is the run of a generator; only classifiers are tested ({figures})")
    if checkpoint.name != "best.ckpt" and Path(path).is_dir():
        print(f"warning: {run} has no best.ckpt; testing {checkpoint.name}", file=sys.stderr, flush=True)
    return run, read_own(checkpoint, run)  # a damaged file is named here, before anything starts
