"""Files that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

SYNTHETIC_MARKER = "SYNTHETIC"  # a file of this name marks a folder of generated data


def is_synthetic(root: str | Path) -> bool:
    """Whether the data in ``root`` were generated; every figure made from them has to say so."""
    return any((folder / SYNTHETIC_MARKER).is_file() for folder in (Path(root), Path(root).resolve().parent))


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file under a temporary name beside it, flushes it to the disk and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Has ``write`` fill a new folder beside ``path``, then puts it in its place.

    Of two processes that do so at once the later one wins; a reader that has the old files open keeps them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        new.chmod(0o777 & ~_umask())
        write(new)
        while True:
            try:
                new.rename(path)
                return
            except OSError:
                if not path.is_dir():
                    raise
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
                try:
                    path.rename(old)  # onto an empty folder: allowed and atomic
                except FileNotFoundError:
                    pass  # another process has just moved it away
                shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
