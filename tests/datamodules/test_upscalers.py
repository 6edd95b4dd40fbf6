"""The ways to upscale: interpolation against independent results, DIC against its network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datamodules.upscalers import DICUpscaler, InterpolationUpscaler, UpscalerError
from models.dic import DIC

SIZES = {"num_features": 6, "num_steps": 2, "num_groups": 1, "num_fusion_blocks": 1, "hourglass_features": 8}


def faces(count: int = 2, size: int = 48) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 1, size, size), dtype=np.uint8))


def write_dic(path: Path, seed: int = 0, **sizes: int) -> Path:
    """A run folder with a small random generator as its best checkpoint."""
    torch.manual_seed(seed)
    net = DIC(**{**SIZES, **sizes})
    (path / "checkpoints").mkdir(parents=True)
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    torch.save({"dic_config": net.config, "state_dict": state, "epoch": seed}, path / "checkpoints" / "best.ckpt")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dic(tmp_path_factory.mktemp("dic") / "run")


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_interpolation_gives_uint8_of_eight_times_the_size(mode: str) -> None:
    upscaler = InterpolationUpscaler(mode)  # type: ignore[arg-type]
    large = upscaler(faces())
    assert (large.dtype, large.shape) == (torch.uint8, (2, 1, 384, 384))
    assert upscaler.name == upscaler.fingerprint() == mode
    assert not upscaler.cached
    constant = torch.full((1, 1, 48, 48), 77, dtype=torch.uint8)
    assert (upscaler(constant) == 77).all()


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_interpolation_is_pytorchs_rounded(mode: Any) -> None:
    images = torch.randint(0, 256, (20, 1, 48, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(images.double(), scale_factor=8, mode=mode).round().clamp(0, 255)
    off = (InterpolationUpscaler(mode)(images) - expected).abs()
    assert off.max() <= (mode == "bicubic")  # the sums of the others are exact
    assert off.mean() < 1e-5


def test_nearest_repeats_pixels() -> None:
    expected = np.kron(faces()[0, 0].numpy(), np.ones((8, 8), np.uint8))
    assert np.array_equal(InterpolationUpscaler("nearest")(faces())[0, 0].numpy(), expected)


def test_bicubic_is_clipped_where_it_overshoots() -> None:
    exact = F.interpolate(faces().double(), scale_factor=8, mode="bicubic", align_corners=False)
    assert exact.min() < -1
    assert exact.max() > 256
    large = InterpolationUpscaler("bicubic")(faces())
    assert (large.double() - exact.clamp(0, 255)).abs().max() <= 0.501


def test_dic_is_the_last_step_of_its_network(run: Path) -> None:
    torch.manual_seed(0)
    net = DIC(**SIZES).eval()
    images = faces(size=16)
    with torch.no_grad():
        expected = net.upscale((images.float() / 255).repeat(1, 3, 1, 1)) * 255
    rgb = DICUpscaler(str(run), color="rgb")
    assert (rgb.name, rgb.channels, rgb.cached) == ("dic", 3, True)
    large = rgb(images)
    assert (large.dtype, large.shape) == (torch.uint8, (2, 3, 128, 128))
    assert (large.float() - expected).abs().max() <= 0.51
    assert large.float().std() > 5
    luma = (expected * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    gray = DICUpscaler(str(run))
    assert gray.channels == 1
    assert (gray(images).float() - luma).abs().max() <= 0.51


def test_dic_treats_images_one_by_one(run: Path) -> None:
    upscaler, images = DICUpscaler(str(run)), faces(count=3, size=16)
    single = torch.cat([upscaler(image[None]) for image in images])
    assert (upscaler(images).int() - single.int()).abs().max() <= 1


def test_fingerprint_depends_on_weights_sizes_colour_and_precision(run: Path, tmp_path: Path) -> None:
    fingerprint = DICUpscaler(str(run)).fingerprint()
    assert fingerprint.startswith("dic-")
    assert DICUpscaler(str(run)).fingerprint() == fingerprint
    copied = tmp_path / "another name.ckpt"
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save({**checkpoint, "epoch": 99, "hyper_parameters": {"learning_rate": 0.1}}, copied)
    assert DICUpscaler(str(copied)).fingerprint() == fingerprint
    others = [
        DICUpscaler(str(run), color="rgb"),
        DICUpscaler(str(run), precision="bfloat16"),
        DICUpscaler(str(write_dic(tmp_path / "weights", seed=1))),
        DICUpscaler(str(write_dic(tmp_path / "steps", num_steps=3))),  # the same weights, one step more
    ]
    assert len({fingerprint, *(other.fingerprint() for other in others)}) == 5


def test_bfloat16_changes_little(run: Path) -> None:
    exact, reduced = DICUpscaler(str(run)), DICUpscaler(str(run), precision="bfloat16")
    with torch.backends.mkldnn.flags(enabled=False):  # wrong kernels of some processors would be refused
        difference = (exact(faces()).int() - reduced(faces()).int()).abs().float()
    assert 0 < difference.mean() < 0.25  # gray levels


def test_bfloat16_far_from_float32_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the cause; the check of single layers, which does not know of autocast, finds nothing here."""
    convolve = F.conv2d

    def wrong(image: torch.Tensor, *args: object, **settings: object) -> torch.Tensor:
        result = convolve(image, *args, **settings)  # type: ignore[arg-type]
        return result * 0 if torch.is_autocast_enabled("cpu") else result

    monkeypatch.setattr(F, "conv2d", wrong)
    with pytest.raises(UpscalerError, match=r"in bfloat16 .* gray levels from those in float32.*use precision float32"):
        DICUpscaler(str(run), precision="bfloat16")(faces(size=16))
    assert DICUpscaler(str(run))(faces(size=16)).any()


def test_run_folder_stands_for_its_best_checkpoint(run: Path, tmp_path: Path) -> None:
    best = DICUpscaler(str(run / "checkpoints" / "best.ckpt"))
    assert DICUpscaler(str(run)).fingerprint() == best.fingerprint()
    with pytest.raises(FileNotFoundError, match="no checkpoint: looked for"):
        DICUpscaler(str(tmp_path)).fingerprint()


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    run = write_dic(tmp_path / "run")
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for value in checkpoint["state_dict"].values():
        value.fill_(1e30)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"the generator returned numbers that are not finite"):
        DICUpscaler(str(run))(faces(size=16))
