"""The command line of `train`, `test` and `upscale`: one LightningCLI over one flat configuration."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.finite_gradients import FiniteGradients
from callbacks.prediction_report import TestReport
from callbacks.text_progress import LogLines
from commands.console import keep_freed_memory, quieten, refuse
from models.bfloat16 import check_bfloat16
from run_state.checkpoints import LatestCheckpoint, WholeCheckpointIO, newest_whole
from run_state.folder import (
    is_child,
    new_run_folder,
    newest_run,
    share_with_children,
    started_processes,
)
from run_state.metrics_csv import MetricsCSV
from run_state.process_state import RankState
from run_state.record import RunRecord, check_same_data
from run_state.settings import FIXED, NEUTRAL, TEST_MAY_CHANGE, changed_settings, check_names
from run_state.wandb_run import WandbMode, make_wandb_logger, wandb_mode

Command = Literal["train", "test", "upscale"]

USAGE = {
    "train": "--config FILE [--config FILE ...] [--resume RUN|auto] [--allow_change NAME,...] [--KEY VALUE ...]",
    "test": "--ckpt_path RUN_OR_CHECKPOINT [--split train|val|test] [--KEY VALUE ...]",
    "upscale": "--config FILE [--config FILE ...] [--KEY VALUE ...]\n"
    "       superfer upscale --ckpt_path RUN_OR_FILE --images FOLDER --out FOLDER [--help]",
}

ABOUT = {
    "train": "Trains what the configurations describe. --resume RUN continues a run in its folder, --resume auto the "
    "newest run of these configurations, or starts the first. --allow_change lets a continued run have other settings.",
    "test": "Tests a checkpoint on one split of its data (default: test), on one device; writes metrics_SPLIT.json and "
    "predictions_SPLIT.csv into the run folder.",
    "upscale": "Enlarges the faces of a classifier's configuration into its cache, or the images of a folder; for the "
    "options of the latter: superfer upscale --images . --help",
}


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"seed_everything is {value!r}, needed is a whole number")
    return value


class SuperFERCLI(LightningCLI):
    """Parses a configuration and builds module, data and trainer around one run folder.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.
        command: What the run is for.
        run: Folder of an existing run; None makes a new one.
        allow_change: Settings that a continued run may have otherwise than before, beside those that it always may.
        find_run: Continue the newest run of this configuration, if there is one.

    Attributes:
        run_folder: Folder of the run.
        checkpoint: What the training continues from, or None.
    """

    def __init__(
        self,
        args: list[str],
        command: Command,
        run: Path | None = None,
        allow_change: Sequence[str] = (),
        find_run: bool = False,
    ) -> None:
        self.command, self.run_folder = command, run
        self.checkpoint: Path | None = None
        self._allow_change, self._find_run = allow_change, find_run
        self._initial: dict[str, Any] = {}  # what a continued run has started from
        own: dict[Command, list[L.Callback]] = {
            "train": [RankState()],
            "test": [TestReport()],
            "upscale": [],
        }
        lines = [] if sys.stdout.isatty() or command == "upscale" else [LogLines()]
        super().__init__(
            args=args,
            run=False,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None if command == "upscale" else RunRecord,
            seed_everything_default=0,
            # The samplers share out the data themselves.
            trainer_defaults={"use_distributed_sampler": False, "callbacks": [*own[command], *lines]},
            parser_kwargs={
                "allow_abbrev": False,
                "prog": f"superfer {command}",
                "usage": f"superfer {command} {USAGE[command]}",
                "description": ABOUT[command],
            },
        )
        for name, value in self._initial.items():  # to be recorded as it was
            self.config.model.init_args[name] = value

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--experiment", type=str, required=True, help="Folder below runs, and group in W&B")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all run folders")
        parser.add_argument("--tags", type=list[str], default=[], help="Further tags in W&B")
        parser.add_lightning_class_args(ModelCheckpoint, "best")
        best = {"enable_version_counter": False, "save_top_k": 1, "filename": "best"}
        parser.set_defaults({f"best.{name}": value for name, value in best.items()})
        parser.add_lightning_class_args(LatestCheckpoint, "latest")
        parser.add_lightning_class_args(FiniteGradients, "finite")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=_seed)

    def before_instantiate_classes(self) -> None:
        keep_freed_memory()
        torch.set_float32_matmul_precision("high")
        for name in ("trainer", "best"):
            if not isinstance(self.config[name], Namespace):
                raise ValueError(f"{name} is {self.config[name]!r}, needed are settings by name")
        if self.config.best.monitor is None:
            raise ValueError("best.monitor is missing: the metric that decides which checkpoint is the best")
        if self.command == "train":
            self._resume()
        elif self.command == "test":
            self._check_tested()

    def _check_tested(self) -> None:
        """Refuses settings by which a test would be that of another network or of other images than were trained."""
        trainer = self.config.trainer
        if trainer.fast_dev_run or trainer.limit_test_batches is not None:
            raise ValueError("trainer.limit_test_batches and fast_dev_run leave images out; a test needs all of them")
        if self.run_folder is None:
            return
        now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        changed = changed_settings(self.run_folder, now, TEST_MAY_CHANGE)
        if changed:
            raise ValueError(f"{self.run_folder} was trained with other settings: {'; '.join(changed)}")

    def _resume(self) -> None:
        """Finds the run and the checkpoint to continue from, and refuses other settings than the run has."""
        now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        check_names(self._allow_change, now)
        if self._find_run:
            seed = self.config.seed_everything
            self.run_folder = newest_run(Path(self.config.runs) / self.config.experiment, seed, now, self._allow_change)
            print(
                f"continuing {self.run_folder}" if self.run_folder else "no run to continue; starting one", flush=True
            )
        if self.run_folder is None:
            return
        changed = changed_settings(self.run_folder, now, self._allow_change)
        if changed:
            raise ValueError(
                f"settings differ from those of {self.run_folder}: {'; '.join(changed)}. Epochs, devices, workers and "
                f"logging may change; anything else but {FIXED} if it is named: --allow_change NAME[,NAME...]"
            )
        self.checkpoint = newest_whole(self.run_folder)
        for name, value in NEUTRAL.items():
            if name in self.config.model.init_args:
                self._initial[name] = self.config.model.init_args[name]
                self.config.model.init_args[name] = value

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Refuses what cannot work before a folder is made or W&B is started; then builds the trainer."""
        if self.command != "upscale":
            self.model.check_data(self.datamodule)
            if self.config.best.monitor not in self.model.monitored:
                allowed = ", ".join(self.model.monitored)
                raise ValueError(f"best.monitor is {self.config.best.monitor!r}, allowed are {allowed}")
        self.datamodule.check(self.command)
        if self.command == "upscale":
            trainer = super().instantiate_trainer(logger=False, callbacks=[], **kwargs)
            self._check_device(trainer)
            return trainer
        if self.run_folder:
            check_same_data(self.run_folder, self.datamodule)
        mode = wandb_mode()
        new = self.run_folder is None and not is_child()
        folder = self.run_folder or new_run_folder(
            self.config.runs, self.config.experiment, self.config.seed_everything, again=self._find_run
        )
        self.run_folder = folder
        share_with_children(folder)
        try:
            trainer = self._trainer_in(folder, mode, **kwargs)
            if hasattr(self.model, "check_trainer"):
                self.model.check_trainer(trainer)
            self._check_device(trainer)
            self._check_devices(trainer)
        except BaseException:
            share_with_children(None)
            if new:
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # there are other runs
                    folder.parent.rmdir()
                    folder.parent.parent.rmdir()
            raise
        return trainer

    def _check_device(self, trainer: L.Trainer) -> None:
        """Refuse bfloat16 on a processor whose library computes a layer wrongly in it."""
        device = trainer.strategy.root_device
        runs = self.command != "upscale"  # else the model is there, but does nothing
        if runs and device.type == "cpu" and trainer.precision.startswith("bf16"):
            check_bfloat16(self.model)
        if hasattr(self.datamodule, "check_device"):
            self.datamodule.check_device(device)

    def _check_devices(self, trainer: L.Trainer) -> None:
        """Refuses devices without a process or an image, and processes that know nothing of each other."""
        nodes, per_node, devices = trainer.num_nodes, trainer.num_devices, trainer.world_size
        started = (started_processes() if self.command == "train" else None) or devices
        if {devices, started} != {nodes * per_node}:
            raise ValueError(
                f"{nodes} x {per_node} devices need as many processes, but the number of processes is {started}: start "
                f"them with srun --ntasks-per-node {per_node} or torchrun --nproc-per-node {per_node}"
            )
        size, validated = self.datamodule.batch_size, self.datamodule.validation_images
        if size % devices:
            raise ValueError(f"batch_size is {size}, not a multiple of the {devices} devices that share it")
        if self.command == "train" and validated < devices:
            raise ValueError(
                f"the number of validation images is {validated}, expected one or more for each of {devices} devices"
            )
        if devices > 1 and trainer.is_global_zero:
            print(f"batch_size {size}: {size // devices} on each of {devices} devices", flush=True)

    def _trainer_in(self, folder: Path, mode: WandbMode, **kwargs: Any) -> L.Trainer:
        for name in ("best", "latest"):
            self.config_init[name].dirpath = str(folder.resolve() / "checkpoints")
        loggers = self._loggers(folder, mode)
        if self.command == "train" and loggers:
            self.trainer_defaults["callbacks"].append(LearningRateMonitor(logging_interval="step"))
        return super().instantiate_trainer(
            default_root_dir=str(folder),
            plugins=[*(self.config_init.trainer.plugins or []), WholeCheckpointIO()],
            logger=loggers,
            enable_progress_bar=sys.stdout.isatty() and self.config.trainer.enable_progress_bar is not False,
            **kwargs,
        )

    def _loggers(self, folder: Path, mode: WandbMode) -> list[Logger] | Literal[False]:
        """W&B, ``metrics.csv`` for training, and what the configuration adds."""
        added = self.config_init.trainer.logger
        if added is False:
            return False
        loggers = [] if added in (None, True) else added if isinstance(added, list) else [added]
        if self.command == "train":
            loggers = [MetricsCSV(folder), *loggers]
        if mode == "disabled":
            return loggers
        upscaler = getattr(self.datamodule, "upscaler", None)
        arm = upscaler.name if upscaler else type(self.model).__name__
        tags = [arm, *(["synthetic data"] if self.datamodule.synthetic else []), *self.config.tags]
        return [make_wandb_logger(folder, self.config.experiment, self.command, tags, mode), *loggers]


def _arguments(args: list[str] | None) -> list[str]:
    quieten()
    return list(sys.argv[1:] if args is None else args)


def _parse(args: list[str], command: Command, run: Path | None = None, **more: Any) -> SuperFERCLI:
    """Parses and builds; what is wrong with the arguments or the data ends in one line and exit code 2."""
    try:
        return SuperFERCLI(args, command, run, **more)
    except (ValueError, TypeError, OSError, MisconfigurationException) as error:
        cause: BaseException = error
        while str(cause).startswith("Does not validate against") and cause.__cause__:
            cause = cause.__cause__  # what a class says; the parser buries it in hundreds of words
        of_the_parser = str(cause).startswith(("Expected a", "Not a valid subclass"))  # of the first type it tried
        refuse(error if of_the_parser else cause)
