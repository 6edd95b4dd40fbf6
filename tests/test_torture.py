"""The short version of `make torture`: real processes, real SIGKILL."""

from pathlib import Path

import pytest

from tests.torture import cache_fill, folder_of_images, torture, training, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torture")
    write_data(folder)
    return folder


def test_killed_training(data: Path, tmp_path: Path) -> None:
    """Of the four trainings the one with two optimisers, averaged weights and manual optimisation."""
    assert torture(training("dicgan", data), kills=1, seed=0, folder=tmp_path) == 1


def test_killed_cache_fill(data: Path, tmp_path: Path) -> None:
    assert torture(cache_fill(data), kills=1, seed=0, folder=tmp_path) == 1


def test_killed_upscaling_of_a_folder(data: Path, tmp_path: Path) -> None:
    assert torture(folder_of_images(data), kills=1, seed=0, folder=tmp_path) == 1
