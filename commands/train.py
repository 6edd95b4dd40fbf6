"""The command `train`."""

from contextlib import ExitStack
from pathlib import Path

from commands.cli import _arguments, _parse
from commands.console import finishing, refuse, take_option
from run_state.folder import NEWEST_FIRST, find_checkpoint, find_run, held, share_with_children
from run_state.metrics_csv import forget_beyond
from storage.atomic import remove_leftovers


def train(args: list[str] | None = None) -> Path:
    """Trains what the configuration describes; ``--resume RUN`` continues a run in its folder.

    ``--resume auto`` continues the newest run of the configuration, or starts the first.

    Args:
        args: Command line; None takes ``sys.argv``.

    Returns:
        The run folder.
    """
    resumed, arguments = take_option(_arguments(args), "--resume")
    allowed, arguments = take_option(arguments, "--allow_change")
    if allowed and resumed is None:
        refuse("--allow_change is of use with --resume only")
    names = tuple(name.strip() for name in (allowed or "").split(",") if name.strip())
    run, more = None, {"allow_change": names, "find_run": resumed == "auto"}
    if resumed not in (None, "auto"):
        try:
            run = find_run(str(resumed))
            if not Path(str(resumed)).is_dir():
                raise FileNotFoundError(
                    f"--resume {resumed}: name the run folder, {run}; its newest checkpoint is taken"
                )
            find_checkpoint(run, NEWEST_FIRST)  # a run without any is named here, before its configuration is parsed
        except FileNotFoundError as error:
            refuse(error)
        arguments = ["--config", str(run / "config.yaml"), *arguments]
    cli = _parse(arguments, "train", run, **more)
    folder = Path(cli.trainer.default_root_dir)
    with ExitStack() as around:
        if cli.trainer.is_global_zero:
            try:
                around.enter_context(held(folder))
                remove_leftovers(folder / "checkpoints", older_than=0)
                if cli.checkpoint is not None:
                    forget_beyond(folder, cli.checkpoint)
            except (ValueError, OSError) as error:
                share_with_children(None)
                refuse(error)
        around.enter_context(finishing(cli.trainer))
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.checkpoint, weights_only=True)
    return folder
