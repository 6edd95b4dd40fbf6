"""Upscalers, ranks and batches for the tests of the FER+ data module."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from datamodules.ferplus.datamodule import FERPlusDataModule
from datamodules.upscalers import InterpolationUpscaler, Upscaler


class Inverted(Upscaler):
    """A cached upscaler that can be told from bilinear, and counts the images that it upscaled."""

    name = "inverted"
    cached = True

    def __init__(self, version: int = 1) -> None:
        self.version, self.count = version, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.count += len(images)
        return 256 - self.version - InterpolationUpscaler("bilinear")(images)

    def fingerprint(self) -> str:
        return f"inverted-{self.version}"


class Rank:
    """What the data module asks of a trainer."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank, self.world_size, self.current_epoch = rank, world_size, 0
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"))


def module(root: Path, stage: str = "fit", **arguments: Any) -> FERPlusDataModule:
    data = FERPlusDataModule(**{"root": str(root), "batch_size": 8, "num_workers": 0, "input_size": 48, **arguments})
    data.prepare_data()
    data.setup(stage)
    return data


def batches(data: FERPlusDataModule, epoch: int = 0, split: str = "train") -> list[dict[str, Tensor]]:
    loader = getattr(data, f"{split}_dataloader")()
    return served(data, loader, epoch)


def served(data: FERPlusDataModule, loader: Any, epoch: int) -> list[dict[str, Tensor]]:
    """Batches as they reach the network."""
    loader.batch_sampler.sampler.set_epoch(epoch)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)
