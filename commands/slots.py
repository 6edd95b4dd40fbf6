"""Work on the cells of an experiment, several at a time, each in processes of its own.

Cells share nothing but the machine. One that fails is noted, and the others go on; when this process is told to end, or
is killed, the cells are told to end, and save.
"""

import ctypes
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from commands.cells import Cell
from commands.runs import Progress, span

_PROGRAM = Path(__file__).resolve().parents[1] / "superfer.py"
_POLL_S = 0.5
_REDRAW_S, _REPORT_S = 2.0, 300.0  # how often the state is shown: at a terminal, in a file
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def share_out(count: int | None) -> list[dict[str, str]]:
    """Return the environment of each slot: its GPUs, and its share of the cores as threads.

    Args:
        count: how many slots; None means one for each GPU, or one if there is none.
    """
    if count is not None and count < 1:
        raise ValueError(f"--slots is {count}, expected at least 1")
    gpus = _gpus()
    count = count or len(gpus) or 1
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    slots = []
    for slot in range(count):
        own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        if gpus:  # with more slots than GPUs, some share one
            own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot::count] or [gpus[slot % len(gpus)]])
        slots.append(own)
    return slots


def _gpus() -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch  # takes seconds

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


@dataclass(frozen=True)
class Job:
    """A process that works on a cell."""

    cell: Cell
    command: list[str]  # verb and arguments
    slot: int
    process: subprocess.Popen[bytes]


class Runner:
    """Work on cells until each is done or has failed.

    Args:
        cells: what others need comes first, then what takes longest, as far as that is known, then as they are here.
        slots: environment of each slot.
        logs: folder for what the processes print, a file for each cell.

    Attributes:
        done: finished cells, with those that were finished before.
        failed: cells that failed or need one that has, with the reason.
    """

    def __init__(self, cells: Sequence[Cell], slots: Sequence[dict[str, str]], logs: Path) -> None:
        self.slots, self.logs = slots, logs
        self.done = [cell for cell in cells if cell.next_command() is None]
        self.failed: dict[Cell, str] = {}
        self._pending = [cell for cell in cells if cell not in self.done]
        self._jobs: list[Job] = []
        self._progress: dict[Cell, Progress | None] = dict.fromkeys(cells)
        for cell in cells:
            self._look(cell)
        self._shown_at, self._shown_lines = time.monotonic(), 0

    def print_plan(self) -> None:
        """Say which cells are done, and how long the others are expected to take."""
        cells = [*self.done, *self._pending]
        width = max(len(cell.name) for cell in cells)
        for cell in sorted(cells, key=lambda cell: cell.name):
            print(f"  {cell.name:<{width}}  {self._plan(cell)}")
        print(self._summary(), flush=True)

    def _plan(self, cell: Cell) -> str:
        if cell in self.done:
            return "done"
        progress, left = self._progress[cell], self._expected_s(cell)
        what = f"to resume after epoch {progress.epochs}" if progress and progress.epochs else "to train"
        return what if left is None else f"{what}, about {span(left)}" if left else "to finish"

    def run(self) -> None:
        """Work until nothing is left to do; a signal or an error ends the processes first."""
        try:
            while self._pending or self._jobs:
                for job in [job for job in self._jobs if job.process.poll() is not None]:
                    self._end(job)
                self._fill_slots()
                self._show()
                time.sleep(_POLL_S)
        finally:
            for job in self._jobs:
                job.process.terminate()
            for job in self._jobs:
                job.process.wait()

    def _fill_slots(self) -> None:
        free = [slot for slot in range(len(self.slots)) if slot not in {job.slot for job in self._jobs}]
        needed = {stage for cell in self._pending for stage in cell.stages.values()}
        for cell in sorted(self._pending, key=lambda cell: (cell not in needed, -(self._expected_s(cell) or 0))):
            if broken := [stage.name for stage in cell.stages.values() if stage in self.failed]:
                self._pending.remove(cell)
                self._fail(cell, f"needs {broken[0]}, which failed")
            elif free and all(stage in self.done for stage in cell.stages.values()) and not cell.is_running():
                self._pending.remove(cell)
                self._go_on(cell, free.pop(0))

    def _go_on(self, cell: Cell, slot: int, before: Sequence[str] = ()) -> None:
        """Start the next command of a cell, if there is one, and it is not the one `before`, that has just ended."""
        try:
            command = cell.next_command()
        except (ValueError, OSError) as error:
            self._fail(cell, str(error))
            return
        if command is None:
            self.done.append(cell)
            self._say(f"{cell.name}: done")
        elif command == before:
            self._fail(cell, f"`superfer {command[0]}` ended without a result")
        else:
            self._jobs.append(Job(cell, command, slot, self._start(cell, command, slot)))
            self._say(f"{cell.name}: {_doing(command)}")

    def _start(self, cell: Cell, command: Sequence[str], slot: int) -> subprocess.Popen[bytes]:
        with self._log(cell).open("a") as log:
            log.write(f"\n$ superfer {shlex.join(command)}\n")
            log.flush()
            return subprocess.Popen(
                [sys.executable, str(_PROGRAM), *command],
                env=os.environ | self.slots[slot],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_follow_the_runner,
            )

    def _end(self, job: Job) -> None:
        self._jobs.remove(job)
        self._look(job.cell)
        if job.process.returncode == 0:
            self._go_on(job.cell, job.slot, job.command)
        else:
            log, code = self._log(job.cell), job.process.returncode
            last_line = log.read_text(errors="replace").strip().splitlines()[-1]
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else last_line
            self._fail(job.cell, f"{reason} ({log})")

    def _look(self, cell: Cell) -> None:
        with suppress(ValueError):  # a damaged file is for the cell's next command to report
            self._progress[cell] = cell.progress()

    def _fail(self, cell: Cell, reason: str) -> None:
        self.failed[cell] = reason
        self._say(f"{cell.name}: FAILED: {reason}")

    def _log(self, cell: Cell) -> Path:
        return self.logs / f"{cell.name.replace(', seed ', '_s')}.log"

    def _expected_s(self, cell: Cell) -> float | None:
        """Return the seconds that a cell's training takes from here, judged by others of its arm; None: unknown."""
        if cell in self.done:
            return 0.0
        own = self._progress[cell]
        if own and (left := own.left_s()) is not None:
            return left
        alike = [known for other, known in self._progress.items() if other.arm == cell.arm and known]
        whole = [known.all_epochs * known.epoch_s for known in alike if known.all_epochs and known.epoch_s]
        return statistics.mean(whole) if whole else None

    def _summary(self) -> str:
        left = [self._expected_s(cell) for cell in [*self._pending, *(job.cell for job in self._jobs)]]
        known = [seconds for seconds in left if seconds is not None]
        count = f"{len(self.done)} of {len(self._progress)} cells are done"
        if not left or not known:
            return count
        return f"{count}, about {span(statistics.mean(known) * len(left) / len(self.slots))} of training left"

    def _show(self) -> None:
        """Show a line for each cell at work and one for all, again and again."""
        at_terminal = sys.stdout.isatty()
        if time.monotonic() - self._shown_at < (_REDRAW_S if at_terminal else _REPORT_S):
            return
        for job in self._jobs:
            self._look(job.cell)
        lines = [f"{job.cell.name}: {_doing(job.command, self._progress[job.cell])}" for job in self._jobs]
        width = shutil.get_terminal_size().columns if at_terminal else None  # a line that wraps could not be replaced
        self._say(*(line[:width] for line in [*lines, self._summary()]))
        self._shown_lines = len(lines) + 1 if at_terminal else 0

    def _say(self, *lines: str) -> None:
        """Print lines, over those that are shown at a terminal."""
        above = f"\x1b[{self._shown_lines}F\x1b[J" if self._shown_lines else ""
        print(above + "\n".join(lines), flush=True)
        self._shown_at, self._shown_lines = time.monotonic(), 0


def _follow_the_runner() -> None:
    """Leave Ctrl-C to the runner, which then ends this process with SIGTERM; so does the kernel if the runner dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _doing(command: Sequence[str], progress: Progress | None = None) -> str:
    if command[0] == "test":
        return f"testing on {command[-1]}"
    if progress is None or not progress.epochs:
        return "training"
    value = "" if progress.last is None else f", {progress.metric} {progress.last:.4f}"
    left = span(progress.left_s(time.time()))
    return f"epoch {progress.epochs} of {progress.all_epochs or '?'}{value}, {left} left"
