"""Ends a training on several devices when one of its processes has died, failed or stands still, and says which.

Processes that wait for each other inside a collective operation cannot say whom they wait for. So a thread of each
tells the job's key-value store that the process lives and where it is. The first process (rank 0) reads what all say;
the others watch only rank 0, so the traffic grows with the number of processes, not with its square.
"""

import contextlib
import faulthandler
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import wandb
from torch.distributed.distributed_c10d import _get_default_store

from callbacks.latest_checkpoint import PreemptedError
from callbacks.run_record import RunRecord

INTERVAL = 1.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one after which a process counts as dead
GRACE = 3.0  # seconds for the others to end by themselves, and for a stuck process to print where it stands
# What the backends say to a process whose partner has gone.
PARTNER_GONE = re.compile("gloo|nccl|connection|peer|socket|broken pipe|timed out", re.IGNORECASE)
VERDICT, ENDED = "verdict", "has ended"


class RankWatch(L.Callback):
    """Watches the processes of a training; does nothing where there is one only.

    A process that has been killed ends the job within seconds, on any node (within ``SILENCE`` where its node is gone);
    one that stands still ends it after ``stuck_minutes``, and prints its stack if it still can. ``run.json`` and W&B
    get the reason from rank 0, as long as that lives.

    Args:
        stuck_minutes: for which a process may stay between two marks of a batch (start, backward pass, end).
    """

    def __init__(self, stuck_minutes: float = 30.0) -> None:
        if stuck_minutes <= 0:
            raise ValueError(f"stuck_minutes is {stuck_minutes}, needed is more than 0")
        self.stuck_after = stuck_minutes * 60
        self.watch: Watch | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1:
            launcher: Any = trainer.strategy.launcher
            _take_over()
            self.watch = Watch(
                store=_get_default_store(),
                rank=trainer.global_rank,
                world_size=trainer.world_size,
                stuck_after=self.stuck_after,
                children=getattr(launcher, "procs", []),
                record=lambda verdict: _record(trainer, verdict),
            )
            self.watch.start()

    def _mark(self, trainer: L.Trainer, phase: int, what: str, batch: int = 0) -> None:
        if self.watch:
            batches = trainer.fit_loop.total_batch_idx
            self.watch.mark = ([batches, phase, batch], f"epoch {trainer.current_epoch}, batch {batches}, {what}")

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._mark(trainer, 0, "forward pass")

    def on_before_backward(self, trainer: L.Trainer, *_: Any) -> None:
        self._mark(trainer, 1, "backward pass")

    def on_after_backward(self, trainer: L.Trainer, *_: Any) -> None:
        self._mark(trainer, 2, "optimizer step")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._mark(trainer, 3, "done")

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._mark(trainer, 4, f"validation batch {batch_idx}", batch_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._mark(trainer, 5, "end of validation")  # the first to get here wait for the others in the metrics

    def on_train_end(self, *_: Any) -> None:
        if self.watch:
            self.watch.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self.watch is None:
            return
        if isinstance(exception, (PreemptedError, KeyboardInterrupt)):  # all processes end, and in good order
            self.watch.stop()
        elif isinstance(exception, RuntimeError) and PARTNER_GONE.search(str(exception)):
            self.watch.find_culprit()  # ends the process if there is one
        else:
            self.watch.stop(f"has failed: {type(exception).__name__}: {' '.join(str(exception).split())}")


class Watch(threading.Thread):
    """The thread of one process.

    Args:
        store: the key-value store of the job (`torch.distributed.Store`).
        rank: of this process.
        world_size: number of processes.
        stuck_after: seconds without progress.
        children: processes of other ranks that this one has started (`subprocess.Popen`).
        record: writes the verdict down, on rank 0.

    Attributes:
        mark: how far this process has come, as numbers that grow and in words.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        stuck_after: float,
        children: list[Any],
        record: Callable[[str], None],
    ) -> None:
        super().__init__(daemon=True, name="rank-watch")
        self.store = store.clone() if hasattr(store, "clone") else store  # the original may be waiting for a key
        self.rank, self.world_size, self.stuck_after = rank, world_size, stuck_after
        self.children, self.record = children, record
        self.silence = min(SILENCE, stuck_after)
        self.mark: tuple[list[int], str] = ([-1, 0, 0], "start")
        self._beat = 0
        self._ended = threading.Event()
        watched = range(world_size) if rank == 0 else [0]
        unknown = {"where": "?", "mark": self.mark, "beat": 0, "end": None}
        self._seen: dict[int, dict[str, Any]] = dict.fromkeys(watched, unknown)
        self._beaten = dict.fromkeys(watched, time.monotonic())
        self._moved = dict.fromkeys(watched, time.monotonic())

    def run(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.look()

    def stop(self, end: str = ENDED) -> None:
        """Says how this process ends by itself, and watches no more."""
        self._ended.set()
        with contextlib.suppress(Exception):  # the job's store may have gone before
            self.tell(end)

    def look(self) -> None:
        """One round: tells, reads, and ends the process if there is a reason."""
        try:
            self.tell()
            verdict, culprits = self._read_verdict() or self._judge() or (None, [])
        except Exception as error:  # the store lives in the process of rank 0, or with torchrun's agent
            verdict, culprits = f"rank 0 has died, or its node ({type(error).__name__} in the job's store)", [0]
        if verdict and not self._ended.is_set():
            self._end(verdict, culprits)

    def tell(self, end: str | None = None) -> None:
        """Says that this process lives, and where it is, or how it has ended."""
        self._beat += 1
        where = f"{socket.gethostname()}, process {os.getpid()}"
        state = {"beat": self._beat, "mark": self.mark, "end": end, "where": where}
        self.store.set(f"rank {self.rank}", json.dumps(state))

    def find_culprit(self) -> None:
        """Waits for the verdict on a partner that has gone; without one the process ends with its own error."""
        self.silence = min(self.silence, 2 * GRACE)
        self._ended.wait(3 * GRACE)
        self._ended.set()

    def _read_verdict(self) -> tuple[str, list[int]] | None:
        if self.rank == 0 or not self.store.check([VERDICT]):
            return None
        verdict, culprits = json.loads(self.store.get(VERDICT))
        return verdict, culprits

    def _judge(self) -> tuple[str, list[int]] | None:
        """What is wrong with the processes that this one watches, and with which."""
        for rank in self._seen:
            self._read(rank)
        now = time.monotonic()
        for rank, state in self._seen.items():
            child = self.children[rank - 1] if 0 < rank <= len(self.children) else None
            code = child.poll() if child else None
            if state["end"] == ENDED or rank == self.rank:
                continue
            if state["end"]:
                self._ended.wait(GRACE)  # this process may be about to end for the same reason
                return self._say(rank, state["end"]), [rank]
            if code:
                return self._say(rank, f"has died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"), [rank]
            if now - self._beaten[rank] > self.silence:
                return self._say(rank, f"has given no sign of life for {now - self._beaten[rank]:.0f} s"), [rank]
        stands_for = now - max(self._moved.values())
        if self.rank == 0 and stands_for > self.stuck_after:
            last = min(state["mark"][0] for state in self._seen.values())
            stuck = [rank for rank, state in self._seen.items() if state["mark"][0] == last]
            return "; ".join(self._say(rank, f"has been stuck for {stands_for:.0f} s") for rank in stuck), stuck
        return None

    def _read(self, rank: int) -> None:
        """Notes what a process says, and when it last said something new."""
        if not self.store.check([f"rank {rank}"]):
            return
        state, seen = json.loads(self.store.get(f"rank {rank}")), self._seen[rank]
        if state["beat"] != seen["beat"]:
            self._beaten[rank] = time.monotonic()
        if state["mark"] != seen["mark"]:
            self._moved[rank] = time.monotonic()
        self._seen[rank] = state

    def _say(self, rank: int, what: str) -> str:
        state = self._seen[rank]
        return f"rank {rank} ({state['where']}) {what}; its last mark: {state['mark'][1]}"

    def _end(self, verdict: str, culprits: list[int]) -> None:
        """Ends this process without waiting for anybody; rank 0 tells the others first."""
        if self.rank in culprits:
            faulthandler.dump_traceback(all_threads=True)
        if self.rank == 0:
            self.store.set(VERDICT, json.dumps([verdict, culprits]))
            print(f"error: {verdict}. The job ends; continue it with --resume", file=sys.stderr, flush=True)
            recording = threading.Thread(target=self.record, args=(verdict,), daemon=True)
            recording.start()
            time.sleep(GRACE)
            recording.join(10 * GRACE)
            for child in self.children:
                child.kill()
        else:
            print(f"rank {self.rank} ends: {verdict}", file=sys.stderr, flush=True)
        os._exit(1)


def _take_over() -> None:
    """Lightning's own observer of child processes kills this one, too, before it can say anything."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._run = lambda: True  # type: ignore[attr-defined]  # its next look is its last


def _record(trainer: L.Trainer, verdict: str) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunRecord):
            callback.end(trainer, f"failed: {verdict}")
    wandb.finish(exit_code=1)
