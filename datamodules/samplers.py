"""A sampler whose order depends on the seed and the epoch alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[Any]):  # of pairs, which torch's BatchSampler passes on, though it is typed for int
    """Yields ``(epoch, index)`` pairs; this rank's share of one order common to all ranks.

    Handing the epoch to the data set with every index lets worker processes, persistent ones included, draw their
    augmentation from ``(seed, epoch, index)`` without any state of their own. Lightning calls ``set_epoch``.

    Args:
        length: Number of samples in the data set.
        seed: Seed of the order.
        shuffle: Permute each epoch anew; otherwise ascending order.
        rank: Index of this process.
        world_size: Number of processes.
        drop_remainder: Leave out the last ``length % world_size`` samples, so that all ranks serve equally many.
            Without it the first ranks serve one more, and no sample is ever served twice.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
        drop_remainder: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, allowed are 0 to {world_size - 1} (world_size - 1)")
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world_size, self.drop_remainder = rank, world_size, drop_remainder
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def _order(self) -> np.ndarray:
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        if self.drop_remainder:
            order = order[: self.length // self.world_size * self.world_size]
        return order[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, int(index)) for index in self._order()])

    def __len__(self) -> int:
        served = self.length // self.world_size * self.world_size if self.drop_remainder else self.length
        return len(range(self.rank, served, self.world_size))
