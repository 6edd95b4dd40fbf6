"""The data module and its cache: filled as far as needed, once, by whomever; never with what belongs to others."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.ferplus.datamodule import FERPlusDataModule, load_split
from datamodules.upscaled_cache import reduce_size
from datamodules.upscalers import InterpolationUpscaler
from tests.datamodules.ferplus.ferplus_writers import MIXED, Sample, face, votes, write_folders
from tests.datamodules.ferplus.serving import Inverted, Rank, batches, module


def test_cached_upscaler_is_run_once_per_image(few: Path, tmp_path: Path) -> None:
    upscaler = Inverted()
    data = module(few, upscaler=upscaler, batch_size=3, augment=False, input_size=384)
    assert upscaler.count == 0, "nothing is upscaled before a loader is asked for"
    split = load_split(few, "train", "crossentropy")
    (batch,) = batches(data)
    assert upscaler.count == len(MIXED)  # a block holds them all
    bilinear = InterpolationUpscaler("bilinear")(torch.from_numpy(split.images)[:, None])
    assert torch.equal(batch["image"][:, :1], (255 - bilinear)[batch["index"]].float() / 255)
    folder = data.cache_folder
    assert folder == few / ".superfer_cache" / "upscaled" / f"inverted-1_{data.fingerprint}"
    again = Inverted()
    batches(module(few, upscaler=again, stage="test"), split="test")
    assert again.count == 0
    assert module(few, upscaler=Inverted(2)).cache_folder != folder
    assert module(few, input_size=384).cache_folder is None
    elsewhere = module(few, upscaler=Inverted(), cache_dir=str(tmp_path / "other")).cache_folder
    assert elsewhere is not None
    assert elsewhere.parent == tmp_path / "other"


def made(cache: Path, size: int = 48) -> list[int]:
    """Numbers of the blocks of one size in a folder."""
    ending = f"_{size}px" if size < 384 else ""
    folders = [folder for folder in cache.iterdir() if re.search(r"(_\d+px)?$", folder.name)[0] == ending]  # type: ignore[index]
    return sorted(int(path.name[:5]) for folder in folders for path in folder.glob("*.npy"))


def test_the_cache_is_filled_as_far_as_needed(blocks: Path, tmp_path: Path) -> None:
    cached: dict[str, Any] = {"upscaler": Inverted(), "cache_dir": str(tmp_path)}
    data = module(blocks, **cached)
    data.train_dataloader()
    assert made(tmp_path) == [0]
    data.val_dataloader()
    assert made(tmp_path) == [0, 1]
    (batch,) = batches(module(blocks, stage="test", batch_size=100, **cached), split="test")
    assert made(tmp_path) == [0, 1, 2]
    expected = 255 - InterpolationUpscaler("bilinear")(torch.from_numpy(face(2099))[None, None])
    assert torch.equal(
        batch["image"][-1:], module(blocks).on_after_batch_transfer({"image": reduce_size(expected, 48)}, 0)["image"]
    )


def test_reduced_faces_are_kept_too(blocks: Path, tmp_path: Path) -> None:
    """Bit by bit what upscaling and reducing gives; read without the images that they were made from."""
    options: dict[str, Any] = {"cache_dir": str(tmp_path), "augment": False, "early_size": 32, "early_epochs": 1}
    options |= {"batch_size": 100}
    plain = module(blocks, **options)
    (batch,) = batches(plain, split="val")
    large = InterpolationUpscaler("bilinear")(torch.from_numpy(load_split(blocks, "val", "majority").images)[:, None])
    assert torch.equal((batch["image"][:, :1] * 255).round().to(torch.uint8), reduce_size(large, 48)[batch["index"]])
    plain.train_dataloader()
    assert (made(tmp_path), made(tmp_path, 32), made(tmp_path, 384)) == ([0, 1], [0], [])
    upscaler = Inverted()
    data = module(blocks, upscaler=upscaler, **options)
    data.train_dataloader()
    full = tmp_path / f"inverted-1_{data.fingerprint}"
    assert data.cache_folder == Path(f"{full}_48px") and upscaler.count == 128
    shutil.rmtree(full)
    again = Inverted()
    module(blocks, upscaler=again, **options).train_dataloader()
    assert again.count == 0


def test_testing_on_another_split_fills_the_cache_for_that_split(blocks: Path, tmp_path: Path) -> None:
    data = module(blocks, stage="test", test_split="val", upscaler=Inverted(), cache_dir=str(tmp_path))
    assert sum(len(batch["index"]) for batch in batches(data, split="test")) == 100
    assert made(tmp_path) == [0, 1]


def test_the_upscale_command_fills_all_of_the_cache(blocks: Path, tmp_path: Path) -> None:
    data = module(blocks, stage="predict", upscaler=Inverted(), cache_dir=str(tmp_path))
    assert data.predict_dataloader() == []
    assert made(tmp_path) == [0, 1, 2]


def test_each_rank_makes_its_own_blocks_first(blocks: Path, tmp_path: Path) -> None:
    class Stopped(Inverted):
        """Stops after the first block."""

        def __call__(self, images: Tensor) -> Tensor:
            if cache.is_dir() and made(cache, 384):
                raise KeyboardInterrupt
            return super().__call__(images)

    for rank in [0, 1, 2] * 2:  # a rank that is not told its number begins anywhere
        cache = tmp_path / str(len(list(tmp_path.iterdir())))
        data = module(blocks, stage="predict", upscaler=Stopped(), cache_dir=str(cache))
        data.trainer = Rank(rank, 3)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            data.predict_dataloader()
        assert made(cache, 384) == [rank]


@pytest.mark.parametrize("other", ["generator", "data"])
def test_blocks_of_another_generator_or_data_are_refused(other: str, tmp_path: Path) -> None:
    """Even if somebody copies them into the folder of this one."""
    samples = [Sample(usage, f"{usage}.png", votes(fear=10), face(5)) for usage in ("Training", "PublicTest")]
    roots = [tmp_path / "one", tmp_path / "other"]
    for root in roots:
        root.mkdir()
    write_folders(roots[0], samples)
    write_folders(roots[1], [*samples[:1], samples[1]._replace(image=face(6))] if other == "data" else samples)
    first = module(roots[0], batch_size=1, upscaler=Inverted())
    first.train_dataloader()
    second = module(roots[1], batch_size=1, upscaler=Inverted(2 if other == "generator" else 1), input_size=384)
    assert first.cache_folder is not None and second.cache_folder is not None
    shutil.copytree(first.cache_folder, second.cache_folder, dirs_exist_ok=True)
    with pytest.warns(UserWarning, match="damaged, or of another cache; making the block again"):
        (batch,) = batches(second, split="val")
    face_, version = (6, 1) if other == "data" else (5, 2)
    bilinear = InterpolationUpscaler("bilinear")(torch.from_numpy(face(face_))[None, None])
    assert torch.equal(batch["image"][:, :1], (256 - version - bilinear).float() / 255)


def test_upscaled_faces_by_name(few: Path) -> None:
    names = ["fer0000009.png", "fer0000006.png"]  # one that no rule keeps, too
    expected = InterpolationUpscaler("bilinear")(torch.from_numpy(np.stack([face(9), face(0)]))[:, None]).numpy()
    assert np.array_equal(FERPlusDataModule(str(few)).faces("test", names), expected)
    assert np.array_equal(FERPlusDataModule(str(few), Inverted()).faces("test", names), 255 - expected)
    with pytest.raises(ValueError, match=r"the split 'val' has no image named 'fer0000006\.png'"):
        FERPlusDataModule(str(few)).faces("val", names[1:])


@pytest.mark.parametrize("size", [48, 384])
def test_an_epoch_opens_no_file(size: int, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks are mapped when the loader is made: thousands of processes would stop a file server."""
    data = module(blocks, upscaler=Inverted(), cache_dir=str(tmp_path), input_size=size, num_workers=0, batch_size=50)
    loader = data.train_dataloader()
    opened: list[Any] = []
    monkeypatch.setattr("builtins.open", lambda *args, **_: opened.append(args))
    monkeypatch.setattr(np, "load", lambda *args, **_: opened.append(args))
    assert len(list(loader)) == 2
    assert opened == []
