"""Train what the configurations describe, or resume a run; the same as `superfer train`.

    python train.py --config configs/classifier/bilinear.yaml
    python train.py --resume RUN

Read next: `commands/train.py`, then `run_state/__init__.py` for how a run goes on.
"""

from commands.ending import importing

with importing():
    from torch.distributed.elastic.multiprocessing.errors import record

    from commands.train import train

if __name__ == "__main__":
    record(train)()  # torchrun prints the traceback of the rank that failed first
