"""The order of the samples: a function of seed and epoch, shared out among the ranks, told to Lightning's epochs."""

from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from run_state.data_position import EpochSampler


def order(epoch: int = 0, **arguments: Any) -> list[tuple[int, int]]:
    sampler = EpochSampler(**arguments)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler)
    return keys


def test_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    one = order(epoch=3, length=50, seed=7, shuffle=True)
    torch.manual_seed(2)
    assert order(epoch=3, length=50, seed=7, shuffle=True) == one
    assert [epoch for epoch, _ in one] == [3] * 50
    indices = [index for _, index in one]
    assert sorted(indices) == list(range(50))
    assert indices != list(range(50))
    assert [index for _, index in order(epoch=4, length=50, seed=7, shuffle=True)] != indices
    assert [index for _, index in order(epoch=3, length=50, seed=8, shuffle=True)] != indices


def test_without_shuffling_ascending() -> None:
    assert order(epoch=2, length=4) == [(2, 0), (2, 1), (2, 2), (2, 3)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_partition_the_data(world_size: int, shuffle: bool) -> None:
    parts = [order(length=20, shuffle=shuffle, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(index for part in parts for _, index in part) == list(range(20))  # none twice, none left out
    equal = [
        order(length=20, shuffle=shuffle, rank=r, world_size=world_size, drop_remainder=True) for r in range(world_size)
    ]
    assert {len(part) for part in equal} == {20 // world_size}
    assert len({index for part in equal for _, index in part}) == 20 // world_size * world_size


def test_ranks_take_turns_in_one_order() -> None:
    whole = order(length=20, seed=5, shuffle=True)
    assert order(length=20, seed=5, shuffle=True, rank=0, world_size=2) == whole[::2]
    assert order(length=20, seed=5, shuffle=True, rank=1, world_size=2) == whole[1::2]


def test_rank_beyond_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="rank is 2, expected 0 to 1"):
        EpochSampler(5, rank=2, world_size=2)


class Keys(Dataset):
    """Serves its keys."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        return torch.tensor(key)


class Recorder(L.LightningModule):
    """Records the keys of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.keys: list[tuple[int, int]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.keys += [tuple(key) for key in batch.tolist()]
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_lightning_tells_the_epoch(num_workers: int) -> None:
    sampler = BatchSampler(EpochSampler(6, seed=3, shuffle=True), 2, drop_last=True)
    loader = DataLoader(Keys(), batch_sampler=sampler, num_workers=num_workers, persistent_workers=num_workers > 0)
    module = Recorder()
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    assert module.keys == [key for epoch in range(3) for key in order(epoch=epoch, length=6, seed=3, shuffle=True)]
