"""Keep training and validation apart.

**The photograph of a face** is its name without a trailing `_` and one or two digits: `100040721_1` and `100040721_2`
are two crops of the photograph `100040721`. Training and validation must not share one.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datamodules.faces.packed import FaceSet


def photograph(name: str) -> str:
    """Return the name of the photograph that a face was cut from."""
    return re.sub(r"_\d{1,2}$", "", name)


def hold_out(names: Sequence[str], fraction: float) -> NDArray[np.bool_]:
    """Choose the faces that are held out for validation: those of a fraction of the photographs.

    A photograph is held out or not by a hash of its name: whatever the seed, and whichever others are there.

    Args:
        names: of the faces; N.
        fraction: expected share of the photographs, between 0 and 1.

    Returns:
        bool N.
    """
    hashes = [hashlib.sha256(photograph(name).encode()).digest()[:8] for name in names]
    return np.array([int.from_bytes(value, "big") < fraction * 2**64 for value in hashes])


def refuse_shared(training: FaceSet, validation: FaceSet) -> None:
    """Refuse to validate with what was trained on.

    Raises:
        ValueError: a photograph's name or the same pixels occur in both; names an example.
    """
    photographs = [[photograph(name) for name in faces.names] for faces in (training, validation)]
    for what, (trained, validated) in (
        ("the same photograph", photographs),
        ("the same pixels", [training.digests, validation.digests]),
    ):
        trained_names = dict(zip(trained, training.names, strict=True))
        shared = [row for row, key in enumerate(validated) if key in trained_names]
        if shared:
            raise ValueError(
                f"{len(shared)} validation faces are of {what} as a training face, for example"
                f" {validation.names[shared[0]]!r} and, in the training set, {trained_names[validated[shared[0]]]!r};"
                " remove them from one of the folders, or rename faces that only happen to have the same name"
                " (the photograph's name is the face's without a trailing _1 to _99)"
            )
