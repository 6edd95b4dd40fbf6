"""Two arms to compare."""

from pathlib import Path

import pytest

from tests.comparison.runs import BILINEAR, DIC, write_run


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write_run(tmp_path / "bilinear", "bilinear", 0, BILINEAR),
        write_run(tmp_path / "dic", "dic", 0, DIC),
    )
