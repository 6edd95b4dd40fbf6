"""Run every shipped configuration on tiny data, by the command in its first lines."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from commands.cells import parse_settings, read_experiment
from commands.compare import parse_options
from commands.train import train
from models.dic import DIC
from run_state.may_differ import changed_settings
from tests.tiny_runs import NETWORK, REPOSITORY, classifier_options, generator_options

FILES = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").rglob("*.yaml"))
EXPERIMENTS = [name for name in FILES if "/experiments/" in name]
CONFIGS = [name for name in FILES if name not in EXPERIMENTS]


def header(name: str) -> str:
    """Return the comment at the top of a file, without the marks."""
    lines = (REPOSITORY / name).read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[2:] for line in lines[:end])


def arguments(name: str) -> list[str]:
    """Return the arguments of the command in that comment."""
    command = re.search(r"^\s+(?:superfer train|python train\.py) ((?:.*\\\n)*.*)$", header(name), re.MULTILINE)
    assert command, f"{name}: no line with `superfer train` in its first comment"
    return shlex.split(command.group(1).replace("\\\n", " "))


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of an untrained generator."""
    torch.manual_seed(0)
    net = DIC(**NETWORK)
    path = tmp_path_factory.mktemp("generator") / "best.ckpt"
    torch.save({"dic_config": net.config, "state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}}, path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", CONFIGS)
def test_comment_says_what_to_expect(name: str) -> None:
    words = header(name).lower()
    assert all(word in words for word in ("hardware", "time", "expected score"))
    used = [value for option, value in zip(arguments(name), arguments(name)[1:], strict=False) if option == "--config"]
    assert name in used, f"{name}: the command does not use the file"


@pytest.mark.parametrize("name", CONFIGS)
def test_command_is_accepted_as_it_stands(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as exit_:
        train([*arguments(name), "--print_config"])
    assert exit_.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert parsed["experiment"] and parsed["best"]["monitor"].startswith("val/")
    if name == "configs/generator/dic.yaml":  # the published network
        sizes = parsed["model"]["init_args"]["net"].get("init_args", {})
        assert sum(p.numel() for p in DIC(**sizes).parameters()) == pytest.approx(21.8e6, rel=0.01)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_runs(
    name: str,
    tiny_faces: Path,
    tiny_ferplus: Path,
    generator: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    given = arguments(name)
    short = [f"--runs={tmp_path}", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    generators = [re.fullmatch(r"configs/(?:demo/)?generator(?:/([a-z]+)\w*)?\.yaml", word) for word in given]
    stages = [match.group(1) or "dic" for match in generators if match]
    if stages:
        run = train([*given, *generator_options(tiny_faces, stages[0]), *short])
    else:
        options = classifier_options(tiny_ferplus)
        if any(word.endswith("/dic.yaml") for word in given):
            options += [f"--data.upscaler.checkpoint={generator}", f"--data.cache_dir={cache}"]
        run = train([*given, *options, *short])
    assert run.is_relative_to(tmp_path) and (run / "checkpoints" / "best.ckpt").is_file()


def test_arms_differ_in_the_upscaler_alone() -> None:
    arms: list[dict[str, Any]] = []
    for arm in ("bilinear", "dic"):
        content = yaml.safe_load((REPOSITORY / "configs/classifier" / f"{arm}.yaml").read_text())
        assert arm in content.pop("experiment")
        upscaler = content["data"]["init_args"].pop("upscaler")
        assert upscaler == "bilinear" if arm == "bilinear" else upscaler["class_path"].endswith(".DICUpscaler")
        arms.append(content)
    assert arms[0] == arms[1]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_shipped_experiments_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = header(name)
    assert f"superfer experiment {name}" in words
    assert all(word in words.lower() for word in ("hardware", "time", "expected score"))
    experiment = read_experiment(Path(name))
    experiment.check()
    parse_options(["RUN", *experiment.compare])
    first, *others = [parse_settings(cell.words) for cell in experiment.cells or experiment.stages]
    folders = {cell.arm: parse_settings(cell.words)["experiment"] for cell in experiment.all_cells}
    assert len(set(folders.values())) == len(folders), "each arm has a folder of its own"
    if experiment.cells:
        assert [changed_settings(first, other, "compare") for other in others] == [[]] * len(others)
