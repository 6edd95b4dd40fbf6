"""Photographs are kept apart, and chosen faces keep what belongs to them."""

from dataclasses import replace

import numpy as np
import pytest

from datamodules.faces.packed import FaceSet
from datamodules.faces.splits import hold_out, photograph, refuse_shared
from datamodules.image_folder import digest_of


def _faces(names: list[str], first_pixel: int = 0) -> FaceSet:
    count = len(names)
    images = np.arange(first_pixel, first_pixel + count, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    digests = [digest_of(image.tobytes())[:32] for image in images]
    landmarks = np.zeros((count, 68, 2), np.float32)
    return FaceSet(names, images, np.arange(count), landmarks, np.arange(count) * 10.0, digests, "here")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("100_1", "100"), ("100_12", "100"), ("100_123", "100_123"), ("100", "100"), ("a_1_2", "a_1"), ("a_b", "a_b")],
)
def test_photograph_is_the_name_without_the_number_of_the_crop(name: str, expected: str) -> None:
    assert photograph(name) == expected


def test_crops_of_one_photograph_stay_together_when_held_out() -> None:
    names = [f"{number}_{crop}" for number in range(4000) for crop in (1, 2)]
    held_out = hold_out(names, 0.1)
    assert (held_out[::2] == held_out[1::2]).all()
    assert 0.085 < held_out.mean() < 0.115
    assert not (held_out & ~hold_out(names, 0.2)).any()  # a larger part contains the smaller one
    np.testing.assert_array_equal(hold_out(names[::-1], 0.1), held_out[::-1])  # whichever others are there
    assert np.array(names)[held_out][:6:2].tolist() == ["9_1", "39_1", "49_1"]  # the same in every version


def test_shared_photographs_and_pixels_are_refused() -> None:
    training = _faces(["100_1", "200_1"])
    refuse_shared(training, _faces(["101_1", "300"], first_pixel=50))
    with pytest.raises(ValueError, match=r"1 validation faces are of the same photograph .*'100_2' and.*'100_1'"):
        refuse_shared(training, _faces(["300", "100_2"], first_pixel=50))
    with pytest.raises(ValueError, match=r"1 validation faces are of the same pixels .*'400' and.*'200_1'"):
        refuse_shared(training, _faces(["400", "500"], first_pixel=1))


def test_chosen_faces_keep_what_belongs_to_them() -> None:
    everything = _faces(["a", "b", "c"])
    faces = everything.select(np.array([False, True, True]))
    assert (faces.names, faces.digests, faces.crop_sides.tolist()) == (["b", "c"], everything.digests[1:], [10, 20])
    again = faces.select(np.array([False, True]))
    assert (again.names, int(again.image(0)[0, 0, 0]), len(again)) == (["c"], 2, 1)


def test_fingerprint_follows_pixels_landmarks_and_order() -> None:
    faces = _faces(["a", "b"])
    assert faces.fingerprint == _faces(["x", "y"]).fingerprint  # names are not content
    other = faces.landmarks.copy()
    other[1, 5, 0] += 1
    different = [_faces(["a", "b"], 1), replace(faces, landmarks=other), replace(faces, digests=faces.digests[::-1])]
    assert faces.select(np.array([True, True])).fingerprint == faces.fingerprint
    assert len({faces.fingerprint, *(one.fingerprint for one in different)}) == 4
