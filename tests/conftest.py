"""What every test stands on: no network, few threads, and two tiny synthetic data sets made once per session."""

import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # before anything imports albumentations
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import pytest
import torch

from datamodules.synthetic import write_faces, write_ferplus

torch.set_num_threads(1)  # results differ in the last bits with the number of threads


@pytest.fixture(scope="session")
def tiny_ferplus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FER+ look-alike in the folder layout: 40 training, 24 validation and 24 test images. Read only, please."""
    root = tmp_path_factory.mktemp("tiny") / "ferplus"
    write_ferplus(root, {"train": 40, "val": 24, "test": 24}, seed=0)
    return root


@pytest.fixture(scope="session")
def tiny_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve synthetic faces of 128 pixels with 68 landmarks each. Read only, please."""
    root = tmp_path_factory.mktemp("tiny") / "faces"
    write_faces(root, count=12, size=128, seed=0)
    return root
