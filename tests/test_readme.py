"""Every command of the pages for users is accepted, every Python block runs, and what they name is there."""

import contextlib
import json
import re
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import superfer
from benchmarks import classifier, generator
from commands import compare, experiment, export, prepare, runs, synthetic, upload
from commands.cells import read_experiment
from commands.test import test as run_test
from commands.train import train
from commands.upscale import parse_options, upscale
from datamodules.upscalers import InterpolationUpscaler
from tests.tiny_runs import REPOSITORY, run_record

PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted(REPOSITORY.glob("docs/*.md")), REPOSITORY / "weights/README.md"]
TEXT = "\n".join(page.read_text() for page in PAGES)
EXAMPLES = {
    "configs/classifier/sharpened.yaml",
    "datamodules/sharpened.py",
}  # files that the README has its reader write


def blocks(language: str) -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Indented lines that call one of the project's programs; continued lines joined, comments and loops cut off."""
    plain = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (\S.*)$", re.sub(r"\\\n\s*", " ", plain), re.MULTILINE)
    simple = [part.strip().removeprefix("do ") for line in indented for part in line.split("  #")[0].split(";")]
    return [part for part in simple if re.match(r"(\S*/)?(python|make|superfer|sbatch) |\S+ torchrun ", part)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for RUN: a configuration, a record and a checkpoint without weights. Read only."""
    folder = tmp_path_factory.mktemp("run")
    with (folder / "config.yaml").open("w") as file, contextlib.redirect_stdout(file), pytest.raises(SystemExit):
        train(["--config", str(REPOSITORY / "configs/classifier/bilinear.yaml"), "--print_config"])
    record = run_record(folder)
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "checkpoints").mkdir()
    own = record | {"settings": yaml.safe_load((folder / "config.yaml").read_text())}
    torch.save({"run": own, "global_step": 0, "epoch": 0, "loops": {}}, folder / "checkpoints" / "best.ckpt")
    return folder


class ReachedError(BaseException):
    """A command has accepted its words."""


def reached(*_: object) -> None:
    raise ReachedError


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
        shows = any(word.endswith("help") for word in words)
        with pytest.raises(SystemExit) as exit_:
            programs[name](words if shows else [*words, "--print_config"])
        assert exit_.value.code == 0
    elif name == "compare":
        monkeypatch.setattr(compare, "read_runs", reached)
        with pytest.raises(ReachedError):
            compare.compare(words)
    elif name == "experiment":
        monkeypatch.setattr(experiment, "share_out", reached)  # when the file has been read
        with pytest.raises(ReachedError):
            experiment.experiment(words)
    elif name == "runs":
        monkeypatch.setattr(runs, "refusals", reached)
        with pytest.raises(ReachedError):
            runs.runs(words)
    elif name == "-m" and words[0] == "datamodules.synthetic":
        for writer in ("write_faces", "write_ferplus", "write_atomically"):
            monkeypatch.setattr(synthetic, writer, lambda *_: True)
        synthetic.synthetic([*words[1:], "--root", "/nonexistent"])
    elif name == "export":
        monkeypatch.setattr(export, "write_weights", lambda *_: None)
        export.export(words)
    elif name == "prepare":
        monkeypatch.setattr(prepare, "pack_faces", lambda *_: types.SimpleNamespace(summary=""))
        prepare.prepare(words)
    elif name == "-m" and words[0] in ("benchmarks.generator", "benchmarks.classifier"):
        benchmark = {"generator": generator, "classifier": classifier}[words[0].rpartition(".")[2]]
        monkeypatch.setattr(benchmark, "measure", lambda _: {})
        monkeypatch.setenv("WANDB_MODE", "disabled")  # which the latter sets
        benchmark.main(words[1:])
    elif name == "upload":
        monkeypatch.setenv("WANDB_MODE", "offline")  # which the command changes
        monkeypatch.setattr(upload, "send", lambda _: None)
        monkeypatch.setattr(upload, "require_key", lambda: None)
        upload.upload(words)
    else:
        assert name == "-m" and words[0] in ("venv", "pip"), f"what is {name} {' '.join(words)}?"


def test_the_readme_has_commands() -> None:
    used = " ".join(commands())
    verbs = ("superfer train", "superfer test", "superfer upscale", "superfer compare", "superfer experiment")
    assert all(name in used for name in ("make demo", "make test", "make torture", "torchrun", "sbatch", *verbs))


@pytest.mark.parametrize("command", commands())
def test_command(command: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    program, *words = shlex.split(command.replace("$seed", "0"))
    if program.endswith("make"):
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets)
        return
    if "torchrun" in words:
        words = words[words.index("train.py") :]
    if program == "sbatch":
        assert (REPOSITORY / words[0]).is_file()
        words[0] = "train"
    words = [str(run) if re.fullmatch(r"(\S*/)?RUN|\$run|runs/\S+/\*", word) else word for word in words]
    if words == ["--help"]:
        assert superfer.main(words) == 0
        return
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
    """Files that the text names in code style; of the tests also the functions."""
    named = set(
        re.findall(
            r"\b(?:configs|weights|docs|tests|\w+_modules|datamodules|commands|models|run_state)/[\w/]+\.\w+", TEXT
        )
    )
    assert len(named) > 30 and [name for name in sorted(named - EXAMPLES) if not (REPOSITORY / name).exists()] == []
    tests = "\n".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    functions = set(re.findall(r"\btest_\w+(?!\w|\.py)", re.sub(r"\S+\.py", "", TEXT)))
    assert [name for name in sorted(functions) if f"def {name}(" not in tests] == []


def test_a_face_is_upscaled_in_python(tiny_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").symlink_to(REPOSITORY / "weights")
    monkeypatch.chdir(tmp_path)
    Image.open(next(tiny_faces.rglob("*.png"))).resize((16, 16), Image.Resampling.BICUBIC).save("face.png")
    (code,) = (block for block in blocks("python") if "DIC.from_checkpoint" in block)
    exec(code, {})
    given, upscaled = (np.asarray(Image.open(name), dtype=float) for name in ("face.png", "upscaled.png"))
    assert upscaled.shape == (128, 128, 3)
    assert abs(upscaled.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3)) - given).mean() < 4, "reduced, it is the face again"


def test_an_upscaler_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = (block for block in blocks("python") if "(Upscaler)" in block)
    module = types.ModuleType("datamodules.sharpened")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    images = torch.zeros(1, 1, 48, 48, dtype=torch.uint8)
    images[..., 24:] = 100
    upscaled, plain = module.Sharpened()(images), InterpolationUpscaler("bicubic")(images)
    assert upscaled.shape == (1, 1, 384, 384) and upscaled.dtype == torch.uint8
    assert upscaled.max() > plain.max() and (upscaled[..., 300:] == 100).all(), "steeper edges, areas as they were"
    (overlay,) = (block for block in blocks("yaml") if "datamodules.sharpened" in block)
    (tmp_path / "sharpened.yaml").write_text(overlay)
    arms = (
        ["--config", str(REPOSITORY / "configs/classifier/bilinear.yaml")],
        ["--config", str(tmp_path / "sharpened.yaml")],
    )
    with pytest.raises(SystemExit) as exit_:
        train([*arms[0], *arms[1], "--print_config"])
    assert exit_.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert parsed["experiment"] == "ferplus-sharpened"
    assert parsed["data"]["init_args"]["upscaler"]["init_args"] == {"amount": 1.0}


def test_the_documented_experiment_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    (content,) = (block for block in blocks("yaml") if "stages:" in block)
    (tmp_path / "x.yaml").write_text(content)
    asked = read_experiment(tmp_path / "x.yaml")
    asked.check()
    assert [cell.name for cell in asked.all_cells[:3]] == ["generator", "bilinear, seed 0", "dic, seed 0"]
    assert len(asked.cells) == 10 and asked.compare == ["--margin", "0.5"]
