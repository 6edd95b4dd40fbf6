"""What an experiment consists of: its file, and the cells that it stands for, each a training with its tests.

A file has these keys; an entry of a list of words is a configuration (`configs/x.yaml`) or an option (`--name value`):

    base: words for every arm
    arms: a mapping from the name of an arm to the words that it adds
    seeds: a list of integers; each arm is trained with each
    test: the splits to test on
    compare: options of `superfer compare`
    stages: a mapping from a name to the words of a training that comes first; in other words, {NAME} is its run

Whether a cell is done is read from the run folders; there are no other notes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.runs import Progress, read_progress
from datamodules.labels import SPLITS
from run_state.folder import newest_run, status
from run_state.identity import is_word
from run_state.may_differ import changed_settings
from run_state.names import did_you_mean
from storage.reading import read_mapping

if TYPE_CHECKING:
    from commands.cli import SuperFERCLI

KEYS = ("base", "arms", "seeds", "test", "compare", "stages")
_STAGE = re.compile(r"\{(\w+)\}")


@cache
def _parse(words: tuple[str, ...]) -> "SuperFERCLI":
    from commands.cli import SuperFERCLI  # imports PyTorch, which takes seconds

    return SuperFERCLI("train", words)


def parse_settings(words: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of `superfer train WORDS`; raise an error if a word is wrong."""
    return _parse(words).settings


def name_upscaler(words: tuple[str, ...]) -> str:
    """Return the name by which `superfer compare` knows an arm; raise a ValueError if it trains no classifier."""
    cli = _parse(words)
    cli.instantiate(follow_weights=False)
    upscaler = getattr(cli.datamodule, "upscaler", None)
    if upscaler is None:
        raise ValueError("it trains no classifier, which only stages may do")
    return str(upscaler.name)


@dataclass(frozen=True, eq=False)
class Cell:
    """A training and its tests: an arm with one seed, or a stage.

    Args:
        name: as messages have it.
        arm: name of the arm or stage; cells of one arm take about equally long.
        own_words: arguments of `superfer train`, in which {NAME} stands for the run of a stage.
        splits: what to test on.
        stages: those named in the words.
    """

    name: str
    arm: str
    own_words: tuple[str, ...]
    splits: tuple[str, ...] = ()
    stages: Mapping[str, "Cell"] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments of `superfer train`; {NAME} stays where a stage has no run yet."""
        runs = {name: stage.run() for name, stage in self.stages.items()}
        return tuple(_STAGE.sub(lambda match: str(runs[match[1]] or match[0]), word) for word in self.own_words)

    def run(self) -> Path | None:
        """Return the folder of the run that `--resume auto` would go on with."""
        return newest_run(parse_settings(self.words))[0]

    def next_command(self) -> list[str] | None:
        """Return the verb and the arguments of what is to be done next; None if everything is done."""
        run = self.run()
        if run is None or not self._is_trained(run):
            return ["train", "--resume", "auto", *self.words]
        for split in self.splits:
            if not (run / f"metrics_{split}.json").is_file():
                return ["test", "--ckpt_path", str(run), "--split", split]
        return None

    def _is_trained(self, run: Path) -> bool:
        """Whether a run has ended by itself, and is as long as it is wanted now, which `--resume` may change."""
        lengths = [x["trainer"]["max_epochs"] for x in (read_mapping(run / "config.yaml"), parse_settings(self.words))]
        return status(run) in ("finished", "stopped") and lengths[0] == lengths[1]

    def is_running(self) -> bool:
        """Whether a process trains it at the moment."""
        run = self.run()
        return run is not None and status(run) == "running"

    def progress(self) -> Progress | None:
        """Return how far the training is; None before it has begun."""
        run = self.run()
        return read_progress(run) if run else None


@dataclass(frozen=True)
class Experiment:
    """The content of an experiment's file."""

    name: str
    stages: list[Cell]
    cells: list[Cell]  # of the arms, seed by seed, so that what is done first can be compared
    compare: list[str]  # options

    @property
    def all_cells(self) -> list[Cell]:
        """Stages and arms."""
        return [*self.stages, *self.cells]

    def check(self) -> None:
        """Raise a ValueError if words of a cell are wrong, two cells are one training, or two arms have one name."""
        settings: dict[str, dict[str, Any]] = {}
        upscalers: dict[str, str] = {}
        for cell in self.all_cells:
            try:
                settings[cell.name] = parse_settings(cell.words)
                if cell in self.cells and cell.arm not in upscalers:
                    upscalers[cell.arm] = name_upscaler(cell.words)
            except (ValueError, OSError) as error:
                raise ValueError(f"{cell.name}: {error}") from error
        for (one, first), (other, second) in combinations(settings.items(), 2):
            same = ("runs", "experiment", "seed_everything")
            if all(first[key] == second[key] for key in same) and not changed_settings(first, second, "resume"):
                raise ValueError(f"{one} and {other} have the same settings: they would be one run")
        for (one, name), (other, another) in combinations(upscalers.items(), 2):
            if name == another:
                hint = "to be compared, they need different ones (--data.upscaler.name)"
                raise ValueError(f"the upscalers of {one} and {other} are both named {name!r}; {hint}")


def read_experiment(path: Path) -> Experiment:
    """Read an experiment's file; a ValueError names the entry that is wrong, and what is allowed."""
    if not path.is_file():
        known = map(str, Path("configs/experiments").glob("*.yaml"))
        raise FileNotFoundError(f"{path} does not exist{did_you_mean(path, known)}")
    content = read_mapping(path)
    for key in content:
        if key not in KEYS:
            raise ValueError(f"{path}: there is no key {key!r}{did_you_mean(key, KEYS)}; expected {', '.join(KEYS)}")
    try:
        stages: dict[str, Cell] = {}
        for name, words in _mapping(content, "stages").items():
            split = _words(words, f"stages.{name}")
            stages[name] = Cell(name, name, split, stages=_named_stages(split, stages))
        cells = _arms(content, stages)
        if not (stages or cells):
            raise ValueError("there are neither arms nor stages")
        return Experiment(path.stem, [*stages.values()], cells, [*_words(content.get("compare", []), "compare", "")])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _arms(content: Mapping[str, Any], stages: Mapping[str, Cell]) -> list[Cell]:
    base, arms = _words(content.get("base", []), "base"), _mapping(content, "arms")
    if not arms:
        return []
    seeds, splits = _list(content, "seeds"), _list(content, "test")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seeds has {seed!r}, expected integers")
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"test has {split!r}, expected some of {', '.join(SPLITS)}{did_you_mean(split, SPLITS)}")
    cells = []
    for seed in seeds:
        for arm, words in arms.items():
            own = (*base, *_words(words, f"arms.{arm}"), f"--seed_everything={seed}")
            cells.append(Cell(f"{arm}, seed {seed}", arm, own, tuple(splits), _named_stages(own, stages)))
    return cells


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is {value!r}, expected a mapping from names to lists")
    for name in value:
        if not is_word(name):
            raise ValueError(f"{key} has the name {name!r}, expected one plain word")
    return value


def _list(content: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = content.get(key)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key} is {value!r}, expected a list, such as {'[0, 1]' if key == 'seeds' else '[test]'}")
    if repeated := [item for item in value if value.count(item) > 1]:
        raise ValueError(f"{key} has {repeated[0]!r} more than once")
    return value


def _words(value: Any, where: str, file_option: str = "--config") -> tuple[str, ...]:
    """Return the words of a list's entries: a configuration, or an option, which may have a value behind it."""
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
        raise ValueError(f"{where} is {value!r}, expected a list of configurations and options")
    words: list[str] = []
    for entry in value:
        if not entry.startswith("--"):
            words += [file_option, entry] if file_option else [entry]
        else:
            words += [entry] if "=" in entry.split()[0] else entry.split(maxsplit=1)
    return tuple(words)


def _named_stages(words: Sequence[str], stages: Mapping[str, Cell]) -> dict[str, Cell]:
    """Return the stages that words name; they have to come before."""
    names = dict.fromkeys(name for word in words for name in _STAGE.findall(word))
    for name in names:
        if name not in stages:
            raise ValueError(f"{{{name}}} names no stage before it{did_you_mean(name, stages)}")
    return {name: stages[name] for name in names}
