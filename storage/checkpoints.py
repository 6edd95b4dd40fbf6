"""Reading checkpoints safely, the authors' and our own.

Pickle can run code, so every file is read by PyTorch's restricted reader (`weights_only=True`), which admits tensors
and plain containers. The authors' DIC files also hold training records made of numpy scalars. Their two constructors
are admitted under numpy's names, but resolve to an inert stand-in: the records are dropped, not rebuilt.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

DIGEST = "superfer_sha256"  # of all else in a `.safetensors` file, in its metadata: the format has no checksums


class CheckpointError(ValueError):
    """A weights file that is unsafe, damaged or not of the network that was asked for."""


class _Ignored:
    """Stands for a numpy scalar or dtype, without what the file says of it."""

    def __init__(self, *args: object) -> None: ...
    def __setstate__(self, state: object) -> None: ...


_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # as written by numpy 1 and 2
_STAND_INS = [(_Ignored, name) for name in (*_SCALARS, "numpy.dtype")]


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Read a file of `torch.save` (either format), or a `.safetensors` file, without executing anything in it.

    Returns:
        The dictionary that was saved, tensors on the CPU, numpy scalars replaced by stand-ins. Of a `.safetensors`
        file, the tensors as `state_dict`, beside what its metadata holds.

    Raises:
        CheckpointError: the file is damaged, or holds anything but a dictionary of plain types.
    """
    path = Path(path)
    if not path.is_file():
        kind = "it is a folder" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"checkpoint {path}: {kind}")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if zipfile.is_zipfile(path):
            _check_zip(path)
        with torch.serialization.safe_globals(list(_STAND_INS)):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file makes the reader raise almost anything
        raise CheckpointError(_why_unreadable(path, error)) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(checkpoint).__name__}, expected a dictionary")
    return checkpoint


def _check_zip(path: Path) -> None:
    """Compare the checksums, at which torch does not look; refuse what is compressed, as torch does not."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise CheckpointError(f"checkpoint {path} is refused: it would become {size:,} bytes in memory")
        damaged = archive.testzip()
    if damaged:
        raise CheckpointError(f"checkpoint {path} is damaged: {damaged[:80]} has changed since it was written")


def _read_safetensors(path: Path) -> dict[str, object]:
    with safe_open(path, framework="pt") as file:
        texts = dict(file.metadata() or {})
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if texts.pop(DIGEST, None) not in (None, _digest(weights, texts)):
        raise CheckpointError(f"checkpoint {path} is damaged: its content has changed since it was written")
    return {name: json.loads(text) for name, text in texts.items() if name != "format"} | {"state_dict": weights}


def safetensors_bytes(weights: Mapping[str, Tensor], metadata: Mapping[str, object]) -> bytes:
    """Return the content of a `.safetensors` file that `read_checkpoint` reads back; `metadata` has JSON types."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    texts = {"format": "pt"} | {name: json.dumps(value) for name, value in metadata.items()}
    return save(tensors, texts | {DIGEST: _digest(tensors, texts)})


def _digest(weights: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """Hash the metadata, and the names, types, shapes and numbers of the weights."""
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, value in sorted(weights.items()):
        digest.update(repr((name, value.dtype, list(value.shape))).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _why_unreadable(path: Path, error: Exception) -> str:
    # PyTorch's own message advises weights_only=False, the one thing not to do with a file that fails here.
    refused = re.search(r"GLOBAL (\S{1,100})", str(error))
    if refused:
        return (
            f"checkpoint {path} is refused: loading it would call {refused.group(1)}, expected only tensors, plain "
            "containers and numpy scalars. Nothing in it was executed"
        )
    return (
        f"checkpoint {path} ({path.stat().st_size} bytes) cannot be read: it is no file of torch.save or safetensors, "
        "is damaged or incomplete, or holds more than tensors, plain containers and numpy scalars "
        f"({type(error).__name__})"
    )
