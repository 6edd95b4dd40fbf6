"""metrics.csv has every row at once, and none twice after a resume."""

import csv
import io
from pathlib import Path

import pytest

from run_state.metrics_csv import MetricsCSV, cut_back


def content(folder: Path) -> str:
    """The file without its times, which are numbers."""
    rows = list(csv.DictReader(io.StringIO((folder / "metrics.csv").read_text())))
    assert all(float(row["time"]) > 1.7e9 for row in rows)
    lines = [
        [name for name in rows[0] if name != "time"],
        *([v for k, v in row.items() if k != "time"] for row in rows),
    ]
    return "\n".join(",".join(line) for line in lines)


def test_rows_are_written_at_once_and_columns_may_come_later(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"val/acc": 0.5, "epoch": 0}, step=3)
    assert content(tmp_path) == "step,epoch,val/acc\n3,0,0.5"
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=3)
    assert content(tmp_path) == "step,epoch,val/acc,train/loss\n3,0,0.5,\n3,0,,2.0"


def test_a_resumed_run_keeps_its_rows(tmp_path: Path) -> None:
    MetricsCSV(tmp_path).log_metrics({"val/acc": 0.5, "epoch": 0}, step=3)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("7,1,17")  # killed while writing
    resumed = MetricsCSV(tmp_path)
    resumed.log_metrics({"val/acc": 0.75, "epoch": 1}, step=7)
    resumed.log_metrics({"val/acc": 1.0, "epoch": 2}, step=11)
    assert content(tmp_path) == "step,epoch,val/acc\n3,0,0.5\n7,1,0.75\n11,2,1.0"


def test_what_was_logged_after_the_checkpoint_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    cut_back(path, 5)  # there is none yet
    assert not path.exists()
    rows = ["epoch,step,train/loss,lr", "0,3,1.5,", "0,4,1.25,0.1", "1,5,9,", "1,7,,0.2", "1,4"]
    path.write_text("\r\n".join(rows))
    cut_back(path, 5)
    assert path.read_text().split() == rows[:3]
    before = path.stat().st_mtime_ns
    cut_back(path, 5)
    assert path.stat().st_mtime_ns == before, "nothing to remove, nothing written"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"metrics\.csv cannot be read"):
        cut_back(path, 5)
