"""Serve exactly the batches that are left: a sampler without memory, and data modules that know their place."""

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset, Sampler

from run_state.preemption import defer_signals


class EpochSampler(Sampler[Any]):  # of pairs, which torch's BatchSampler passes on, though it is typed for int
    """Yield `(epoch, index)` pairs; this rank's share of one order common to all ranks.

    Handing the epoch to the data set with every index lets worker processes, persistent ones included, draw their
    augmentation from `(seed, epoch, index)` without any state of their own. Lightning calls `set_epoch`.

    Args:
        length: samples in the data set.
        seed: of the order.
        shuffle: permute each epoch anew.
        rank: this process, from 0.
        world_size: number of processes.
        drop_remainder: leave out the last `length % world_size` samples, so that all ranks serve equally many;
            otherwise the first ranks serve one more, and no sample is served twice.
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
            raise ValueError(f"rank is {rank}, expected 0 to {world_size - 1}")
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world_size, self.drop_remainder = rank, world_size, drop_remainder
        self.epoch = 0
        self._served = 0

    def start_at(self, epoch: int, served: int) -> None:
        """Have the next iteration be the rest of `epoch`, after `served` samples of this rank."""
        self.epoch, self._served = epoch, served

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
        served, self._served = self._served, 0
        return iter([(self.epoch, int(index)) for index in self._order()[served:]])

    def __len__(self) -> int:
        served = self.length // self.world_size * self.world_size if self.drop_remainder else self.length
        return len(range(self.rank, served, self.world_size))


class ResumableDataModule(L.LightningDataModule):
    """Keep the place in the data in the checkpoint, so that a resumed run sees exactly the batches that are left.

    Lightning makes the loader's iterator, and with it fetches the first batches, before it tells the sampler the epoch;
    the state is loaded before that. Subclasses make their loaders with `make_loader`.
    """

    batch_size: int  # images in a batch over all devices
    num_workers: int  # processes that prepare batches, per device
    seed: int  # of the order
    validation_images = 0  # known once the data were checked
    _resumed_at = (0, 0)  # epoch, and batches of it that are done

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data; called when a checkpoint is saved."""
        trainer = self.trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return {}
        epochs = trainer.fit_loop.epoch_progress.current
        started: int = trainer.fit_loop.epoch_loop.batch_progress.current.started  # type: ignore[attr-defined]
        if epochs.ready == epochs.completed:  # between two epochs
            return {"epoch": epochs.completed, "batches": 0}
        if started >= trainer.num_training_batches:  # in the validation at an epoch's end
            return {"epoch": epochs.completed + 1, "batches": 0}
        return {"epoch": epochs.completed, "batches": started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called when a run is resumed, before any loader is asked for."""
        self._resumed_at = (state_dict.get("epoch", 0), state_dict.get("batches", 0))

    def teardown(self, stage: str) -> None:
        self._resumed_at = (0, 0)

    def per_device(self, devices: int) -> int:
        """Return the images of a batch on each device."""
        if self.batch_size % devices:
            raise ValueError(f"batch_size is {self.batch_size}, expected a multiple of the {devices} devices")
        return self.batch_size // devices

    def make_loader(
        self, dataset: Dataset[Any], *, training: bool, collate_fn: Callable[[Any], Any] | None = None
    ) -> DataLoader[Any]:
        """Serve this rank's share of a data set that is addressed by `(epoch, index)`.

        Args:
            dataset: what to serve.
            training: shuffle, leave out what does not fill a batch, and go on where the loaded state says.
            collate_fn: makes a batch of what the data set returns; None stacks tensors.
        """
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        length = len(dataset)  # type: ignore[arg-type]
        per_device = self.per_device(world_size)
        if training and length < self.batch_size:
            raise ValueError(f"batch_size is {self.batch_size}, expected at most the {length} training images")
        sampler = EpochSampler(length, self.seed, training, rank, world_size, drop_remainder=training)
        if training:
            self.training_batches = length // self.batch_size
            epoch, batches = self._resumed_at
            if self.trainer is not None and self.trainer.current_epoch > epoch:  # a loader made anew in a later epoch
                epoch, batches = self.trainer.current_epoch, 0
            sampler.start_at(epoch, batches * per_device)
        return DataLoader(
            dataset,
            batch_size=per_device,
            sampler=sampler,
            drop_last=training,
            collate_fn=collate_fn,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=defer_signals,
            generator=torch.Generator(),  # its own, so that nobody else's draws depend on the loader
        )
