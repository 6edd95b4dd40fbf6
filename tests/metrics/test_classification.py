"""Figures of a tested split against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from metrics.classification import classification_report

CLASSES = tuple("abcdefgh")


def example() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 7, 300)  # class 7 never occurs, -1 is left out
    logits = rng.normal(size=(300, 8)) + 2 * np.eye(8)[labels] * (rng.random((300, 1)) < 0.7)
    exp = np.exp(logits)
    return exp / exp.sum(axis=1, keepdims=True), labels


def test_figures_equal_scikit_learn() -> None:
    probabilities, labels = example()
    report = classification_report(torch.from_numpy(probabilities), torch.from_numpy(labels), CLASSES)
    kept = labels >= 0
    y, p = labels[kept], probabilities[kept]
    predicted = p.argmax(axis=1)
    assert report["n"] == kept.sum()
    assert report["acc"] == pytest.approx(metrics.accuracy_score(y, predicted), abs=1e-6)
    assert report["loss"] == pytest.approx(metrics.log_loss(y, p, labels=range(8)), abs=1e-6)
    assert (np.array(report["confusion"]) == metrics.confusion_matrix(y, predicted, labels=range(8))).all()
    recall = metrics.recall_score(y, predicted, labels=range(8), average=None, zero_division=0)
    assert list(report["recall"].values()) == pytest.approx(recall, abs=1e-6) and tuple(report["recall"]) == CLASSES
    f1 = metrics.f1_score(y, predicted, labels=range(8), average="macro", zero_division=0)
    assert report["macro_f1"] == pytest.approx(f1, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    probabilities, labels = example()
    kept = labels >= 0
    confidence, right = probabilities[kept].max(axis=1), probabilities[kept].argmax(axis=1) == labels[kept]
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [abs(right[bins == b].sum() - confidence[bins == b].sum()) for b in range(15)]
    report = classification_report(torch.from_numpy(probabilities), torch.from_numpy(labels), CLASSES)
    assert report["ece"] == pytest.approx(sum(gaps) / kept.sum(), abs=1e-6)


def test_no_labelled_image() -> None:
    assert classification_report(torch.full((2, 8), 0.125), torch.tensor([-1, -1]), CLASSES) == {"n": 0}
