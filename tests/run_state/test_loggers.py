"""metrics.csv, and when W&B may go online."""

from pathlib import Path

import pytest

from run_state.metrics_csv import MetricsCSV
from run_state.wandb_run import wandb_mode


def test_rows_are_written_at_once_and_columns_may_come_later(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"val/acc": 0.5, "epoch": 0}, step=3)
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step,val/acc\n0,3,0.5\n"
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=3)
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step,val/acc,train/loss\n0,3,0.5,\n0,3,,2.0\n"


def test_a_continued_run_keeps_its_rows(tmp_path: Path) -> None:
    MetricsCSV(tmp_path).log_metrics({"val/acc": 0.5, "epoch": 0}, step=3)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,7,0.")  # killed while writing
    continued = MetricsCSV(tmp_path)
    continued.log_metrics({"val/acc": 0.75, "epoch": 1}, step=7)
    continued.log_metrics({"val/acc": 1.0, "epoch": 2}, step=11)
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step,val/acc\n0,3,0.5\n1,7,0.75\n2,11,1.0\n"


KEY, LOGIN = {"WANDB_API_KEY": "k"}, "machine api.wandb.ai\n  login user\n  password k\n"


@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        ({}, "", "offline"),
        (KEY, "", "online"),
        ({}, LOGIN, "online"),
        ({}, "machine example.com login wandb\n", "offline"),
        ({"WANDB_BASE_URL": "https://wandb.example.com"}, LOGIN, "offline"),
        ({"WANDB_MODE": "offline", **KEY}, "", "offline"),
        ({"WANDB_MODE": "dryrun", **KEY}, "", "offline"),
        ({"WANDB_MODE": "disabled"}, LOGIN, "disabled"),
        ({"WANDB_MODE": "online"}, LOGIN, "online"),
    ],
)
def test_wandb_mode(
    environment: dict[str, str], netrc: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text(netrc)
    for name, value in ({"NETRC": str(tmp_path / "netrc")} | environment).items():
        monkeypatch.setenv(name, value)
    assert wandb_mode() == mode


def test_online_without_a_key_is_an_error_and_no_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="there is no key"):
        wandb_mode()
