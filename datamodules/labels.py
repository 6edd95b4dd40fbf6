"""Classes and splits of FER+, and how the ten vote counts of an image become its training target.

Barsoum et al., "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution",
ICMI 2016 (arXiv 1608.01041), section 3; the processing of single votes and ties follows the reference label files.
"""

from typing import Literal, get_args

import numpy as np

CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")

VOTE_COLUMNS = (*CLASSES, "unknown", "NF")  # NF: not a face

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)

SPLIT_TITLES: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}

LabelMode = Literal["majority", "crossentropy", "probability", "multi_target"]

LABEL_MODES: tuple[str, ...] = get_args(LabelMode)

_UNKNOWN = len(CLASSES)  # index of the first of the two entries that are not emotions


def _top_classes(votes: np.ndarray) -> np.ndarray:
    """Return the votes of the classes that cover 75 % of all votes; all zero where more than three would be needed."""
    total, left, taken = votes.sum(), votes.copy(), np.zeros_like(votes)
    covered, count, stopped = 0.0, 0, False
    while covered < 0.75 * total and count < 3 and not stopped:
        top = left.max()
        for index in np.flatnonzero(left == top):
            stopped = bool(index >= _UNKNOWN)
            if not (stopped and count):  # unknown and NF are dropped after an emotion
                taken[index] = top
                count += 1
            left[index] = 0
            covered += top
            if stopped:
                break
    return taken if taken.sum() > 0.5 * total and count <= 3 else np.zeros_like(votes)


def _target(votes: np.ndarray, mode: str) -> np.ndarray | None:
    """Return the target (8,) of one row of ten votes, or None where the mode drops the row."""
    votes = np.where(votes > 1, votes, 0).astype(np.float64)  # a single vote counts as zero
    total = votes.sum()
    if mode == "majority":
        kept = np.where(votes == votes.max(), votes, 0) if votes.max() > 0.5 * total else np.zeros(len(votes))
    elif mode == "multi_target":
        kept = np.where(votes >= 0.3 * total, votes, 0)
        kept = kept if kept.sum() > 0.5 * total else np.zeros(len(votes))
    else:
        kept = _top_classes(votes)
    if kept.max() == 0 or kept.argmax() >= _UNKNOWN:
        return None
    kept = kept[:_UNKNOWN]
    return 0.999 * (kept > 0) + 0.001 if mode == "multi_target" else kept / kept.sum()


def process_votes(votes: np.ndarray, mode: LabelMode) -> tuple[np.ndarray, np.ndarray]:
    """Turn votes into targets.

    Args:
        votes: Integers N,10 in the order of `VOTE_COLUMNS`.
        mode: How votes become targets; `probability` has the targets of `crossentropy`, from which training draws.

    Returns:
        `kept`, bool N, and `targets`, float32 N,8: rows of kept images sum to 1 (multi_target: each kept class 1, the
        others 0.001), rows of dropped images are zero.

    Raises:
        ValueError: The mode is unknown, or `votes` has another shape.
    """
    if mode not in LABEL_MODES:
        raise ValueError(f"label_mode is {mode!r}, expected one of {', '.join(LABEL_MODES)}")
    if votes.ndim != 2 or votes.shape[1] != len(VOTE_COLUMNS):
        raise ValueError(f"shape of votes is {votes.shape}, expected (N, {len(VOTE_COLUMNS)})")
    rows, inverse = np.unique(votes, axis=0, return_inverse=True)
    unique = [_target(row, mode) for row in rows]
    kept = np.array([target is not None for target in unique], dtype=bool)
    targets = np.array([np.zeros(_UNKNOWN) if target is None else target for target in unique], dtype=np.float32)
    inverse = inverse.reshape(-1)  # NumPy 2.0.0 returns N,1
    return kept[inverse], targets.reshape(-1, _UNKNOWN)[inverse]


def argmax_labels(votes: np.ndarray) -> np.ndarray:
    """Return the most voted of the ten entries, int64 N, the first of equals; -1 where that is unknown or NF."""
    top = votes.argmax(axis=1)
    return np.where(top < _UNKNOWN, top, -1)
