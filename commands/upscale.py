"""The command `upscale`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from commands import upscale_folder
from commands.cli import SuperFERCLI
from commands.console import keep_freed_memory, quieten, refusals, refuse
from datamodules.upscalers import UpscalerError
from lightning_modules.upscale_only import UpscaleOnly


def upscale(args: Sequence[str] | None = None) -> Path | None:
    """Enlarges the data set of a classifier configuration into its cache, or with ``--images`` a folder of images.

    Args:
        args: Command line; None takes ``sys.argv``.

    Returns:
        The folder of the cache or of the enlarged images, or None where the upscaler needs no cache.

    Raises:
        SystemExit: With code 1, if images of the folder had to be skipped.
    """
    quieten()
    arguments = list(sys.argv[1:] if args is None else args)
    if any(arg.split("=")[0] in upscale_folder.OPTIONS for arg in arguments):
        keep_freed_memory()
        with refusals():
            return upscale_folder.main(arguments)
    with refusals():
        cli = SuperFERCLI("upscale", arguments)
        cli.instantiate()
        cli.datamodule.check("upscale")
        trainer = cli.instantiate_trainer(logger=False, callbacks=[])
        cli.datamodule.check_device(trainer.strategy.root_device)
    try:
        trainer.predict(UpscaleOnly(), datamodule=cli.datamodule)
    except UpscalerError as error:
        refuse(error)
    folder = cli.datamodule.cache_folder
    if trainer.is_global_zero:
        print(f"enlarged images: {folder}" if folder else f"{cli.datamodule.upscaler.name} needs no cache")
    return folder
