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
import uuid
from collections.abc import Callable
from typing import Any

import lightning as L
import wandb
from torch.distributed import PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

from callbacks.latest_checkpoint import EXIT_REQUEUE, PreemptedError
from callbacks.run_record import RunRecord

INTERVAL = 1.0  # seconds between two signs of life
SILENCE = 15.0  # seconds without one after which a process counts as dead
GRACE = 3.0  # seconds for a process to end by itself, or to print where it stands
# What the backends say to a process whose partner has gone.
PARTNER_GONE = re.compile("gloo|nccl|connection|peer|socket|broken pipe|timed out", re.IGNORECASE)
VERDICT = "verdict"
ENDED, PREEMPTED, FAILED, LOST = "has ended", "was told to stop", "has failed", "has lost a partner"
Verdict = tuple[str, list[int]]  # what is wrong, and with which ranks


class RankWatch(L.Callback):
    """Watches the processes of a training; does nothing where there is one only.

    A process that was killed ends the job within seconds on the node of rank 0, and after ``SILENCE`` elsewhere; one
    that stands still ends it after ``stuck_minutes``, and prints its stack if it still can. ``run.json`` and W&B get
    the reason from rank 0, as long as that lives.

    Args:
        stuck_minutes: for which no process gets from one mark of a batch (start, backward pass, end) to the next. Less
            than the process group's own timeout (30 unless the strategy says otherwise), which names nobody.
    """

    def __init__(self, stuck_minutes: float = 10.0) -> None:
        if stuck_minutes <= 0:
            raise ValueError(f"stuck_minutes is {stuck_minutes}, needed is more than 0")
        self.stuck_after = stuck_minutes * 60
        self.watch: Watch | None = None
        self._marks = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1:
            launcher: Any = trainer.strategy.launcher
            _take_over()
            # torchrun keeps one store for all its restarts: what was said in an earlier one must not be read again.
            name = trainer.strategy.broadcast(uuid.uuid4().hex)
            store = _get_default_store()
            self.watch = Watch(
                # The original may be waiting for a key.
                store=PrefixStore(f"rank watch {name}", store.clone() if hasattr(store, "clone") else store),
                rank=trainer.global_rank,
                world_size=trainer.world_size,
                stuck_after=self.stuck_after,
                children=getattr(launcher, "procs", []),
                record=lambda status, code: _record(trainer, status, code),
            )
            self.watch.tell()  # so that it can be named, however early it dies
            self.watch.start()

    def _mark(self, trainer: L.Trainer, what: str, validation: int = 0) -> None:
        """Marks grow; DICGAN passes the backward pass twice in a batch."""
        self._marks += 1
        if self.watch:
            batches = trainer.fit_loop.total_batch_idx
            words = f"epoch {trainer.current_epoch}, batch {batches}, {what}"
            self.watch.mark = ([batches, validation, 0 if validation else self._marks], words)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._marks = 0
        self._mark(trainer, "forward pass")

    def on_before_backward(self, trainer: L.Trainer, *_: Any) -> None:
        self._mark(trainer, "backward pass")

    def on_after_backward(self, trainer: L.Trainer, *_: Any) -> None:
        self._mark(trainer, "after the backward pass")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._mark(trainer, "done")

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._mark(trainer, f"validation batch {batch_idx}", validation=1 + batch_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        # Ranks may have a batch more or less; the first to get here wait for the others in the metrics.
        self._mark(trainer, "end of validation", validation=sys.maxsize)

    def on_train_end(self, *_: Any) -> None:
        if self.watch:
            self.watch.stop(ENDED)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self.watch is None:
            return
        said = f"{type(exception).__name__}: {' '.join(str(exception).split())}"
        if isinstance(exception, (PreemptedError, KeyboardInterrupt)):
            self.watch.blame_failed()  # torchrun and SLURM send the others SIGTERM when one has failed
            self.watch.stop(PREEMPTED)
        elif isinstance(exception, RuntimeError) and PARTNER_GONE.search(str(exception)):
            self.watch.find_culprit(said)
        else:
            self.watch.stop(f"{FAILED}: {said}")


class Watch(threading.Thread):
    """The thread of one process.

    Args:
        store: a key-value store that all processes share (`torch.distributed.Store`).
        rank: of this process.
        world_size: number of processes.
        stuck_after: seconds without progress.
        children: processes of other ranks that this one has started (`subprocess.Popen`).
        record: writes down status and exit code, on rank 0.

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
        record: Callable[[str, int], None],
    ) -> None:
        super().__init__(daemon=True, name="rank-watch")
        self.store, self.rank, self.stuck_after = store, rank, stuck_after
        self.children, self.record = children, record
        self.silence = min(SILENCE, max(stuck_after, 5 * INTERVAL))
        self.mark: tuple[list[int], str] = ([-1, 0, 0], "start")
        self._end_said: str | None = None
        self._beat = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._looked = time.monotonic()
        watched = range(world_size) if rank == 0 else [0]
        unknown = {"where": "?", "mark": self.mark, "beat": 0, "end": None}
        self._seen: dict[int, dict[str, Any]] = dict.fromkeys(watched, unknown)
        self._beaten = dict.fromkeys(watched, time.monotonic())
        self._moved = dict.fromkeys(watched, time.monotonic())

    def run(self) -> None:
        while not self._ended.wait(INTERVAL):
            patience = threading.Timer(self.silence, self._end, (self._store_is_gone("no answer"), [0]))
            patience.daemon = True  # a store that has lost its power does not even refuse to answer
            patience.start()
            self.look()
            patience.cancel()

    def stop(self, end: str) -> None:
        """Says how this process ends by itself, and watches no more."""
        self._ended.set()
        with contextlib.suppress(RuntimeError):  # the store may have gone before
            self.tell(end)

    def look(self) -> None:
        """One round: tells, reads, and ends the process if there is a reason."""
        now, before = time.monotonic(), self._looked
        self._looked = now
        if now - before > 3 * INTERVAL:  # this process was asleep, and with it perhaps the whole machine
            self._beaten = dict.fromkeys(self._beaten, now)
            self._moved = dict.fromkeys(self._moved, now)
        try:
            self.tell()
            verdict = self._read_verdict() or self._judge()
        except RuntimeError as error:
            verdict = self._store_is_gone(type(error).__name__), [0]
        if verdict and not self._ended.is_set():
            self._end(*verdict)

    def tell(self, end: str | None = None) -> None:
        """Says that this process lives, and where it is, or how it ends."""
        with self._lock:
            self._beat += 1
            self._end_said = end or self._end_said
            where = f"{socket.gethostname()}, process {os.getpid()}"
            state = {"beat": self._beat, "mark": self.mark, "end": self._end_said, "where": where}
            self.store.set(f"rank {self.rank}", json.dumps(state))

    def find_culprit(self, error: str) -> None:
        """Waits for the verdict, which ends the process; without one it fails with its own error."""
        with contextlib.suppress(RuntimeError):
            self.tell(f"{LOST}: {error}")
        self.silence = min(self.silence, 2 * GRACE)
        self._ended.wait(SILENCE + 2 * GRACE)
        self.stop(f"{FAILED}: {error}")

    def blame_failed(self) -> None:
        """Ends the process if it is only told to stop because another one has failed."""
        with contextlib.suppress(RuntimeError):
            verdict = self._read_verdict()
            for rank in self._seen:
                self._read(rank)
                if str(self._seen[rank]["end"]).startswith(FAILED):
                    verdict = verdict or (self._say(rank, self._seen[rank]["end"]), [rank])
            if verdict:
                self._end(*verdict)

    def _store_is_gone(self, how: str) -> str:
        """The store lives in the process of rank 0, or with torchrun's agent there."""
        return f"rank 0 has died or stands still, or its node: the job's store is gone ({how})"

    def _read_verdict(self) -> Verdict | None:
        if self.rank == 0 or not self.store.check([VERDICT]):
            return None
        verdict, culprits = json.loads(self.store.get(VERDICT))
        return verdict, culprits

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

    def _judge(self) -> Verdict | None:
        """What is wrong with the processes that this one watches, and with which."""
        for rank in self._seen:
            self._read(rank)
        others = [rank for rank in self._seen if rank != self.rank]
        for rank in others:
            if found := self._dead(rank):
                return self._say(rank, found), [rank]
        lost = [rank for rank in others if str(self._seen[rank]["end"]).startswith(LOST)]
        if lost:  # somebody else is to blame, and will be silent soon; if not, these are
            self.silence = min(self.silence, 2 * GRACE)
            if self._silent(lost[0]) > SILENCE:
                return self._say(lost[0], self._seen[lost[0]]["end"]), lost
        stands_for = time.monotonic() - max(self._moved.values())
        if self.rank == 0 and stands_for > self.stuck_after:
            last = min(state["mark"][0] for state in self._seen.values())
            stuck = [rank for rank, state in self._seen.items() if state["mark"][0] == last]
            return "; ".join(self._say(rank, f"has been stuck for {stands_for:.0f} s") for rank in stuck), stuck
        return None

    def _silent(self, rank: int) -> float:
        """Seconds since a process last came further, or told how it ends."""
        return time.monotonic() - self._moved[rank]

    def _dead(self, rank: int) -> str | None:
        """How a process has ended before this one, or None."""
        end, beaten = self._seen[rank]["end"], time.monotonic() - self._beaten[rank]
        child = self.children[rank - 1] if 0 < rank <= len(self.children) else None
        code = child.poll() if child else None
        if end and not end.startswith(LOST):
            # This process may be about to end for the same reason, or in the same good order.
            waits = GRACE if end.startswith(FAILED) else SILENCE
            return end if beaten > waits else None
        if code:
            return f"has died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
        # A process that has not spoken yet may still be on its way.
        limit = self.silence if self._seen[rank]["beat"] else max(self.silence, self.stuck_after)
        return f"has given no sign of life for {beaten:.0f} s" if beaten > limit else None

    def _say(self, rank: int, what: str) -> str:
        state = self._seen[rank]
        return f"rank {rank} ({state['where']}) {what}; its last mark: {state['mark'][1]}"

    def _end(self, verdict: str, culprits: list[int]) -> None:
        """Ends this process without waiting for anybody; rank 0 tells the others first."""
        code = EXIT_REQUEUE if PREEMPTED in verdict else 1
        try:
            if self.rank == 0:
                print(f"error: {verdict}. The job ends; continue it with --resume", file=sys.stderr, flush=True)
                status = "preempted" if code == EXIT_REQUEUE else f"failed: {verdict}"
                recording = threading.Thread(target=self.record, args=(status, code), daemon=True)
                recording.start()
                with contextlib.suppress(RuntimeError):
                    self.store.set(VERDICT, json.dumps([verdict, culprits]))
            else:
                print(f"rank {self.rank} ends: {verdict}", file=sys.stderr, flush=True)
            if self.rank in culprits:
                faulthandler.dump_traceback(all_threads=True)
            if self.rank == 0:
                time.sleep(GRACE)
                recording.join(10 * GRACE)
                for child in self.children:
                    child.kill()
        finally:
            os._exit(code)


def _take_over() -> None:
    """Lightning's own observer of child processes kills this one, too, before it can say anything."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._run = lambda: True  # type: ignore[attr-defined]  # its next look is its last


def _record(trainer: L.Trainer, status: str, code: int) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunRecord):
            callback.end(trainer, status)
    wandb.finish(exit_code=code)
