"""Normalised mean error of facial landmarks.

The normaliser is the distance between the outer corners of the eyes, points 36 and 45 (zero-based) of the 68 iBUG
points, as in the 300-W challenge. The published DIC code divides by the distance of points 37 and 46 instead, which
makes its figures about a fifth larger; the two must not be put in one table.

Source: Sagonas et al., 300 Faces in-the-Wild Challenge: The First Facial Landmark Localization Challenge, ICCVW 2013.
"""

from torch import Tensor


def nme_interocular(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean distance between predicted and true landmarks of each face, over the true inter-ocular distance.

    Float B,68,2 twice, in one unit -> float B, a fraction (0.05 is "5 %").

    Raises:
        ValueError: shapes differ, are not B,68,2, or the outer eye corners of a face coincide.
    """
    if prediction.shape != target.shape or target.ndim != 3 or target.shape[1:] != (68, 2):
        raise ValueError(
            f"landmarks have shapes {tuple(prediction.shape)} and {tuple(target.shape)}, expected (batch, 68, 2) twice"
        )
    interocular = (target[:, 36] - target[:, 45]).norm(dim=-1)
    if (interocular == 0).any():
        bad = int((interocular == 0).nonzero()[0])
        raise ValueError(f"face {bad} of the batch: outer eye corners (points 36 and 45) coincide, NME is undefined")
    return (prediction - target).norm(dim=-1).mean(dim=-1) / interocular
