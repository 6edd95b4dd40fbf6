"""Small FER+ data sets."""

from pathlib import Path

import pytest

from tests.datamodules.ferplus.ferplus_writers import MIXED, Sample, face, votes, write_folders


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return write_folders(tmp_path, MIXED)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 different images of each split, which lie in three blocks of 128."""
    samples = [
        Sample(usage, f"fer{split}{number:06d}.png", votes(fear=10), face(1000 * split + number))
        for split, usage in enumerate(("Training", "PublicTest", "PrivateTest"))
        for number in range(100)
    ]
    return write_folders(tmp_path_factory.mktemp("blocks"), samples)
