"""Random changes of faces: landmarks follow the pixels, and everything is what it says it is."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from torch import Tensor

from datamodules.faces.augmentation import DRAWN, LandmarkAugmentation, code_as_jpeg, gaussian_blur, move_faces, to_gray
from models.heatmaps import FLIP_INDEX, heatmaps_to_landmarks, landmarks_to_heatmaps

SIDE = 128


def blob_faces() -> tuple[Tensor, Tensor]:
    """68 faces: face k has a wide blob at its point k, which lies in the middle third, and nothing else."""
    landmarks = np.random.default_rng(0).uniform(45, 83, (68, 68, 2)).astype(np.float32)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    centre = landmarks[np.arange(68), np.arange(68), :, None, None]
    blobs = 250 * np.exp(-((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2) / (2 * 6.0**2))
    return torch.from_numpy(blobs.round().astype(np.uint8))[:, None].repeat(1, 3, 1, 1), torch.from_numpy(landmarks)


def centroids(images: Tensor) -> Tensor:
    """Of every image's first channel, (x, y) in pixels."""
    weights, grid = images[:, 0].double(), torch.arange(images.shape[-1])
    found = torch.stack([(weights.sum(1) * grid).sum(1), (weights.sum(2) * grid).sum(1)], dim=1)
    return found / weights.sum((1, 2))[:, None]


def draws(count: int, **values: float) -> Tensor:
    """As `draw` gives them: 0.5, which changes nothing, except for those given."""
    drawn = torch.full((count, len(DRAWN)), 0.5)
    for name, value in values.items():
        drawn[:, DRAWN.index(name)] = value
    return drawn


def noise_images(count: int = 4, side: int = 48) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_mirrored_landmarks_heatmaps_and_images_agree() -> None:
    images, landmarks = blob_faces()
    flipped, moved = LandmarkAugmentation().change_faces(images, landmarks, draws(68, flip=0.49))
    assert torch.equal(flipped, images.flip(-1))
    partner = torch.tensor(FLIP_INDEX)  # point k has become point FLIP_INDEX[k]
    followed = moved[torch.arange(68), partner]
    assert (centroids(flipped) - followed).abs().max() < 0.01
    decoded = heatmaps_to_landmarks(landmarks_to_heatmaps(moved / 4, SIDE // 4), subpixel=True) * 4
    assert (decoded[torch.arange(68), partner] - centroids(flipped)).abs().max() < 0.01
    same, stayed = LandmarkAugmentation().change_faces(images, landmarks, draws(68, flip=0.51))
    assert torch.equal(same, images) and torch.equal(stayed, landmarks)


def test_landmarks_follow_rotation_scale_and_shift() -> None:
    """Bound: 0.02 px. Rounding to gray levels moves a blob's centroid by 0.002 px (one sigma), and of bicubic
    interpolation the error has no preferred direction; half a pixel of misalignment would be 25 times the bound."""
    images, landmarks = blob_faces()
    augmentation = LandmarkAugmentation(rotation=20, scale=0.15, shift=0.05)
    drawn = torch.rand(68, len(DRAWN), generator=torch.Generator().manual_seed(1))
    changed, moved = augmentation.change_faces(images, landmarks, drawn)
    flipped = drawn[:, 0] < 0.5
    assert 20 < flipped.sum() < 48
    name = torch.where(flipped, torch.tensor(FLIP_INDEX), torch.arange(68))
    followed = moved[torch.arange(68), name]
    assert (centroids(changed) - followed).abs().max() < 0.02
    assert (followed - landmarks[torch.arange(68), torch.arange(68)]).abs().max() > 5  # they did move


def test_a_quarter_turn_and_whole_shifts_are_exact() -> None:
    images, landmarks = noise_images(), torch.tensor([[[3.0, 5.0]]]).repeat(4, 68, 1)
    quarter, one, none = torch.full((4,), torch.pi / 2), torch.ones(4), torch.zeros(4, 2)
    turned, moved = move_faces(images, landmarks, quarter, one, none)
    assert torch.equal(turned, images.rot90(-1, (-2, -1)))  # clockwise
    torch.testing.assert_close(moved[0, 0], torch.tensor([47 - 5.0, 3.0]), atol=1e-4, rtol=0)
    shifted, moved = move_faces(images, landmarks, torch.zeros(4), one, torch.tensor([[4.0, -2.0]]).repeat(4, 1))
    assert torch.equal(shifted[..., :-2, 4:], images[..., 2:, :-4])
    assert torch.equal(shifted[..., :-2, :4], images[..., 2:, :4].flip(-1))  # reflected at the border
    assert moved[0, 0].tolist() == pytest.approx([7, 3])


def test_limits_are_what_they_say() -> None:
    landmarks = torch.tensor([[[63.5, 23.5]]]).repeat(1, 68, 1)  # 40 px above the centre
    images = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)

    def end(augmentation: LandmarkAugmentation, **drawn: float) -> list[float]:
        moved: list[float] = augmentation.change_faces(images, landmarks, draws(1, **drawn))[1][0, 0].tolist()
        return moved

    assert end(LandmarkAugmentation(flip=0, rotation=30), rotation=1.0) == pytest.approx([63.5 + 20, 63.5 - 34.641])
    assert end(LandmarkAugmentation(flip=0, rotation=30), rotation=0.0) == pytest.approx([63.5 - 20, 63.5 - 34.641])
    assert end(LandmarkAugmentation(flip=0, scale=0.25), scale=1.0) == pytest.approx([63.5, 13.5])
    assert end(LandmarkAugmentation(flip=0, shift=0.1), shift_x=1.0, shift_y=0.0) == pytest.approx([76.3, 10.7])


def test_gray_is_the_luma_in_all_channels() -> None:
    images = noise_images()
    gray = LandmarkAugmentation(flip=0, gray=0.3).change_faces(images, torch.zeros(4, 68, 2), draws(4, gray=0.29))[0]
    for image, found in zip(images, gray, strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")).astype(int)
        difference = np.abs(found.numpy() - expected[None])  # PIL's weights are of 65536
        assert difference.max() <= 1 and difference.mean() < 0.005
    kept = LandmarkAugmentation(flip=0, gray=0.3).change_faces(images, torch.zeros(4, 68, 2), draws(4, gray=0.31))[0]
    assert torch.equal(kept, images)
    assert torch.equal(to_gray(gray), gray)  # gray images stay as they are


def test_blur_is_the_gaussian_filter() -> None:
    images = noise_images().float()
    sigmas = torch.tensor([0.0, 0.4, 0.8, 1.0])
    found = gaussian_blur(images, sigmas, 1.0)
    assert torch.equal(found[0], images[0])
    for row in (1, 2, 3):
        expected = gaussian_filter(images[row].numpy(), (0, *[float(sigmas[row])] * 2), mode="nearest", radius=3)
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-3)


def test_contrast_and_noise_have_the_size_they_say() -> None:
    lr = torch.tensor([27, 127, 227], dtype=torch.uint8)[None, :, None, None].repeat(2, 1, 16, 16)
    stronger = LandmarkAugmentation(contrast=0.2).degrade(lr, draws(2, contrast=1.0), None)
    assert stronger[0, :, 0, 0].tolist() == [7, 127, 247]
    noise = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    noisy = LandmarkAugmentation(noise=8).degrade(lr, draws(2, noise=0.5), noise)
    expected = (lr.float() + 4 * noise).round()
    assert torch.equal(noisy.float(), expected)  # the same in all channels: gray faces stay gray
    clipped = LandmarkAugmentation(contrast=0.9).degrade(lr, draws(2, contrast=1.0), None)
    assert clipped[0, :, 0, 0].tolist() == [0, 127, 255]


def test_jpeg_has_the_quality_that_was_drawn() -> None:
    lr = to_gray(noise_images())
    smooth = torch.from_numpy(np.array(Image.fromarray(lr[0, 0].numpy()).filter(ImageFilter.GaussianBlur(2))))
    lr = smooth.expand(4, 3, -1, -1)
    augmentation = LandmarkAugmentation(jpeg=20)
    worst, best = (augmentation.degrade(lr, draws(4, jpeg=value), None) for value in (0.0, 1.0))
    assert torch.equal(worst, code_as_jpeg(lr, [20] * 4)) and torch.equal(best, code_as_jpeg(lr, [100] * 4))
    assert torch.equal(augmentation.degrade(lr, draws(4), None), code_as_jpeg(lr, [60] * 4))
    file = io.BytesIO()
    Image.fromarray(lr[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=20)
    assert np.array_equal(worst[0].permute(1, 2, 0), Image.open(file))
    assert (worst.float() - lr.float()).abs().mean() > 3 * (best.float() - lr.float()).abs().mean() > 0
    assert torch.equal(worst[:, 0], worst[:, 1]) and torch.equal(worst[:, 0], worst[:, 2])  # gray stays gray


def test_nothing_turned_on_changes_nothing() -> None:
    images, landmarks = noise_images(), torch.rand(4, 68, 2)
    off = LandmarkAugmentation(flip=0)
    drawn = torch.rand(4, len(DRAWN))
    hr, moved = off.change_faces(images, landmarks, drawn)
    assert torch.equal(hr, images) and torch.equal(moved, landmarks)
    assert torch.equal(off.degrade(images, drawn, None), images)


def test_draws_do_not_depend_on_what_is_turned_on() -> None:
    everything = LandmarkAugmentation(rotation=10, gray=1, noise=5, jpeg=50).draw(1, 2, 3, lr_size=16)
    assert everything["noise"].shape == (1, 16, 16) and everything["noise"].dtype == torch.float32
    assert torch.equal(everything["draws"], LandmarkAugmentation().draw(1, 2, 3, lr_size=16)["draws"])
    assert "noise" not in LandmarkAugmentation().draw(1, 2, 3, lr_size=16)
    flip = float(everything["draws"][0])
    assert flip == pytest.approx(np.random.default_rng((1, 2, 3)).random())
    others = [LandmarkAugmentation().draw(*key, lr_size=16)["draws"][0] for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0))]
    assert len({flip, *map(float, others)}) == 4


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("flip", 1.1, "0 to 1"), ("rotation", -1, "0 to 180"), ("scale", 1, "0 to 0.9"), ("jpeg", 0, "1 to 100"),
     ("noise", float("nan"), "0 to 255"), ("contrast", 1, "0 to 0.9"), ("shift", 0.6, "0 to 0.5")],
)  # fmt: skip
def test_impossible_limits_are_refused(name: str, value: float, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is {value}, expected {allowed}"):
        LandmarkAugmentation(**{name: value})  # type: ignore[arg-type]
