"""Recognise errors that neither the input nor the program is to blame for: the machine has run out of something."""

import errno
import re

_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
# PyTorch and its libraries raise a RuntimeError instead.
_MEMORY = re.compile(
    "allocate memory|out of memory|bad_alloc|ALLOC_FAILED|could not create a primitive|killed by signal", re.IGNORECASE
)
_OTHER = re.compile("No space left|Too many open files|ancdata|can't start new thread")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory, of this machine or of a GPU, was too small."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))


def find_shortage(error: BaseException | None) -> BaseException | None:
    """Return the error that says that memory, room on a disk, open files or threads ran out: this or an earlier one."""
    while error:
        if (isinstance(error, OSError) and error.errno in _CODES) or is_out_of_memory(error):
            return error
        if isinstance(error, OSError | RuntimeError) and _OTHER.search(str(error)):
            return error
        error = error.__cause__ or error.__context__
    return None
