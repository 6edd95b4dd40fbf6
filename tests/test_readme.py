"""Every command of the README and of docs/ is accepted, and what it points to is there."""

import contextlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import compare, export, prepare, stages
from commands.test import test as run_test
from commands.train import train
from commands.upscale import parse_options, upscale
from datamodules.synthetic import writing
from tests import benchmark_generator
from tests.tiny_runs import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md"))]
README = "\n".join(page.read_text() for page in PAGES)


def commands() -> list[str]:
    """Lines of code blocks, fenced or indented, that call python or make; continued lines joined, comments cut off."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    indented = [line[4:] for line in re.sub(r"\\\n\s*", " ", README).splitlines() if line.startswith("    ")]
    lines = [line for block in fenced for line in re.sub(r"\\\n\s*", " ", block).splitlines()] + indented
    called = (line.split("  #")[0].strip().removeprefix("$ ") for line in lines)
    return [line for line in called if re.match(r"(\S*/)?(python|make|superfer) ", line)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for RUN: a configuration and an empty checkpoint. Read only."""
    folder = tmp_path_factory.mktemp("run")
    with (folder / "config.yaml").open("w") as file, contextlib.redirect_stdout(file), pytest.raises(SystemExit):
        train(["--config", str(REPOSITORY / "configs/classifier/bilinear.yaml"), "--print_config"])
    (folder / "checkpoints").mkdir()
    torch.save({}, folder / "checkpoints" / "best.ckpt")
    return folder


def parse(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parses the arguments of one of the project's programs; SystemExit with a code other than 0 if they are wrong."""
    programs: dict[str, Callable[[list[str]], Any]] = {
        "train": train,
        "test": run_test,
        "upscale": upscale,
    }
    if name == "upscale" and "--images" in words:
        parse_options(words)
    elif name in programs:
        with pytest.raises(SystemExit) as exit_:
            programs[name]([*words, "--print_config"])
        assert exit_.value.code == 0
    elif name == "compare":
        assert compare.compare(words) == 2  # the words are understood (else argparse exits); the runs are empty
    elif name == "-m" and words[0] == "datamodules.synthetic":
        for writer in ("write_faces", "write_ferplus", "write_atomically"):
            monkeypatch.setattr(writing, writer, lambda *_: True)
        writing.main([*words[1:], "--root", "/nonexistent"])
    elif name == "export":
        monkeypatch.setattr(export, "write_weights", lambda *_: None)
        export.export(words)
    elif name == "prepare":
        monkeypatch.setattr(prepare, "pack_faces", lambda *_: {"names": [], "source": "", "left_out": []})
        monkeypatch.setattr(prepare, "describe_left_out", lambda _: "")
        prepare.prepare(words)
    elif name == "-m" and words[0] == "tests.benchmark_generator":
        monkeypatch.setattr(benchmark_generator, "measure", lambda _: {})
        benchmark_generator.main(words[1:])
    elif name == "stages":
        monkeypatch.setattr(stages, "train", lambda args: parse("train", args, monkeypatch) or Path("earlier/run"))
        monkeypatch.setattr(stages, "last_figures", lambda _: {})
        assert len(stages.stages(words)) == 3
    else:
        assert name == "-m" and words[0] in ("venv", "pip"), f"what is {name} {' '.join(words)}?"


def test_the_readme_has_commands() -> None:
    used = " ".join(commands())
    assert all(name in used for name in ("make demo", "make test", "train", "test", "upscale", "compare"))


@pytest.mark.parametrize("command", commands())
def test_command(command: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    program, *words = shlex.split(command)
    if program.endswith("make"):
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets)
        return
    words = [str(run) if re.fullmatch(r"(\S*/)?(RUN\w*|<run>)", word) else word for word in words]
    parse(words[0].removesuffix(".py"), words[1:], monkeypatch)


def test_a_wrong_command_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    right = "--config configs/classifier/bilinear.yaml"
    for wrong in (
        f"{right} --trainer.max_epoch 3",
        "--config configs/classifier/bilinaer.yaml",
        f"{right} --data.rot x",
    ):
        with pytest.raises((SystemExit, AssertionError)) as error:
            parse("train", wrong.split(), monkeypatch)
        assert isinstance(error.value, AssertionError), "not exit code 0"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_linked_files_exist(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text) + re.findall(r'src="(?!https?://)([^"]+)"', text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_named_files_exist() -> None:
    """Configurations and modules that the text names in code style."""
    named = set(re.findall(r"(?:configs|weights|docs)/[\w/]+\.(?:yaml|md|png|ckpt|safetensors)", README))
    assert named and [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []
