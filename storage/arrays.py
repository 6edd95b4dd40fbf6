"""Arrays in `.npy` files, read from disk as needed."""

import stat
from pathlib import Path

import numpy as np


def map_array(path: Path) -> np.ndarray:
    """Map the array of a `.npy` file into memory, read only.

    Raises:
        Exception: The file is missing, no regular file, or damaged, which makes numpy raise almost anything.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would be waited for
        raise ValueError(f"{path} is not a regular file")
    return np.lib.format.open_memmap(path, mode="r")
