"""The run in Weights & Biases: a mirror of a run folder.

Row n of `metrics.csv` is step n of the run in W&B, with the time at which it was logged. W&B keeps a prefix of what it
was sent, and a run that is opened again says how long that is (`starting_step`). So the same few lines send what is
missing when a training starts, when it resumes after any kill, and in `superfer upload`, which can be killed as well.
Offline, nothing is kept for W&B: the run folder has everything.

Pictures lie in `<run folder>/<kind>/batch_<number>.png` and go with the row of their validation.
"""

import os
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L

from run_state.folder import lock
from run_state.identity import detach_copy, read_record
from run_state.lightning_internals import kill_wandb_service
from run_state.metrics_csv import Row, read_rows
from run_state.names import did_you_mean
from run_state.preemption import EXIT_REQUEUE
from storage.reading import read_mapping

if TYPE_CHECKING:  # imported when W&B is used: everything else works without it
    import wandb

PROJECT = "superfer"
TIMEOUT_S = 60.0  # of the first and the last words with W&B; without network the last would take for ever
WandbMode = Literal["online", "offline", "disabled"]
_MODES: dict[str, WandbMode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
_MODES |= {"run": "online", "dryrun": "offline"}  # W&B's older names
STEP = "trainer/global_step"  # as Lightning names it
TESTED = ("test/", "tested_on_")  # what the figures of a test are named
_ANEW = "for a new run in W&B, put another wandb_id into run.json"


def wandb_mode() -> WandbMode:
    """Return how W&B is to run: as `WANDB_MODE` says, else online if there is a key."""
    asked = os.environ.get("WANDB_MODE")
    if not asked:
        return "online" if find_spec("wandb") and _logged_in() else "offline"
    if asked not in _MODES:
        raise ValueError(f"WANDB_MODE is {asked!r}, expected one of {', '.join(_MODES)}{did_you_mean(asked, _MODES)}")
    if _MODES[asked] == "online":
        require_key()
    return _MODES[asked]


def require_key() -> None:
    """Refuse to go on without W&B's package or a key; W&B itself would ask at the terminal."""
    if not find_spec("wandb"):
        raise ValueError("wandb is not installed; pip install wandb")
    if not _logged_in():
        raise ValueError("W&B has no key; set WANDB_API_KEY, or log in with `wandb login` (or WANDB_MODE=offline)")


def _logged_in() -> bool:
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except (wandb.errors.Error, ValueError) as error:
        raise ValueError(f"W&B refuses its key: {error}") from error


def wandb_identity(earlier: Mapping[str, Any], renewed: bool = False) -> dict[str, str | None]:
    """Return which run in W&B a training belongs to: what an earlier `run.json` says, else what the environment does.

    A `renewed` one has another id than before. An agent of a sweep chooses the id, whatever is there.
    """
    chosen = os.environ.get("WANDB_RUN_ID")
    if "WANDB_SWEEP_ID" not in os.environ and earlier:
        chosen = None if renewed else earlier["wandb_id"]
    return {
        "wandb_id": chosen or uuid.uuid4().hex[:8],
        "wandb_project": earlier.get("wandb_project") or os.environ.get("WANDB_PROJECT") or PROJECT,
        "wandb_entity": earlier.get("wandb_entity", os.environ.get("WANDB_ENTITY")),
    }


class WandbError(Exception):
    """W&B cannot be reached, or refuses."""


class WandbMirror(L.Callback):
    """Open the run in W&B when a training starts, and send every row, on rank 0.

    If W&B cannot be reached, the training goes on without it; `superfer upload` sends everything later.

    Args:
        folder: the run folder; `run.json` and `config.yaml` are in it when the run is opened.
        online: whether to send anything yet.

    Attributes:
        complete: whether W&B has everything.
    """

    def __init__(self, folder: Path, online: bool) -> None:
        self.folder, self.online, self.complete = folder, online, False
        self._run: wandb.Run | None = None
        self._rows = self._sent = 0
        self._best: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (self.online and self._run is None and trainer.is_global_zero):
            return
        try:
            self.open()
        except WandbError as error:
            self.online = False
            print(f"warning: {error}; training goes on without it", file=sys.stderr, flush=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send what is missing, too, where nothing was left to train: the run was killed in its last upload."""
        self.on_train_start(trainer, pl_module)

    def open(self) -> None:
        """Open the run, and send what W&B does not have.

        Raises:
            WandbError: W&B cannot be reached, or refuses.
            ValueError: A file of the run folder is damaged.
        """
        record, settings = read_record(self.folder), read_mapping(self.folder / "config.yaml")
        self._monitor, self._mode = settings["best"]["monitor"], settings["best"]["mode"]
        rows, results = read_rows(self.folder / "metrics.csv")[1], _results(self.folder, record["run_id"])
        self._run = run = _init(self.folder, record, settings)
        self._rows, self._sent, self._best = 0, run.starting_step, {}
        try:
            self._last_step = run.summary.get(STEP)
            for row in rows:
                self.send(row)
            stale = [name for name in run.summary.keys() if name.startswith(TESTED)]  # noqa: SIM118 (not a mapping)
            run.summary.update(dict.fromkeys(stale) | self._best | results)
        except Exception as error:
            self.online = False
            self.close(exit_code=1)
            raise WandbError(_in_short(error)) from error
        print(f"W&B run: {run.url}", flush=True)

    def on_row(self, row: Row) -> None:
        """Send a row that was logged just now, as long as W&B's own process is there."""
        try:
            self.send(row)
        except Exception as error:
            self.online = False
            self.close(exit_code=1)
            print(f"warning: W&B: {_in_short(error)}; training goes on without it", file=sys.stderr, flush=True)

    def send(self, row: Row) -> None:
        """Send the next row of `metrics.csv`, unless W&B has it, and say which one is the best so far."""
        if self._run is None:
            return
        number, self._rows = self._rows, self._rows + 1
        values = _numbers(row)
        step, logged_at = int(values.pop("step", -1)), values.pop("time")
        found, best = values.get(self._monitor), self._best.get(f"best/{self._monitor}")
        better = found == found is not None and (
            best is None or (found > best if self._mode == "max" else found < best)
        )
        if better:
            self._best = {f"best/{self._monitor}": found, "best/epoch": values.get("epoch"), "best/step": step}  # type: ignore[dict-item]
            self._run.summary.update(self._best)  # W&B's own summary="max" forgets what was before a resume
        if number == self._sent - 1 and step != self._last_step:
            raise WandbError(f"W&B has a row of step {self._last_step} where metrics.csv has step {step}; {_ANEW}")
        if number < self._sent:
            return
        pictures = _pictures(self.folder, step + 1) if any(name.startswith("val/") for name in values) else {}
        place = {STEP: step, "_timestamp": logged_at}
        self._run.log({**values, **place, **pictures}, step=number)

    @property
    def missing(self) -> int:
        """How many rows W&B has that are not in `metrics.csv`: lost with a kill, and not logged again yet."""
        return max(0, self._sent - self._rows)

    def close(self, exit_code: int) -> None:
        """End the run in W&B; give up after `WANDB_FINISH_TIMEOUT` seconds."""
        if self._run is None:
            return
        run, self._run = self._run, None
        with suppress(Exception):  # a timeout, or W&B's process is gone; an upload sends the rest
            if exit_code == EXIT_REQUEUE:
                run.mark_preempting()
            run.finish(exit_code=exit_code)
            self.complete = self.online and not self.missing


def upload(folder: Path) -> None:
    """Send what W&B does not have of a run that is not being trained; a WandbError says that it has not got it all."""
    mirror = WandbMirror(folder, online=True)
    with lock(folder):
        detach_copy(folder)
        ended = str(read_record(folder).get("status"))
        mirror.open()
        mirror.close({"finished": 0, "stopped": 0, "preempted": EXIT_REQUEUE}.get(ended, 1))
    if not mirror.complete:
        more = f"W&B has {mirror.missing} rows more than metrics.csv: resume the run, or {_ANEW}"
        raise WandbError(more if mirror.missing else "W&B has not got everything yet; upload it again")


def _init(folder: Path, record: Mapping[str, Any], settings: Mapping[str, Any]) -> "wandb.Run":
    import wandb

    try:
        run = wandb.init(
            id=record["wandb_id"],
            project=record["wandb_project"],
            entity=record["wandb_entity"],
            resume="allow",
            group=record["experiment"],
            job_type="train",
            name=f"{record['experiment']}_{folder.name}",
            tags=_tags(record, settings),
            dir=folder,
            mode="online",  # said again: W&B has read its environment when it looked for a key
            settings=wandb.Settings(
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", TIMEOUT_S)),
                finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", TIMEOUT_S)),
                finish_timeout_raises=True,
                silent=True,  # what there is to say takes a line
            ),
        )
    except BaseException as error:
        if not isinstance(error, Exception):
            with suppress(Exception, SystemExit):  # teardown exits, too, if its process failed
                kill_wandb_service()
                wandb.teardown()
            raise
        wandb.teardown()  # forget the run that is half open
        raise WandbError(f"W&B cannot be reached ({_in_short(error)})") from error
    run.config.update(_config(record, settings), allow_val_change=True)
    is_classifier = record["arm"] is not None  # a generator is validated every so many batches
    for names in ("train/*", "val/*", "perf/*", "lr-*", "grad_norm*"):
        once_an_epoch = names == "perf/*" or (is_classifier and names in ("train/*", "val/*"))
        run.define_metric(names, step_metric="epoch" if once_an_epoch else STEP)
    return run


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or repr(error)


def _results(folder: Path, run_id: str) -> dict[str, float]:
    """Return the figures of every test by the majority rule, as "test/acc" and "test/acc_without_train_duplicates"."""
    figures: dict[str, float] = {}
    for path in sorted(folder.glob("metrics_*.json")):
        report = read_mapping(path)
        if report.get("run_id") != run_id:
            raise ValueError(f"{path} is of another run, {report.get('run_id')}; test this run again")
        try:
            prefix = "test/" if report["split"] == "test" else f"tested_on_{report['split']}/"
            for subset, suffix in (("all", ""), ("without_train_duplicates", "_without_train_duplicates")):
                values = report["rules"]["majority"][subset].items()
                figures |= {f"{prefix}{name}{suffix}": value for name, value in values if isinstance(value, float)}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); test the run again") from error
    return figures


def _numbers(row: Row) -> dict[str, float]:
    """Return the cells that hold numbers; a user's callback may have logged something else."""
    numbers = {}
    for name, value in row.items():
        with suppress(TypeError, ValueError):
            numbers[name] = float(value)
    return numbers


def _pictures(folder: Path, batch: int) -> dict[str, Any]:
    import wandb

    return {path.parent.name: wandb.Image(str(path)) for path in sorted(folder.glob(f"*/batch_{batch:07d}.png"))}


def _tags(record: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    kind = record["arm"] or settings["model"]["class_path"].rpartition(".")[2]
    return [kind, f"seed {record['seed']}", *(["synthetic data"] if record["synthetic"] else []), *settings["tags"]]


def _config(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what W&B shows as columns: what people filter by under short names, then the whole."""
    model, data, trainer = settings["model"]["init_args"], settings["data"]["init_args"], settings["trainer"]
    return {
        "arm": record["arm"],
        "seed": record["seed"],
        "arch": model.get("arch") or settings["model"]["class_path"].rpartition(".")[2],
        "lr": model["optimizer"]["lr"],
        "batch_size": data["batch_size"],
        "epochs": trainer["max_epochs"],
        "devices": record["starts"][-1]["devices"],
        "data": record["data_fingerprint"],
        "config": settings,
        "run": {name: value for name, value in record.items() if name not in ("status", "ended")},  # W&B has its own
    }
