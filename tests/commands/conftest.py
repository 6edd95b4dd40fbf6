"""A generator, and a folder of images for it."""

from pathlib import Path

import pytest

from tests.tiny_runs import write_generator


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_generator(tmp_path_factory.mktemp("generator") / "dic.ckpt")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An empty input folder."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in"
