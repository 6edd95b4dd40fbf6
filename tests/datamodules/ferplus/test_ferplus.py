"""The data module: what it serves, and that it is the same however it is loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from commands.compare import load_faces
from comparison.figures import upscaled_faces
from comparison.reading import Run
from datamodules.ferplus.augmentation import FaceAugmentation
from datamodules.ferplus.datamodule import load_split
from datamodules.upscaled_cache import reduce_size
from datamodules.upscalers import InterpolationUpscaler, Upscaler
from tests.datamodules.ferplus.ferplus_writers import face
from tests.datamodules.ferplus.serving import Inverted, Rank, batches, module, same, served


class Tinted(Upscaler):
    """Three channels that differ."""

    name, channels = "tinted", 3

    def __call__(self, images: Tensor) -> Tensor:
        gray = InterpolationUpscaler("nearest")(images)
        return torch.cat([gray, 255 - gray, gray // 2], dim=1)

    def fingerprint(self) -> str:
        return "tinted"


def test_what_a_batch_holds(few: Path) -> None:
    data = module(few, batch_size=3, input_size=384, augment=False, label_mode="crossentropy")
    (batch,) = batches(data)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "image": (torch.float32, (3, 3, 384, 384)),
        "target": (torch.float32, (3, 8)),
        "label": (torch.int64, (3,)),
        "index": (torch.int64, (3,)),
    }
    split = load_split(few, "train", "crossentropy")
    index = batch["index"]
    assert sorted(index.tolist()) == [0, 1, 2]
    assert torch.equal(batch["target"], torch.from_numpy(split.targets)[index])
    assert torch.equal(batch["label"], torch.tensor([1, 6, 4])[index])
    faces = torch.from_numpy(split.images)[index, None].float()
    expected = F.interpolate(faces, scale_factor=8, mode="bilinear", align_corners=False).round() / 255
    assert torch.equal(batch["image"], expected.expand(-1, 3, -1, -1))


def test_bytes_cross_to_the_device_and_become_levels_there(few: Path) -> None:
    for upscaler, channels in (("bilinear", 1), (Tinted(), 3)):
        data = module(few, batch_size=3, input_size=384, augment=False, upscaler=upscaler)
        (sent,) = data.train_dataloader()
        assert (sent["image"].dtype, tuple(sent["image"].shape)) == (torch.uint8, (3, channels, 384, 384))
        assert sent["image"].unique().numel() > 250  # nearly all levels
        arrived = data.on_after_batch_transfer(sent, 0)
        assert torch.equal(arrived["image"], (sent["image"].float() / 255).expand(-1, 3, -1, -1))
        assert arrived.keys() == sent.keys() == {"image", "target", "label", "index"}


def test_validation_uses_majority_labels_whatever_the_mode(few: Path) -> None:
    for mode in ("crossentropy", "multi_target", "probability"):
        (batch,) = batches(module(few, batch_size=2, label_mode=mode), split="val")
        assert batch["label"].tolist() == [4]
        assert batch["target"].tolist() == [[0, 0, 0, 0, 1, 0, 0, 0]]


def test_testing_serves_what_either_rule_keeps(few: Path) -> None:
    data = module(few, stage="test")
    (batch,) = batches(data, split="test")
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert data.datasets["test"].names == [f"fer00000{number}.png" for number in ("06", "07", "08", "10")]
    assert batch["label"].tolist() == [6, -1, -1, 1]
    assert batch["label_argmax"].tolist() == [6, 0, 0, 1]
    assert batch["in_train"].tolist() == [True, True, False, True]
    assert batch["target"].sum(dim=1).tolist() == [1, 0, 0, 1]
    (batch,) = batches(module(few, stage="test", test_split="val"), split="test")
    assert batch["label"].tolist() == [-1, 4]
    assert batch["label_argmax"].tolist() == [3, 4]


def test_label_of_several_targets_is_the_most_voted(few: Path) -> None:
    (batch,) = batches(module(few, batch_size=3, label_mode="multi_target"))
    order = batch["index"]
    assert torch.equal(batch["label"], torch.tensor([1, 6, 4])[order])
    assert (batch["target"] == 1).sum(dim=1).tolist() == torch.tensor([1, 2, 2])[order].tolist()


def test_probability_mode_draws_from_the_distribution(few: Path) -> None:
    data = module(few, batch_size=3, label_mode="probability", augment=False)
    again = batches(data, 3)
    assert same(again, batches(module(few, batch_size=3, label_mode="probability", augment=False), 3))
    data = module(few, batch_size=3, label_mode="probability", augment=False, input_size=8, upscaler="nearest")
    drawn = torch.zeros(3, 8)
    for epoch in range(200):
        (batch,) = batches(data, epoch)
        assert (batch["target"].max(dim=1).values == 1).all()
        assert (batch["target"].sum(dim=1) == 1).all()
        drawn[batch["index"]] += batch["target"]
    split = load_split(few, "train", "crossentropy")
    assert np.abs(drawn.numpy() / 200 - split.targets).max() < 0.12  # 3.5 standard deviations
    assert ((drawn > 0).numpy() == (split.targets > 0)).all()


def test_workers_change_nothing(tiny_ferplus: Path) -> None:
    alone, workers = module(tiny_ferplus), module(tiny_ferplus, num_workers=2)
    loader = workers.train_dataloader()
    for epoch in (0, 1):
        expected = batches(alone, epoch)
        assert same(expected, served(workers, loader, epoch))  # the workers persist
    assert not same(batches(alone, 0), batches(alone, 1))


def test_augmentation_is_a_function_of_seed_epoch_and_index(tiny_ferplus: Path) -> None:
    def image(epoch: int, index: int, split: str = "train", **arguments: Any) -> Tensor:
        loader = getattr(module(tiny_ferplus, **arguments), f"{split}_dataloader")()
        return loader.dataset.__getitems__([(epoch, index)])["image"][0]

    one = image(2, 5)
    dataset: Any = module(tiny_ferplus).train_dataloader().dataset
    assert torch.equal(dataset.__getitems__([(0, 3), (2, 5), (1, 5)])["image"][1], one)
    assert not torch.equal(image(3, 5), one)
    assert not torch.equal(image(2, 5, seed=1), one)
    assert torch.equal(image(2, 5, augment=False), image(0, 5, augment=False))
    assert torch.equal(image(2, 5, "val"), image(0, 5, "val"))


def test_both_arms_see_the_same_images_with_the_same_changes(tiny_ferplus: Path, tmp_path: Path) -> None:
    geometry = FaceAugmentation(brightness=0, contrast=0)
    arms = [
        module(tiny_ferplus, upscaler=upscaler, augmentation=geometry, cache_dir=str(tmp_path))
        for upscaler in ("bilinear", Inverted())
    ]
    for one, other in zip(*(batches(arm, epoch=4) for arm in arms), strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["target"], other["target"])
        assert (one["image"] + other["image"] - 1).abs().max() <= 2.1 / 255  # roundings of reduction and rotation


def test_reduction_is_antialiased() -> None:
    stripes = torch.zeros(1, 1, 384, 384, dtype=torch.uint8)
    stripes[..., 1::4] = stripes[..., 2::4] = 255  # what lies under a pixel's centre
    reduced = reduce_size(stripes, 96)
    assert (reduced.dtype, reduced.shape) == (torch.uint8, (1, 1, 96, 96))
    inner = reduced[..., 2:-2].float()
    assert inner.min() >= 126  # gray; without antialiasing all would be white
    assert inner.max() <= 129
    image = torch.from_numpy(face(0)).repeat_interleave(8, 0).repeat_interleave(8, 1)[None, None]
    assert reduce_size(image, 384) is image
    gradient = torch.arange(384).mul(0.6).round().to(torch.uint8).expand(1, 1, 384, 384)
    middle = reduce_size(gradient, 96)[0, 0, 50].float()
    centres = (torch.arange(96) + 0.5) * 4 - 0.5
    assert (middle - 0.6 * centres)[2:-2].abs().max() <= 1


def test_first_epochs_at_another_size(tiny_ferplus: Path) -> None:
    data = module(tiny_ferplus, input_size=64, early_size=32, early_epochs=2, augment=False)
    sizes = [batches(data, epoch)[0]["image"].shape[-2:] for epoch in range(4)]
    assert sizes == [(32, 32), (32, 32), (64, 64), (64, 64)]
    assert batches(data, 0, "val")[0]["image"].shape[-2:] == (64, 64)
    small = module(tiny_ferplus, input_size=32, augment=False)
    assert same(batches(data, 1), batches(small, 1))


def test_training_order_is_drawn_from_seed_and_epoch(tiny_ferplus: Path) -> None:
    def order(epoch: int, seed: int = 0) -> list[int]:
        data = module(tiny_ferplus, augment=False, input_size=8, seed=seed)
        return torch.cat([batch["index"] for batch in batches(data, epoch)]).tolist()

    first = order(0)
    assert order(0) == first != sorted(first)
    assert order(1) != first
    assert order(0, seed=1) != first


def test_faces_of_a_run_by_its_configuration(few: Path, tmp_path: Path) -> None:
    def run(class_path: str, **arguments: str) -> Run:
        config = {"data": {"class_path": class_path, "init_args": arguments}, "model": {"class_path": "no.such.Thing"}}
        return Run(tmp_path, "bilinear", 0, {}, config, {}, {})

    images = upscaled_faces(run("datamodules.ferplus.FERPlusDataModule", root=str(few)), "val", ["fer0000005.png"])
    assert images.shape == (1, 384, 384)
    assert np.array_equal(images[0], InterpolationUpscaler()(torch.from_numpy(face(1))[None, None])[0, 0].numpy())
    for broken in (
        run("datamodules.ferplus.FERPlusDataModule", rot="x"),
        run("datamodules.faces.FaceLandmarkDataModule", train_root="a", val_root="b"),
    ):
        with pytest.raises(ValueError, match=f"could not load the upscaled faces of {tmp_path}: "):
            load_faces(broken, "val", ["fer0000005.png"])


def test_ranks_share_a_global_batch(tiny_ferplus: Path) -> None:
    data = module(tiny_ferplus, batch_size=8, augment=False)
    whole = [batch["index"].tolist() for batch in batches(data)]
    parts = []
    for rank in range(2):
        data.trainer = Rank(rank, 2)  # type: ignore[assignment]
        parts.append([batch["index"].tolist() for batch in batches(data)])
    assert [sorted(one + other) for one, other in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]
    assert len(whole) == len(data.datasets["train"]) // 8, "what does not fill a batch is left out"
    data.trainer = Rank(0, 3)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="batch_size is 8, expected a multiple of the 3 devices"):
        data.train_dataloader()


def test_ranks_train_on_equally_many_images(blocks: Path) -> None:
    served = []
    for rank in range(3):  # 100 images are not divisible by 3
        data = module(blocks, batch_size=3, augment=False, input_size=8, upscaler="nearest")
        data.trainer = Rank(rank, 3)  # type: ignore[assignment]
        served.append([len(batch["index"]) for batch in data.train_dataloader()])
    assert served == [[1] * 33] * 3
