"""The command `upscale`."""

from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from commands import upscale_folder
from commands.cli import _arguments, _parse
from commands.console import keep_freed_memory, refuse
from datamodules.upscalers import UpscalerError
from lightning_modules.upscale_only import UpscaleOnly


def upscale(args: list[str] | None = None) -> Path | None:
    """Enlarges the data set of a classifier configuration into its cache, or with ``--images`` a folder of images.

    Args:
        args: Command line; None takes ``sys.argv``.

    Returns:
        The folder of the cache or of the enlarged images, or None where the upscaler needs no cache.

    Raises:
        SystemExit: With code 1, if images of the folder had to be skipped.
    """
    arguments = _arguments(args)
    if any(arg.split("=")[0] in upscale_folder.OPTIONS for arg in arguments):
        keep_freed_memory()
        try:
            return upscale_folder.main(arguments)
        except (ValueError, OSError, MisconfigurationException) as error:
            refuse(error)
    cli = _parse(arguments, "upscale")
    try:
        cli.trainer.predict(UpscaleOnly(), datamodule=cli.datamodule)
    except UpscalerError as error:
        refuse(error)
    folder = cli.datamodule.cache_folder
    if cli.trainer.is_global_zero:
        print(f"enlarged images: {folder}" if folder else f"{cli.datamodule.upscaler.name} needs no cache")
    return folder
