"""A stand-in for `srun`: starts the tasks of a job on this machine with the variables that SLURM gives them.

    python -m tests.srun [--wait=SECONDS] COMMAND ...

As in a batch script: the job's own variables are in the environment. A signal goes to all tasks; the exit code is the
highest of theirs. Every node of the job has one task.
"""

import os
import signal
import subprocess
import sys
from typing import Any

import lightning as L


class Preemption(L.Callback):
    """Have SLURM preempt a job that was not requeued yet, after its fifth batch."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        first = "SLURM_RESTART_COUNT" not in os.environ
        if first and trainer.is_global_zero and trainer.fit_loop.total_batch_idx == 4:
            os.kill(os.getppid(), signal.SIGUSR1)


def main() -> None:
    """Start the tasks, pass signals on to them, and wait until all have ended."""
    command = [word for word in sys.argv[1:] if not word.startswith("--wait")]
    nodes = int(os.environ["SLURM_NNODES"])
    common = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(nodes), "SLURM_STEP_NODELIST": "127.0.0.1"}
    tasks = []

    def forward(number: int, _: object) -> None:
        for task in tasks:
            task.send_signal(number)

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, forward)
    for rank in map(str, range(nodes)):
        own = {"SLURM_PROCID": rank, "SLURM_NODEID": rank, "SLURM_LOCALID": "0", "SLURM_TASK_PID": rank}
        tasks.append(subprocess.Popen(command, env=os.environ | common | own))
    sys.exit(max(task.wait() for task in tasks))


if __name__ == "__main__":
    main()
