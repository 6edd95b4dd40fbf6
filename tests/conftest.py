"""What every test stands on: nothing of this machine, few threads, and two tiny synthetic data sets made once."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# All of this before anything else is imported: W&B makes folders and albumentations calls home at that moment.
OF_THE_SHELL = ("SLURM_", "TORCHELASTIC_", "WANDB_", "PL_", "SUPERFER_", "MASTER_")  # a job's, in which the tests run
OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK")
for name in [name for name in os.environ if name.startswith(OF_THE_SHELL) or name in OF_A_RANK]:
    del os.environ[name]
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # which a job in a shell's background ignores, and its children
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # what failed is kept where pytest keeps it
TEMPORARY = tempfile.mkdtemp(prefix="superfer-")  # a short path: sockets lie in it
atexit.register(shutil.rmtree, TEMPORARY, ignore_errors=True)
os.environ["TMPDIR"] = tempfile.tempdir = TEMPORARY
for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
    os.environ[name] = TEMPORARY
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # equality bit by bit is that of CPUs
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

from datamodules.synthetic.writing import write_faces, write_ferplus

set_hypothesis_home_dir(TEMPORARY)
settings.register_profile("torture", max_examples=250)  # --hypothesis-profile=torture
settings.register_profile("quick", max_examples=60)
settings.load_profile("quick")
torch.set_num_threads(1)  # results differ in the last bits with the number of threads


@pytest.fixture(scope="session", autouse=True)
def no_terminal() -> Iterator[None]:
    """Have the programs print lines as into a file, with `pytest -s` at a terminal, too."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys.stdout, "isatty", lambda: False)
        yield


@pytest.fixture(scope="session")
def tiny_ferplus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FER+ look-alike in the folder layout: 40 training, 24 validation and 24 test images. Read only, please."""
    root = tmp_path_factory.mktemp("tiny") / "ferplus"
    write_ferplus(root, {"train": 40, "val": 24, "test": 24}, seed=0)
    return root


@pytest.fixture(scope="session")
def tiny_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve synthetic faces of 128 pixels with 68 landmarks each. Read only, please."""
    root = tmp_path_factory.mktemp("tiny") / "faces"
    write_faces(root, count=12, size=128, seed=0)
    return root
