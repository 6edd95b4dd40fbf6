"""Augmentation: a function of (seed, epoch, index), the same geometry for every arm."""

import albumentations as A
import cv2
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from datamodules.ferplus.augmentation import FaceAugmentation, augment


def face(seed: int = 0, channels: int = 1, size: int = 64) -> np.ndarray:
    """A smooth image, so that small differences of geometry are small differences of gray."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (6, 6, channels)).astype(np.float32)
    return (
        cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        .reshape(size, size, channels)
        .clip(0, 255)
        .astype(np.uint8)
    )


def changed_only(**limits: float) -> FaceAugmentation:
    """An augmentation of which everything else is off."""
    off = {"rotation": 0.0, "scale": 0.0, "shift": 0.0, "flip": 0.0, "brightness": 0.0, "contrast": 0.0}
    return FaceAugmentation(**(off | limits))


def test_same_key_same_result_whatever_was_drawn_before() -> None:
    one, other = FaceAugmentation(), FaceAugmentation()
    first = augment(one, face(), 0, 3, 7)
    for index in range(5):
        np.random.seed(index)
        augment(other, face(), 1, 1, index)
    assert np.array_equal(augment(other, face(), 0, 3, 7), first)
    assert first.shape == (64, 64, 1)
    assert first.dtype == np.uint8


def test_seed_epoch_and_index_each_matter() -> None:
    changes = FaceAugmentation()
    results = [
        augment(changes, face(), *key).tobytes() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    ]
    assert len(set(results)) == 5


def test_input_is_not_changed() -> None:
    image = face()
    before = image.copy()
    augment(FaceAugmentation(), image, 0, 0, 0)
    assert np.array_equal(image, before)


def test_gray_and_colour_arms_get_the_same_changes() -> None:
    changes = FaceAugmentation()
    for index in range(8):
        gray = augment(changes, face(), 0, 0, index)
        colour = augment(changes, np.repeat(face(), 3, axis=2), 0, 0, index)
        assert np.abs(colour.astype(int) - gray.astype(int)).max() <= 1  # cv2 rounds a little differently


def test_two_arms_get_the_same_geometry() -> None:
    changes = FaceAugmentation(brightness=0.0, contrast=0.0)
    image = face()
    for index in range(8):
        inverted = augment(changes, 255 - image, 0, 0, index)  # another arm: other pixels in the same places
        assert np.abs((255 - inverted).astype(int) - augment(changes, image, 0, 0, index).astype(int)).max() <= 1


def test_nothing_to_change() -> None:
    changes = changed_only()
    assert np.array_equal(augment(changes, face(), 0, 0, 0), face())


def test_mirror_image() -> None:
    changes = changed_only(flip=1)
    assert np.array_equal(augment(changes, face(), 0, 0, 0), face()[:, ::-1])
    half = changed_only(flip=0.5)
    flipped = [np.array_equal(augment(half, face(), 0, 0, index), face()[:, ::-1]) for index in range(200)]
    assert 70 < sum(flipped) < 130


def test_shift_keeps_to_its_limit() -> None:
    changes = changed_only(shift=0.1)
    image = np.zeros((60, 60, 1), np.uint8)
    image[29:31, 29:31] = 255
    centres = []
    for index in range(50):
        rows, columns = np.nonzero(augment(changes, image, 0, 0, index)[..., 0] > 60)
        centres.append((rows.mean() - 29.5, columns.mean() - 29.5))
    largest = np.abs(centres).max()
    assert 4 < largest <= 6.5  # of 6 pixels, and half a one for rounding


def test_brightness_keeps_to_its_limit() -> None:
    changes = changed_only(brightness=0.2)
    changes = [
        int(augment(changes, np.full((8, 8, 1), 128, np.uint8), 0, 0, index)[0, 0, 0]) - 128 for index in range(50)
    ]
    assert 40 < np.abs(changes).max() <= 52
    assert min(changes) < 0 < max(changes)


def test_rotation_keeps_to_its_limit() -> None:
    changes, image = changed_only(rotation=20), np.zeros((101, 101, 1), np.uint8)
    image[48:53, 85:90] = 255  # right of the centre
    angles = []
    for index in range(50):
        rows, columns = np.nonzero(augment(changes, image, 0, 0, index)[..., 0] > 60)
        angles.append(np.degrees(np.arctan2(50 - rows.mean(), columns.mean() - 50)))
    assert min(angles) < -16 and max(angles) > 16
    assert np.abs(angles).max() < 20.5


def test_scale_keeps_to_its_limit() -> None:
    changes, image = changed_only(scale=0.15), np.zeros((100, 100, 1), np.uint8)
    image[30:70, 30:70] = 255
    sides = np.array(
        [np.count_nonzero(augment(changes, image, 0, 0, index)[50, :, 0] > 127) / 40 for index in range(50)]
    )
    assert 0.84 <= sides.min() < 0.88 and 1.12 < sides.max() <= 1.16


def test_contrast_keeps_to_its_limit() -> None:
    image = np.full((8, 8, 1), 50, np.uint8)
    image[4:] = 200
    results = [augment(changed_only(contrast=0.2), image, 0, 0, index)[..., 0].astype(int) for index in range(50)]
    ratios = np.array([(result[4:].mean() - result[:4].mean()) / 150 for result in results])
    assert 0.79 < ratios.min() < 0.84 and 1.16 < ratios.max() < 1.21


def test_the_warp_is_a_similarity_in_one_bilinear_interpolation() -> None:
    """Against scipy, with the parameters that were drawn: the aspect ratio is kept, borders are repeated."""
    changes, image = changed_only(rotation=20, scale=0.15, shift=0.07, flip=0.5), face(size=96)
    mirrored = 0
    for index in range(10):
        result = augment(changes, image, 0, 0, index)[..., 0]
        turn, shift = (np.array(changes.params[name]) for name in ("turn", "shift"))
        mirrored += np.linalg.det(turn) < 0
        assert np.allclose(turn.T @ turn, abs(np.linalg.det(turn)) * np.eye(2)), "a rotation times one factor"
        targets = np.stack(np.meshgrid(np.arange(96), np.arange(96)), axis=-1)  # x, y
        sources = (targets - 47.5 - shift * 96) @ np.linalg.inv(turn).T + 47.5
        expected = map_coordinates(
            image[..., 0].astype(float), sources[..., ::-1].T.swapaxes(1, 2), order=1, mode="nearest"
        )
        assert np.abs(result - expected).max() < 2  # OpenCV counts places in 32nds of a pixel
    assert 0 < mirrored < 10


def test_it_is_a_transform_among_others() -> None:
    both = A.Compose([changed_only(flip=1), A.InvertImg(p=1.0)])
    assert np.array_equal(augment(both, face(), 0, 0, 0), 255 - face()[:, ::-1])
    dropping = A.Compose([changed_only(), A.CoarseDropout(p=1.0)])
    first = augment(dropping, face(), 0, 3, 7)
    assert not np.array_equal(first, face()) and not np.array_equal(first, augment(dropping, face(), 0, 3, 8))
    assert np.array_equal(first, augment(dropping, face(), 0, 3, 7))


@pytest.mark.parametrize("transform", [A.Resize(32, 32), A.ToFloat()])
def test_a_transform_must_leave_type_and_size(transform: A.BasicTransform) -> None:
    with pytest.raises(ValueError, match=r"returned (uint8 \(32, 32, 1\)|float32 .*), expected uint8 \(64, 64, 1\)"):
        augment(transform, face(), 0, 0, 0)
