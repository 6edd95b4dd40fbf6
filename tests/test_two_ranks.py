"""Every shipped training on two processes, with its own intervals and `configs/hardware/ddp.yaml`; none may hang.

The processes are started once, as torchrun would, and train one configuration after the other:

    RANK=0 WORLD_SIZE=2 ... python -m tests.test_two_ranks JOBS.json
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from commands.train import train
from run_state.folder import status
from storage.checkpoints import read_checkpoint
from tests.test_torchrun import free_port
from tests.tiny_runs import (
    REPOSITORY,
    as_shipped,
    classifier_options,
    config,
    generator_options,
    read_csv,
    write_generator,
)

PATIENCE = 300  # seconds for all of them; one that hangs takes those after it along


class Expected(NamedTuple):
    """How a training ends: batches, and the epochs whose rows have a figure of validation."""

    steps: int
    epochs: str
    more: tuple[str, ...] = ()


COUNTED = ("--trainer.max_steps=9",)  # in two epochs of six batches; published are 80,000 and more
CLASSIFIER = ("--trainer.sync_batchnorm=false",)  # its layers exist for GPUs only
TINY = (*CLASSIFIER, "--model=tests.tiny_runs.TinyClassifier")
TRAININGS = {
    "generator/hourglass": Expected(9, "", COUNTED),  # its interval is longer than what is trained here
    "generator/dic": Expected(9, "01", (*COUNTED, "--trainer.val_check_interval=4")),
    "generator/dicgan": Expected(9, "01", (*COUNTED, "--trainer.val_check_interval=4")),
    "generator/hourglass_small": Expected(18, "7"),
    "generator/dic_small": Expected(18, "7"),
    "generator/dicgan_small": Expected(18, "1357"),
    "generator/hourglass_ferplus": Expected(18, "37"),
    "generator/dic_ferplus": Expected(18, "012345678"),
    "generator/dicgan_small in bfloat16": Expected(18, "1357", ("--trainer.precision=bf16-mixed",)),
    "classifier/bilinear": Expected(4, "01", CLASSIFIER),
    "classifier/bilinear in bfloat16": Expected(4, "01", (*TINY, "--trainer.precision=bf16-mixed")),
    "classifier/bilinear reduced": Expected(4, "01", TINY),
    "classifier/bilinear twice an epoch": Expected(4, "0011", (*TINY, "--trainer.val_check_interval=0.5")),
    "classifier/bilinear every second epoch": Expected(4, "1", (*TINY, "--trainer.check_val_every_n_epoch=2")),
    "classifier/dic": Expected(4, "01", CLASSIFIER),
}


def arguments(name: str, ferplus: Path, faces: Path, folder: Path) -> list[str]:
    """Only sizes are made small; published trainings are made short."""
    file, _, way = name.partition(" ")
    files = [file, *(["classifier/reduced"] if way == "reduced" else []), "hardware/ddp"]
    if file.startswith("classifier"):
        small = [*classifier_options(ferplus), "--trainer.max_epochs=2", f"--data.cache_dir={folder / 'cache'}"]
        if file == "classifier/dic":
            small.append(f"--data.upscaler.checkpoint={folder / 'generator.ckpt'}")
    else:
        stage = file.removeprefix("generator/").partition("_")[0]
        small = [*generator_options(faces, stage), "--trainer.max_epochs=9"]
    if COUNTED[0] in TRAININGS[name].more:
        small = [option for option in small if not option.startswith(("--trainer.max_epochs", "--trainer.limit_train"))]
    small += ["--trainer.devices=2", "--trainer.log_every_n_steps=1", f"--runs={folder / 'runs'}"]
    return [*config(*files), *as_shipped(small), *TRAININGS[name].more]


def job_of(name: str) -> str:
    return name.replace("/", "-").replace(" ", "-")


@pytest.fixture(scope="module")
def trained(tiny_ferplus: Path, tiny_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("two_ranks")
    write_generator(folder / "generator.ckpt")
    jobs = {job_of(name): arguments(name, tiny_ferplus, tiny_faces, folder) for name in TRAININGS}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    job |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    job |= {"WANDB_MODE": "disabled", "TORCHELASTIC_RUN_ID": "job"}
    with (folder / "log.txt").open("w") as log:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.test_two_ranks", str(folder / "jobs.json")],
                cwd=REPOSITORY,
                env=os.environ | job | {"RANK": rank, "LOCAL_RANK": rank},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            for rank in "01"
        ]
        try:
            for rank in ranks:
                rank.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            print("a training hangs")
        finally:
            for rank in ranks:
                if rank.poll() is None:
                    os.killpg(rank.pid, signal.SIGKILL)
    yield folder


@pytest.mark.parametrize("name", TRAININGS)
def test_as_shipped(name: str, trained: Path) -> None:
    expected = TRAININGS[name]
    found = list(trained.glob(f"runs/*/{job_of(name)}_s0"))
    assert found, (trained / "log.txt").read_text()[-3000:]
    (run,) = found
    assert status(run) == "finished", (trained / "log.txt").read_text()[-3000:]
    assert read_checkpoint(run / "checkpoints" / "latest.ckpt")["global_step"] == expected.steps
    rows = read_csv(run / "metrics.csv")
    measured = [row["epoch"] for row in rows if any(name.startswith("val/") and cell for name, cell in row.items())]
    assert measured == list(expected.epochs)


def main() -> None:
    for job, args in json.loads(Path(sys.argv[1]).read_text()).items():
        os.environ["TORCHELASTIC_RUN_ID"] = job
        print(f"{time.time():.0f} {job}", flush=True)
        train(args)


if __name__ == "__main__":
    main()
