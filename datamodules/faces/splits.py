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
    """Choose the faces of a fraction (0 to 1) of the photographs, for validation; bool N.

    A photograph is held out or not by a hash of its name: whatever the seed, and whichever others are there.
    """
    hashes = [hashlib.sha256(photograph(name).encode()).digest()[:8] for name in names]
    return np.array([int.from_bytes(value, "big") < fraction * 2**64 for value in hashes])


def refuse_shared(training: FaceSet, validation: FaceSet) -> None:
    """Refuse a photograph's name or a face's exact pixels that occur in both."""
    photographs = [[photograph(name) for name in faces.names] for faces in (training, validation)]
    digests = [training.digests, validation.digests]
    for what, (trained, validated) in (("photograph", photographs), ("pixels", digests)):
        names = dict(zip(trained, training.names, strict=True))
        shared = [(name, names[key]) for name, key in zip(validation.names, validated, strict=True) if key in names]
        if shared:
            raise ValueError(
                f"{len(shared)} validation faces are of the same {what} as a training face, for example"
                f" {shared[0][0]!r} and, in the training set, {shared[0][1]!r}; remove them from one of the folders, or"
                " rename faces that only happen to have the same name (without a trailing _1 to _99)"
            )
