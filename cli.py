"""The command line behind train.py, test.py and upscale.py: one LightningCLI over one flat configuration."""

import ctypes
import json
import os
import sys
import uuid
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.log_lines import LogLines
from callbacks.run_record import RunRecord
from callbacks.test_report import TestReport
from lightning_modules.upscale_only import UpscaleOnly
from models.checkpoints import CheckpointError
from runs import find_checkpoint, find_run, new_run_folder, share_with_children

Command = Literal["train", "test", "upscale"]
PROJECT = "superfer"  # in W&B


def keep_freed_memory() -> None:
    """Has glibc keep freed memory: large tensors would go back to the system and fault in again, at 2-3 times the cost.

    The same as starting the process with MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ at 16 GiB.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # not glibc
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


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
    """

    def __init__(self, args: list[str] | None, command: Command, run: Path | None = None) -> None:
        self.command, self.run_folder = command, run
        super().__init__(
            args=args,
            run=False,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=RunRecord if command == "train" else None,
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},  # the samplers share out the data themselves
            parser_kwargs={"allow_abbrev": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--experiment", type=str, required=True, help="Folder below runs, and group in W&B")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all run folders")
        parser.add_argument("--tags", type=list[str], default=[], help="Further tags in W&B")
        parser.add_lightning_class_args(ModelCheckpoint, "best")
        parser.add_lightning_class_args(ModelCheckpoint, "latest")
        shared = {"enable_version_counter": False, "save_top_k": 1}
        parser.set_defaults({f"best.{key}": value for key, value in {**shared, "filename": "best"}.items()})
        latest = {**shared, "filename": "latest", "save_on_train_epoch_end": True}
        parser.set_defaults({f"latest.{key}": value for key, value in latest.items()})
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=_seed)

    def before_instantiate_classes(self) -> None:
        keep_freed_memory()
        torch.set_float32_matmul_precision("high")
        if self.config.best.monitor is None:
            self.parser.error("best.monitor is missing: the metric that decides which checkpoint is the best")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.command != "upscale":
            self.model.check_data(self.datamodule)
        self.datamodule.check(self.command)  # all of this before a folder is made or W&B is started
        if self.command == "upscale":
            return super().instantiate_trainer(logger=False, enable_checkpointing=False, callbacks=[], **kwargs)
        if self.run_folder is None:
            self.run_folder = new_run_folder(self.config.runs, self.config.experiment, self.config.seed_everything)
        share_with_children(self.run_folder)
        self._place_checkpoints()
        trainer = super().instantiate_trainer(
            default_root_dir=str(self.run_folder),
            logger=self._loggers(),
            enable_progress_bar=sys.stdout.isatty() and self.config.trainer.enable_progress_bar is not False,
            **kwargs,
        )
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if self.command == "test":
            callbacks.append(TestReport(self.run_folder))
        elif trainer.loggers:
            callbacks.append(LearningRateMonitor(logging_interval="epoch"))
        if not sys.stdout.isatty():
            callbacks.append(LogLines())
        return trainer

    def _place_checkpoints(self) -> None:
        for name in ("best", "latest"):
            self.config_init[name].dirpath = str(Path(self.run_folder or ".") / "checkpoints")

    def _loggers(self) -> Any:
        if self.config.trainer.logger is False:
            return False
        folder = Path(self.run_folder or ".")
        upscaler = getattr(self.datamodule, "upscaler", None)
        arm = upscaler.name if upscaler else type(self.model).__name__
        online = _wandb_online()
        wandb_logger = WandbLogger(
            project=PROJECT,
            group=self.config.experiment,
            job_type=self.command,
            name=f"{self.config.experiment}_{folder.name}",
            tags=[arm, *(["synthetic data"] if self.datamodule.synthetic else []), *self.config.tags],
            save_dir=str(folder),
            offline=not online,
            id=_wandb_id(folder) if self.command == "train" else None,
            resume="allow" if online else None,
        )
        if self.command == "test":
            return [wandb_logger]
        return [wandb_logger, CSVLogger(str(folder), name="", version="", flush_logs_every_n_steps=1)]


def _wandb_online() -> bool:
    """Whether W&B may go online: a key is there or WANDB_MODE asks for it; never a question at the terminal."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode == "online"
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "wandb" in netrc.read_text(errors="ignore"))


def _wandb_id(folder: Path) -> str:
    """The W&B id of a run that is continued, or a new one."""
    record = folder / "run.json"
    saved = json.loads(record.read_text()).get("wandb_id") if record.is_file() else None
    return saved or uuid.uuid4().hex[:8]


def _arguments(args: list[str] | None) -> list[str]:
    return list(sys.argv[1:] if args is None else args)


def _take_option(args: list[str], name: str) -> tuple[str | None, list[str]]:
    """Value of ``--name VALUE`` or ``--name=VALUE`` and the other arguments."""
    for place, arg in enumerate(args):
        if arg == name:
            if place + 1 == len(args):
                raise SystemExit(f"error: {name} needs a value: a run folder or a checkpoint in one")
            return args[place + 1], args[:place] + args[place + 2 :]
        if arg.startswith(f"{name}="):
            return arg.removeprefix(f"{name}="), args[:place] + args[place + 1 :]
    return None, args


def _parse(args: list[str], command: Command, run: Path | None = None) -> SuperFERCLI:
    """Parses and builds; what is wrong with the arguments or the data ends in one line and exit code 2."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
        try:
            return SuperFERCLI(args, command, run)
        except (ValueError, FileNotFoundError, CheckpointError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error


def _existing(path: str) -> Path:
    try:
        return find_run(path)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def train(args: list[str] | None = None) -> Path:
    """Trains what the configuration describes; ``--resume RUN`` continues a run in its folder.

    Args:
        args: Command line; None takes ``sys.argv``.

    Returns:
        The run folder.
    """
    resumed, arguments = _take_option(_arguments(args), "--resume")
    run, checkpoint = None, None
    if resumed is not None:
        run = _existing(resumed)
        checkpoint = find_checkpoint(run, ("latest.ckpt", "best.ckpt"))
        arguments = ["--config", str(run / "config.yaml"), *arguments]
    cli = _parse(arguments, "train", run)
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    finally:
        share_with_children(None)
        _finish(cli)
    return Path(cli.trainer.default_root_dir)


def test(args: list[str] | None = None) -> Path:
    """Tests a checkpoint on one split: ``--ckpt_path RUN_OR_FILE [--split train|val|test]``, then any overrides.

    Args:
        args: Command line; None takes ``sys.argv``.

    Returns:
        The run folder, which now holds ``metrics_{split}.json`` and ``predictions_{split}.csv``.
    """
    path, arguments = _take_option(_arguments(args), "--ckpt_path")
    split, arguments = _take_option(arguments, "--split")
    if path is None:
        print("error: --ckpt_path is missing: a run folder or a checkpoint in one", file=sys.stderr)
        raise SystemExit(2)
    run = _existing(path)
    one_device = ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]  # exact and simple
    chosen = [f"--data.test_split={split or 'test'}"]
    cli = _parse(["--config", str(run / "config.yaml"), *one_device, *chosen, *arguments], "test", run)
    try:
        cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=find_checkpoint(path), weights_only=True)
    finally:
        share_with_children(None)
        _finish(cli)
    return run


def upscale(args: list[str] | None = None) -> Path | None:
    """Enlarges the data set of a classifier configuration into its cache, on any number of devices.

    Args:
        args: Command line; None takes ``sys.argv``.

    Returns:
        The folder of the cache, or None where the upscaler needs none.
    """
    cli = _parse(_arguments(args), "upscale")
    cli.trainer.predict(UpscaleOnly(), datamodule=cli.datamodule)
    folder = cli.datamodule.cache_folder
    if cli.trainer.is_global_zero:
        print(f"enlarged images: {folder}" if folder else f"{cli.datamodule.upscaler.name} needs no cache")
    return folder


@rank_zero_only
def _finish(cli: SuperFERCLI) -> None:
    """Closes W&B, so that the next run of this process is another one, and says where everything is."""
    import wandb

    wandb.finish()
    folder = Path(cli.trainer.default_root_dir)
    print(f"run folder: {folder}")
    offline = sorted((folder / "wandb").glob("offline-run-*")) if (folder / "wandb").is_dir() else []
    if offline:
        print(f"to upload to W&B: wandb sync {folder / 'wandb'}/offline-run-*")
