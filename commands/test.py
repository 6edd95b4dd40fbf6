"""The command `test`."""

from pathlib import Path

from commands.cli import _arguments, _parse
from commands.console import finishing, refuse, take_option
from run_state.folder import find_checkpoint, find_run, read_record
from storage.checkpoints import read_checkpoint


def _find_tested(path: str | None) -> tuple[Path, Path]:
    """Run folder and checkpoint that ``--ckpt_path`` means."""
    if path is None:
        raise FileNotFoundError("--ckpt_path is missing: a run folder or a checkpoint in one")
    run = find_run(path)
    checkpoint = find_checkpoint(path)
    if (run / "run.json").is_file() and read_record(run).get("arm") is None:
        raise FileNotFoundError(
            f"{run} is the run of a generator; test.py tests classifiers (a generator's figures are in metrics.csv)"
        )
    read_checkpoint(checkpoint)  # a damaged file is named here, before anything starts
    return run, checkpoint


def test(args: list[str] | None = None) -> Path:
    """Tests a checkpoint on one split: ``--ckpt_path RUN_OR_FILE [--split train|val|test]``, then any overrides.

    Args:
        args: Command line; None takes ``sys.argv``.

    Returns:
        The run folder, which now holds ``metrics_{split}.json`` and ``predictions_{split}.csv``.
    """
    path, arguments = take_option(_arguments(args), "--ckpt_path")
    split, arguments = take_option(arguments, "--split")
    if path is None and {"-h", "--help"} & set(arguments):
        _parse(["--help"], "test")
    try:
        run, checkpoint = _find_tested(path)
    except (FileNotFoundError, ValueError) as error:
        refuse(error)
    one_device = ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]  # exact and simple
    chosen = [f"--data.test_split={split or 'test'}", "--model.weights=none"]  # the checkpoint has all weights
    cli = _parse(["--config", str(run / "config.yaml"), *one_device, *chosen, *arguments], "test", run)
    with finishing(cli.trainer):
        cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    return run
