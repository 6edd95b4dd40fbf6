"""Pseudo-random weights that anybody can compute, so that golden outputs need no file of weights."""

import numpy as np


def hash_uniform(count: int, stream: int) -> np.ndarray:
    """Return `count` float64 numbers in [-1, 1): a 32-bit integer hash of the position."""
    low = np.uint64(0xFFFFFFFF)
    state = np.arange(count, dtype=np.uint64) * np.uint64(2654435761)
    state = (state + np.uint64((stream + 1) * 2246822519 % 2**32)) & low
    for _ in range(2):
        state = ((state ^ (state >> np.uint64(16))) * np.uint64(0x45D9F3B)) & low
    state ^= state >> np.uint64(16)
    return state / 2.0**31 - 1.0
