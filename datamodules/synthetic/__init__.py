"""Faces drawn for demonstrations and tests; every figure made from them says so."""

from pathlib import Path

SYNTHETIC_MARKER = "SYNTHETIC"  # a file of this name marks a folder of generated data


def is_synthetic(root: str | Path) -> bool:
    """Return whether the data in `root` were generated."""
    return any((folder / SYNTHETIC_MARKER).is_file() for folder in (Path(root), Path(root).resolve().parent))
