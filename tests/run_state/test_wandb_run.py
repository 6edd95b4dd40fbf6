"""When W&B goes online: never without a key, and never with a question."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from run_state.wandb_run import make_wandb_logger, run_id, wandb_mode


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


def test_without_a_key_a_run_really_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B has looked for a key by then, and would go online by itself."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    mode = wandb_mode()
    assert mode == "offline"
    logger = make_wandb_logger(tmp_path, "experiment", "train", ["x"], mode)
    try:
        assert logger.experiment.offline and list((tmp_path / "wandb").glob("offline-run-*"))
    finally:
        wandb.finish()


def test_online_without_a_key_is_an_error_and_no_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="there is no key"):
        wandb_mode()


def test_the_id_is_that_of_the_record_or_new(tmp_path: Path) -> None:
    assert run_id(tmp_path) != run_id(tmp_path)
    (tmp_path / "run.json").write_text('{"wandb_id": "abc"}')
    assert run_id(tmp_path) == "abc"
