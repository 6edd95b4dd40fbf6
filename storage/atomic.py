"""Files and folders that appear whole or not at all."""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_LEFTOVER_AGE = 24 * 3600.0  # seconds after which no living process can still be writing a temporary file


def write_atomically(path: Path, data: bytes | memoryview | str, kept_as: Path | None = None) -> None:
    """Write a file under a temporary name beside it, flush it to the disk and rename it.

    The file that it replaces is then found under the name `kept_as`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        if kept_as and path.is_file():  # only now: it may be the only one that is intact
            _name_again(path, kept_as)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # of a full disk it names no file, of other faults the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _name_again(path: Path, name: Path) -> None:
    """Give a file a second name, which it keeps when the first is replaced."""
    link = _temporary(name)
    try:
        os.link(path, link)
    except OSError:  # a file system without links
        shutil.copyfile(path, link)
    link.replace(name)


def check_writable(folder: Path) -> None:
    """Raise OSError unless a file can be made in a folder."""
    probe = _temporary(folder / "probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"nothing can be written there ({error.strerror})", str(folder)) from error


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder beside `path`, then put it in its place.

    Of two processes that do so at once the later one wins; a reader that has the old files open keeps them.
    """
    path = path.resolve()  # a link stays a link to the new folder
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    new = _temporary(path)
    try:
        new.mkdir()
        write(new)
        while True:
            try:
                new.rename(path)
                return
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise  # other than that something is there
            with suppress(FileNotFoundError):  # another process has just moved it away
                old = path.rename(_temporary(path))
                _remove(old)
    except BaseException:
        _remove(new)
        raise


def remove_leftovers(folder: Path, older_than: float = _LEFTOVER_AGE) -> None:
    """Remove what killed processes left, if `older_than` seconds old (0 where nobody else can be writing)."""
    for path in folder.glob(".*.writing-*"):
        with suppress(OSError):  # another process has removed it, or we may not
            if time.time() - path.stat().st_mtime >= older_than:
                _remove(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.writing-{secrets.token_hex(6)}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
