"""When W&B goes online: never without a key, and never with a question."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from commands.upload import upload
from run_state.wandb_run import wandb_identity, wandb_mode


@pytest.fixture(autouse=True)
def fresh_session() -> Iterator[None]:
    """W&B looks for its key once in a process."""
    wandb.teardown()
    yield
    wandb.teardown()


KEY, LOGIN = {"WANDB_API_KEY": "k" * 40}, "machine api.wandb.ai\n  login user\n  password " + "k" * 40 + "\n"


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
        ({"WANDB_MODE": "run", **KEY}, "", "online"),
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
    with pytest.raises(ValueError, match="W&B has no key"):
        wandb_mode()


def test_a_mode_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """W&B would be offline without a word."""
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(ValueError, match=r"WANDB_MODE is 'onlin', .*; did you mean 'online'"):
        wandb_mode()
    with pytest.raises(SystemExit) as refusal:
        upload(["run"])
    assert refusal.value.code == 2 and "did you mean 'online'" in capsys.readouterr().err


def test_the_run_is_that_of_the_record_or_new(monkeypatch: pytest.MonkeyPatch) -> None:
    new = wandb_identity({})
    assert new["wandb_project"] == "superfer" and new["wandb_id"] != wandb_identity({})["wandb_id"]
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert wandb_identity({})["wandb_project"] == "mine"
    record = {"wandb_id": "abc", "wandb_project": "first", "wandb_entity": "team"}
    assert wandb_identity(record) == record
    monkeypatch.setenv("WANDB_RUN_ID", "trial")
    assert wandb_identity(record) == record and wandb_identity({})["wandb_id"] == "trial"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert wandb_identity(record) == record | {"wandb_id": "trial"}
