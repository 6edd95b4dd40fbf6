"""Classes and splits of FER+, and how the ten vote counts of an image become its training target.

Barsoum et al., "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution",
ICMI 2016 (arXiv 1608.01041), section 3; single votes and ties are treated as in the reference label files.
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
    """Keep the emotions that cover 75 % of all votes, with ties; zero where that takes more than three."""
    kept, last = np.zeros_like(votes), votes.max()
    for index in np.argsort(-votes, kind="stable"):
        enough = kept.sum() >= 0.75 * votes.sum() or np.count_nonzero(kept) >= 3
        if index >= _UNKNOWN or (enough and votes[index] < last):
            break
        kept[index] = last = votes[index]
    return kept if np.count_nonzero(kept) <= 3 else np.zeros_like(votes)


def _target(votes: np.ndarray, mode: str) -> np.ndarray:
    """Return the target (8,) of one row of ten votes; zero where the mode drops the row."""
    votes = np.where(votes > 1, votes, 0).astype(np.float64)  # a single vote counts as zero
    total = votes.sum()
    if mode == "majority":
        kept = np.where(votes > 0.5 * total, votes, 0)
    elif mode == "multi_target":
        kept = np.where(votes >= 0.3 * total, votes, 0)
    else:
        kept = _top_classes(votes)
    if kept.sum() <= 0.5 * total or kept.argmax() >= _UNKNOWN:
        return np.zeros(_UNKNOWN)
    kept = kept[:_UNKNOWN]
    return 0.999 * (kept > 0) + 0.001 if mode == "multi_target" else kept / kept.sum()


def process_votes(votes: np.ndarray, mode: LabelMode) -> tuple[np.ndarray, np.ndarray]:
    """Turn votes, integers N,10 in the order of `VOTE_COLUMNS`, into `kept`, bool N, and `targets`, float32 N,8.

    Rows of kept images sum to 1 (multi_target: each kept class 1, the others 0.001), rows of dropped images are zero.
    `probability` has the targets of `crossentropy`, from which training draws.
    """
    if mode not in LABEL_MODES:
        raise ValueError(f"label_mode is {mode!r}, expected one of {', '.join(LABEL_MODES)}")
    rows, inverse = np.unique(votes, axis=0, return_inverse=True)
    targets = np.array([_target(row, mode) for row in rows], dtype=np.float32).reshape(-1, _UNKNOWN)
    targets = targets[inverse.reshape(-1)]  # NumPy 2.0.0 returns N,1
    return np.any(targets, axis=1), targets


def argmax_labels(votes: np.ndarray) -> np.ndarray:
    """Return the most voted of the ten entries, int64 N, the first of equals; -1 where that is unknown or NF."""
    top = votes.argmax(axis=1)
    return np.where(top < _UNKNOWN, top, -1)
