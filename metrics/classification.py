"""All metrics of a tested split, from probabilities and labels."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_recall,
)


def classification_report(probabilities: Tensor, labels: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return accuracy and what lies behind it, over the images that have a label.

    Args:
        probabilities: Float N,C; rows sum to 1.
        labels: int64 N; -1 for images without a label, which are left out.
        classes: C names.

    Returns:
        `n`, `acc`, `macro_f1`, `ece` (expected calibration error, 15 bins), `loss` (mean negative log likelihood),
        `recall` by class name and `confusion` (rows: label, columns: prediction); shares in [0, 1], plain Python
        numbers. Without any image only `n`.
    """
    kept = labels >= 0
    probabilities, labels, count = probabilities[kept].double(), labels[kept], len(classes)
    if not len(labels):
        return {"n": 0}
    recall = multiclass_recall(probabilities, labels, count, average="none")
    return {
        "n": len(labels),
        "acc": multiclass_accuracy(probabilities, labels, count, average="micro").item(),
        "macro_f1": multiclass_f1_score(probabilities, labels, count, average="macro").item(),
        "ece": multiclass_calibration_error(probabilities, labels, count, n_bins=15).item(),
        "loss": F.nll_loss(probabilities.clamp(min=1e-12).log(), labels).item(),
        "recall": dict(zip(classes, recall.tolist(), strict=True)),
        "confusion": multiclass_confusion_matrix(probabilities, labels, count).tolist(),
    }
