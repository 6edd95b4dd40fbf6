"""What a run is and how it goes on.

**A start.** `commands.train` parses the configuration, checks data and module, makes the run folder (`folder`) and the
trainer, and locks the folder. Before anything runs, `record` writes `config.yaml` and `run.json`, and every checkpoint
says whose it is (`identity`).

**While it trains.** Everything is settled at the start of a batch: the one before it is logged, validated, and its
epoch closed. That is when `checkpoints.LatestCheckpoint` saves: at the first batch of every epoch, when ten minutes
have passed, and when a scheduler wants the machine back (`preemption`). The checkpoint holds what Lightning keeps,
the place in the data (`data_position`), and each process's random numbers and running metrics (`process_state`).
Every logged row is in `metrics.csv` at once (`metrics_csv`).

**A kill** may come at any moment: files appear whole or not at all (`storage.atomic`), the lock is the kernel's and
goes with the process, and the last checkpoint is at most ten minutes of training old. SIGTERM and SIGUSR1 save before
the next step, or end a validation at once, without saving; the exit code is 75. A stop by `trainer.max_time` saves
before the next step, too, and ends there.

**A resume.** `commands.train` finds the run and locks it before it looks at anything that another process could change.
It takes the newest checkpoint that is intact, refuses settings that must not differ from those in it (`may_differ`) and
other data (`record`), and cuts `metrics.csv` back to it: those rows will be logged again. A run without a checkpoint
begins again. `record` adds the start to `run.json` when there is something to train. Lightning restores weights,
optimisers and loops; `data_position` serves the batches that are left; `process_state` puts the rest back when training
starts, after everything that draws random numbers before.

`lightning_internals` is the only module that touches private attributes of other packages.
"""
