"""Checkpoints that appear whole or not at all."""

import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from datamodules.files import write_atomically

PREVIOUS = {"latest.ckpt": "previous.ckpt"}  # kept in case that the newer one is damaged later


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, renames; of ``latest.ckpt`` the one before it stays as ``previous.ckpt``.

    Lightning's own writes into the system's folder for temporary files and moves the result, which between two file
    systems is a copy that can be interrupted.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises:
        OSError: It cannot be written, for instance on a full disk; earlier checkpoints are as they were.
        """
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.writing-new")
        try:
            write_atomically(new, buffer.getbuffer())  # first: what it replaces may be the only one that is whole
            if path.name in PREVIOUS and path.is_file():
                _keep(path, path.with_name(PREVIOUS[path.name]))
            new.replace(path)
        except OSError as error:
            new.unlink(missing_ok=True)
            size = f"{len(buffer.getbuffer()) / 1e6:.0f} MB"
            reason = f"checkpoint of {size} cannot be written ({error.strerror}); the earlier ones are whole"
            raise OSError(error.errno, f"{reason}: make room and continue with --resume", str(path)) from error


def _keep(path: Path, name: Path) -> None:
    """Gives a file a second name, which it keeps when the first is replaced."""
    link = name.with_name(f".{name.name}.writing-link")
    link.unlink(missing_ok=True)
    try:
        try:
            os.link(path, link)
        except OSError:  # a file system without links
            shutil.copyfile(path, link)
        link.replace(name)
    finally:
        link.unlink(missing_ok=True)
