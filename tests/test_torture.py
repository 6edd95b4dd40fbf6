"""The short version of `make torture`: real processes, real SIGKILL."""

from pathlib import Path

from tests.torture import torture


def test_killed_training(tiny_ferplus: Path, tiny_faces: Path, tmp_path: Path) -> None:
    """Of the four trainings the one with two optimisers, averaged weights and manual optimisation."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ferplus").symlink_to(tiny_ferplus)
    (tmp_path / "data" / "faces").symlink_to(tiny_faces)
    assert torture("dicgan", kills=1, seed=0, data=tmp_path / "data", folder=tmp_path / "dicgan") == 1
