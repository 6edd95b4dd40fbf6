"""512 processes, one at a time: their shares, their files, and what only the first of them does."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import _InfiniteBarrier
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from commands.train import train
from datamodules.synthetic.writing import write_faces
from datamodules.upscaled_cache import FaceCache, UpscaledFaces
from datamodules.upscalers import Upscaler
from run_state.data_position import ResumableDataModule
from tests.tiny_runs import config, generator_options

RANKS = 512
IMAGES = 5 * RANKS // 2


class Data(ResumableDataModule):
    """Serves its keys."""

    def __init__(self, rank: int, world_size: int, batch_size: int = RANKS) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, 0, 3
        self.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, current_epoch=0)  # type: ignore[assignment]

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.tensor(key)

    def batches(self, training: bool) -> list[list[list[int]]]:
        loader = self.make_loader(self, training=training)  # type: ignore[arg-type]
        return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("resumed_at", [(0, 0), (4, 1)])
def test_every_batch_is_shared_out_without_overlap_or_gap(resumed_at: tuple[int, int]) -> None:
    def served(rank: int, world_size: int, training: bool) -> list[list[list[int]]]:
        data = Data(rank, world_size)
        data.load_state_dict({"epoch": resumed_at[0], "batches": resumed_at[1]})
        return data.batches(training)

    whole = served(0, 1, True)
    assert len(whole) == IMAGES // RANKS - resumed_at[1] and whole[0][0][0] == resumed_at[0]
    parts = [served(rank, RANKS, True) for rank in range(RANKS)]
    for number, batch in enumerate(whole):
        assert sorted(key for part in parts for key in part[number]) == sorted(batch)
    validated = [key for rank in range(RANKS) for batch in served(rank, RANKS, False) for key in batch]
    assert sorted(index for _, index in validated) == list(range(IMAGES))


class OneFace(Upscaler):
    """Is killed when it has upscaled one block."""

    name, cached = "one", True

    def __init__(self) -> None:
        self.done = False

    def fingerprint(self) -> str:
        return "one"

    def __call__(self, images: Tensor) -> Tensor:
        if self.done:
            raise KeyboardInterrupt
        self.done = True
        return images.repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.mark.parametrize("blocks", [RANKS, 3 * RANKS // 2, 5])
def test_a_cache_is_shared_out_without_overlap_or_gap(blocks: int, tmp_path: Path) -> None:
    """Each process begins with a block of its own; it goes on with those that it finds missing."""
    images = np.random.default_rng(0).integers(0, 256, (blocks, 1, 1), dtype=np.uint8)
    for rank in range(0, min(RANKS, blocks), 37):
        cache = FaceCache(tmp_path / str(rank), UpscaledFaces(images, OneFace()), size=8, block_size=1)
        with pytest.raises(KeyboardInterrupt):
            cache.fill(np.arange(blocks), torch.device("cpu"), rank, RANKS)
        assert {int(block.name[:5]) % RANKS for block in (tmp_path / str(rank)).glob("*.npy")} == {rank}


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make this process one of 512 that torchrun started; what it hears from the others is what it says itself."""

    def become(rank: int, world_size: int = RANKS) -> None:
        job = {"TORCHELASTIC_RUN_ID": f"job{world_size}", "WORLD_SIZE": world_size, "RANK": rank, "GROUP_RANK": rank}
        job |= {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
        for name, value in job.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.distributed.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())

    def all_gather_object(everybodys: list[Any], own: Any, *_: Any, **__: Any) -> None:
        everybodys[:] = [own] * len(everybodys)

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda *_, **__: None)
    monkeypatch.setattr(_InfiniteBarrier, "__enter__", lambda barrier: barrier)  # it insists on gloo
    monkeypatch.setattr(DDPStrategy, "configure_ddp", lambda _: None)  # its hooks need somebody to answer
    yield become
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many") / "faces"
    write_faces(root, count=RANKS, size=64, seed=0)
    return root


def files(run: Path) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_size for path in sorted(run.rglob("*")) if path.is_file()}


def test_files_do_not_grow_with_the_number_of_ranks(
    as_rank: Callable[..., None], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the random numbers of each, in the checkpoint; only the first writes."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    written = {}
    for ranks in (8, RANKS):
        options = [*generator_options(faces), f"--data.batch_size={ranks}", "--trainer.strategy=ddp"]
        options += [f"--trainer.num_nodes={ranks}", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
        for rank in (ranks - 1, 0):
            as_rank(rank, ranks)
            run = train([*config("generator/dic_small"), *options, f"--runs={tmp_path / 'runs'}"])
            assert rank == 0 or not files(run)
        written[ranks] = files(run)
        assert any(name.startswith("faces") for name in written[ranks])
    few, many = written.values()
    assert list(few) == list(many)
    for name, size in few.items():
        bytes_of_a_rank = 10_000 if name.endswith(".ckpt") else 0
        assert many[name] < 1.5 * size + RANKS * bytes_of_a_rank, name


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (500, "batch_size is 500, expected a multiple of the 512 devices"),
        (512, "the number of validation images is 12, expected at least the 512 devices"),
    ],
)
def test_more_ranks_than_images(
    batch_size: int,
    message: str,
    as_rank: Callable[..., None],
    faces: Path,
    tiny_faces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    as_rank(RANKS - 1)
    options = [*generator_options(faces), f"--data.val_root={tiny_faces}", f"--data.batch_size={batch_size}"]
    options += ["--trainer.strategy=ddp", f"--trainer.num_nodes={RANKS}"]
    with pytest.raises(SystemExit) as refused:
        train([*config("generator/dic_small"), *options, f"--runs={tmp_path}"])
    assert refused.value.code == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "error" in line] == [f"error: {message}"]
