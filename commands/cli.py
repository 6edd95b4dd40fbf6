"""The configuration of `train`, `test` and `upscale`: parsed by one LightningCLI, built when the run is known."""

import re
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from callbacks.finite_gradients import FiniteGradients
from callbacks.prediction_report import PredictionReport
from callbacks.text_progress import TextProgress
from callbacks.throughput import Throughput
from commands.libraries import keep_freed_memory
from commands.parser_words import tell
from commands.ranges import check_batches, check_ranges
from models.bfloat16 import check_bfloat16
from run_state.checkpoints import AtomicCheckpointIO, LatestCheckpoint, RunCheckpoint
from run_state.folder import new_run_folder, share_with_children, started_processes
from run_state.identity import is_word
from run_state.may_differ import INITIAL_WEIGHTS
from run_state.metrics_csv import MetricsCSV
from run_state.names import did_you_mean
from run_state.process_state import ProcessState
from run_state.record import RunRecord, check_same_data
from run_state.wandb_run import WandbMirror, WandbMode, wandb_mode
from storage.reading import check_yaml, read_mapping

Command = Literal["train", "test", "upscale"]
# The help of `train`, which lists all settings; the other commands have parsers of their own for it.
_USAGE = (
    "superfer train --config FILE [--config FILE ...] [--resume RUN|auto] [--allow_change NAME,...] [--KEY VALUE ...]"
)
_ABOUT = (
    "Train what the configurations describe. --resume RUN resumes a run in its folder; --resume auto resumes the "
    "newest run of these configurations, or starts the first. --allow_change lets settings differ from the run's."
)
# Settings that this project relies on, or would ignore.
_FIXED = {
    "best.dirpath": None,
    "best.enable_version_counter": False,
    "best.every_n_epochs": None,
    "best.every_n_train_steps": None,
    "best.filename": "best",
    "best.save_top_k": 1,  # more would all be named best.ckpt, so that the last one wins
    "best.save_weights_only": False,
    "best.train_time_interval": None,
    "latest.dirpath": None,
    "trainer.default_root_dir": None,
    "trainer.use_distributed_sampler": False,  # the samplers share out the data themselves
    "trainer.overfit_batches": 0.0,  # would replace the samplers; use limit_train_batches
}

_load = get_loader("yaml")


def _load_yaml(text: str) -> Any:
    check_yaml(text)
    return _load(text)


set_loader("yaml", _load_yaml, (ValueError, yaml.YAMLError))


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"seed_everything is {value!r}, expected an integer")
    return value


class SuperFERCLI(LightningCLI):
    """Parse a configuration, and refuse a wrong one; `build` makes module, data and trainer around a run folder.

    Args:
        command: what it is for.
        args: words of the command line.
        saved: settings that the words override, as `config.yaml` has them.
    """

    def __init__(self, command: Command, args: Sequence[str], saved: Mapping[str, Any] | None = None) -> None:
        self.command, self._saved = command, saved
        super().__init__(
            args=list(args),
            run=False,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,  # RunRecord writes it, as it was given
            seed_everything_default=0,
            parser_kwargs={
                "allow_abbrev": False,
                "exit_on_error": False,
                "usage": _USAGE,
                "description": _ABOUT,
            },
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for option, value in pairwise(part for word in args for part in word.split("=", 1)):
            if option in ("--config", "-c"):
                _check_file(Path(value))
        saved = ["--config", yaml.safe_dump(self._saved)] if self._saved else []
        try:
            super().parse_arguments(parser, [*saved, *args])
        except ArgumentError as error:
            names = [name.lstrip("-") for action in parser._actions for name in action.option_strings]
            raise ValueError(tell(str(error), names)) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--experiment", type=str, required=True, help="Folder below runs, and group in W&B")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all run folders")
        parser.add_argument("--tags", type=list[str], default=[], help="Further tags in W&B")
        parser.add_lightning_class_args(ModelCheckpoint, "best")
        parser.add_lightning_class_args(LatestCheckpoint, "latest")
        parser.set_defaults(_FIXED)
        parser.add_lightning_class_args(FiniteGradients, "finite")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=_seed)

    def before_instantiate_classes(self) -> None:
        for name in ("trainer", "best", "latest"):
            if not isinstance(self.config[name], Namespace):
                raise ValueError(f"expected key: value settings under {name!r}, got {self.config[name]!r}")
        for name, value in _FIXED.items():
            if self.config[name] != value:
                raise ValueError(f"{name} is {self.config[name]!r}, expected {value!r}")
        check_ranges(self.config)

    def instantiate_classes(self) -> None:
        """Nothing yet: which run it is decides what is built."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as plain types, as `config.yaml` records it."""
        settings: dict[str, Any] = yaml.safe_load(self._settings_yaml)
        return settings

    @cached_property
    def _settings_yaml(self) -> str:
        text = str(self.parser.dump(self.config, skip_none=False))
        if lost := re.search(r".*Unable to serialize.*", text):
            problem = f"config.yaml would hold {lost[0].strip()!r}, which a resumed run cannot read"
            raise ValueError(f"{problem}; give that setting as text, or null")
        return text

    def instantiate(self, follow_weights: bool = True) -> None:
        """Make module and data from the configuration; what has a checkpoint needs no weights to start from."""
        keep_freed_memory()
        torch.backends.cuda.matmul.allow_tf32 = True  # and no shortcut on CPUs: their products stay float32
        config = self.config.clone()
        if not follow_weights:
            for name in INITIAL_WEIGHTS:
                if name in config.model.init_args:
                    config.model.init_args[name] = None
        self.config_init = self.parser.instantiate(config)
        self.datamodule, self.model = self.config_init.data, self.config_init.model

    def build(self, run: Path | None = None, checkpoint: RunCheckpoint | None = None) -> L.Trainer:
        """Make module, data and trainer; refuse what cannot work before a folder is made or W&B is started.

        Args:
            run: folder of the run to resume or test; None makes a new one.
            checkpoint: the one to resume from or to test; a run that was stopped before its first begins again.
        """
        end = self.config.trainer.max_epochs
        if checkpoint and end not in (None, -1) and checkpoint.epoch > end:
            raise ValueError(f"trainer.max_epochs is {end}, but {checkpoint.epoch} epochs are done")
        self.instantiate(follow_weights=checkpoint is None)
        best, modes = self.config.best, self.model.monitored
        if best.monitor not in modes:
            expected = f"expected one of {', '.join(modes)}{did_you_mean(best.monitor, modes)}"
            raise ValueError(f"best.monitor is {best.monitor!r}, {expected}")
        if best.mode != modes[best.monitor]:
            raise ValueError(f"best.mode is {best.mode!r}, expected {modes[best.monitor]!r} for {best.monitor}")
        upscaler = getattr(self.datamodule, "upscaler", None)
        if upscaler and not is_word(upscaler.name):
            raise ValueError(f"the name of the upscaler is {upscaler.name!r}, expected one plain word")
        self.datamodule.check(self.command)
        if self.command == "train":
            check_batches(self.config.trainer, self.datamodule.training_batches)
        if run:
            check_same_data(run, self.datamodule)
        leads = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # the others send nothing, and need no key
        mode = wandb_mode() if self.command == "train" and leads else "disabled"
        folder = run or new_run_folder(self.config.runs, self.config.experiment, self.config.seed_everything)
        share_with_children(folder)
        try:
            self.trainer = self._trainer_in(folder, mode, checkpoint)
            self.model.check(self.datamodule, self.trainer)
            self._check_devices()
            self._check_precision()
        except BaseException:
            with suppress(OSError):  # not empty: there are other runs, or it is another process's
                for made in (folder, folder.parent, folder.parent.parent) if run is None else ():
                    made.rmdir()
            raise
        return self.trainer

    def _trainer_in(self, folder: Path, mode: WandbMode, checkpoint: RunCheckpoint | None) -> L.Trainer:
        for name in ("best", "latest"):
            self.config_init[name].dirpath = str(folder.resolve() / "checkpoints")
        settings = self.config_init.trainer
        own: list[L.Callback] = [RunRecord(self._settings_yaml, checkpoint)]
        own += [Throughput()] if self.command == "train" else []
        loggers = _as_list(None if isinstance(settings.logger, bool) else settings.logger)
        if not sys.stdout.isatty():
            own.append(TextProgress())
        if self.command == "train":
            mirror = WandbMirror(folder, online=mode == "online")
            own += [mirror] if mode != "disabled" and settings.logger is not False else []
            own += [ProcessState(), LearningRateMonitor(logging_interval="step")]  # in this order, see ProcessState
            loggers.insert(0, MetricsCSV(folder, mirror.on_row))
        elif checkpoint:
            own.append(PredictionReport(checkpoint))
        try:
            return self.instantiate_trainer(
                default_root_dir=str(folder),
                plugins=[*(settings.plugins or []), AtomicCheckpointIO()],
                logger=loggers,
                callbacks=[*_as_list(settings.callbacks), *own],
                enable_progress_bar=sys.stdout.isatty() and settings.enable_progress_bar is not False,
            )
        except TypeError as error:  # Lightning's own, for devices that are no number
            raise ValueError(f"trainer: {error}") from error

    def _check_devices(self) -> None:
        """Refuse devices without a process or an image, and processes that know nothing of each other."""
        trainer, data = self.trainer, self.datamodule
        nodes, per_node, devices = trainer.num_nodes, trainer.num_devices, trainer.world_size
        if self.command == "test" and devices > 1:
            raise ValueError(f"trainer has {devices} devices, expected 1: a test runs on one")
        started = (started_processes() if self.command == "train" else None) or devices
        if {devices, started} != {nodes * per_node}:
            found = f"{nodes} x {per_node} devices need as many processes, but the number of processes is {started}"
            launchers = f"srun --ntasks-per-node {per_node} or torchrun --nproc-per-node {per_node}"
            raise ValueError(f"{found}: start them with {launchers}")
        share = data.per_device(devices)
        if self.command == "train" and (images := data.validation_images) < devices:
            raise ValueError(f"the number of validation images is {images}, expected at least the {devices} devices")
        if devices > 1 and trainer.is_global_zero:
            print(f"batch_size {data.batch_size}: {share} on each of {devices} devices", flush=True)

    def _check_precision(self) -> None:
        """Refuse bfloat16 on a processor whose library computes a layer wrongly in it."""
        device = self.trainer.strategy.root_device
        if device.type == "cpu" and self.trainer.precision.startswith("bf16"):
            check_bfloat16(self.model)
        if hasattr(self.datamodule, "check_device"):
            self.datamodule.check_device(device)


def _check_file(config: Path) -> None:
    """Refuse a pipe, for which the parser would wait, and name a file that is damaged, or missing."""
    if not config.exists():
        known = map(str, [*config.parent.glob("*.yaml"), *Path("configs").rglob("*.yaml")])
        raise FileNotFoundError(f"--config {config} does not exist{did_you_mean(config, known)}")
    read_mapping(config)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
