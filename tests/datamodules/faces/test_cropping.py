"""Cropping faces: geometry, and what is refused for which reason."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.faces.annotations import FaceError, find_faces
from datamodules.faces.cropping import FaceCrop, crop_face, cut_faces
from tests.datamodules.faces.face_writers import points as _points
from tests.datamodules.faces.face_writers import write_face as _write_face
from tests.datamodules.faces.face_writers import write_pts as _write_pts


def _cut(root: Path, min_face_size: float = 0) -> dict[str, FaceCrop | FaceError]:
    return dict(cut_faces(find_faces(root), 32, 1.3, min_face_size))


def _problem(root: Path, name: str = "a", min_face_size: float = 0) -> tuple[str, str]:
    error = _cut(root, min_face_size)[name]
    assert isinstance(error, FaceError)
    return error.reason, str(error)


def test_crop_is_a_square_around_the_landmarks() -> None:
    _, moved = crop_face(Image.new("RGB", (100, 100)), _points(), size=64, margin=1.25)
    # The box of 60 x 40 becomes a square of 75 pixels, so 60 pixels become 51.2, centred on 31.5.
    np.testing.assert_allclose(moved.min(axis=0), [31.5 - 25.6, 31.5 - 17.0667], atol=1e-3)
    np.testing.assert_allclose(moved.max(axis=0), [31.5 + 25.6, 31.5 + 17.0667], atol=1e-3)


@pytest.mark.parametrize("size", [64, 128])
def test_landmarks_move_with_the_pixels(size: int) -> None:
    """A soft blob at a landmark is found at the moved landmark; forgetting half a pixel would be 0.2 px off."""
    points = _points()
    points[5] = (48.3, 51.6)
    y, x = np.mgrid[0:100, 0:100]
    blob = 250 * np.exp(-((x - 48.3) ** 2 + (y - 51.6) ** 2) / (2 * 5.0**2))
    crop, moved = crop_face(Image.fromarray(blob.round().astype(np.uint8)).convert("RGB"), points, size, margin=1.3)
    weights = crop[..., 0].astype(float)
    row, column = np.mgrid[0:size, 0:size]
    centroid = np.array([(weights * column).sum(), (weights * row).sum()]) / weights.sum()
    np.testing.assert_allclose(centroid, moved[5], atol=0.03)


def test_crop_beyond_the_border_is_filled_by_reflection() -> None:
    columns = np.tile(np.arange(100, dtype=np.uint8), (100, 1))
    points = _points()
    points[:, 0] -= 20.5  # the box now starts at the image's edge, so that a margin of 2 reaches 30 pixels beyond it
    crop, moved = crop_face(Image.fromarray(columns).convert("RGB"), points, size=120, margin=2.0)
    assert moved[0, 0] == 29.5
    np.testing.assert_array_equal(crop[60, 30:120, 0], np.arange(90))  # one image pixel per crop pixel
    np.testing.assert_array_equal(crop[60, :30, 0], np.arange(30)[::-1])


def test_many_faces_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in range(70):  # more than are cut out at a time
        _write_face(tmp_path, f"{number * 37 % 70:02d}", _points(number), seed=number)
    faces = _cut(tmp_path)
    assert list(faces) == [f"{number:02d}" for number in range(70)]
    face = faces["37"]
    assert isinstance(face, FaceCrop) and face.side == pytest.approx(78)
    image, landmarks = crop_face(Image.open(tmp_path / "37.png"), _points(1), 32, 1.3)
    np.testing.assert_array_equal(face.image, image)
    np.testing.assert_allclose(face.landmarks, landmarks, atol=1e-5)
    assert len({one.digest for one in faces.values() if isinstance(one, FaceCrop)}) == 70


def test_gray_images_become_rgb(tmp_path: Path) -> None:
    _write_pts(tmp_path / "a.pts", _points())
    Image.new("L", (100, 100), 77).save(tmp_path / "a.jpg")
    face = _cut(tmp_path)["a"]
    assert isinstance(face, FaceCrop) and face.image.tolist() == np.full((32, 32, 3), 77).tolist()


def test_small_and_lonely_faces_are_left_out(tmp_path: Path) -> None:
    _write_pts(tmp_path / "a.pts", _points())
    assert _problem(tmp_path) == ("landmarks without image", "a: has landmarks, but no image of that name")
    Image.new("L", (50, 50)).save(tmp_path / "b.bmp")
    assert _problem(tmp_path, "b") == ("image without landmarks", f"{tmp_path / 'b.bmp'}: no landmarks for it")
    _write_face(tmp_path, "a", _points())
    reason, message = _problem(tmp_path, min_face_size=78.5)
    assert reason == "face too small" and "a.png: the crop's side is 78.0 px, expected at least 78.5" in message
    assert isinstance(_cut(tmp_path, min_face_size=77.5)["a"], FaceCrop)


def test_bad_images_are_refused(tmp_path: Path) -> None:
    def refused() -> str:
        reason, message = _problem(tmp_path)
        assert reason == "unreadable image" and "a.png: " in message
        return message

    _write_face(tmp_path, "a", _points())
    intact = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(intact[: len(intact) // 2])
    assert "not a readable 8-bit image" in refused()
    Image.fromarray(np.zeros((100, 100), np.uint16)).save(tmp_path / "a.png")
    assert "more than 8 bits per channel" in refused()
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 100, 3), np.uint16))  # which Pillow would open as 8-bit
    assert "more than 8 bits per channel" in refused()
    for kind in ("EPS", "GIF"):  # whatever its name says; the former would start Ghostscript
        Image.fromarray(np.zeros((100, 100), np.uint8)).save(tmp_path / "a.png", kind)
        assert "not a readable 8-bit image (cannot identify" in refused()


def test_impossible_landmarks_are_refused(tmp_path: Path) -> None:
    far = _points()
    far[7] = (124.4, 50)  # the image ends at 99.5: 24.9 % of its width outside
    _write_face(tmp_path, "a", far)
    assert isinstance(_cut(tmp_path)["a"], FaceCrop)
    far[7] = (125, 50)
    _write_face(tmp_path, "a", far)
    reason, message = _problem(tmp_path)
    assert reason == "landmarks outside the image"
    assert "a.png: point 7 is at (125, 50), expected at most 25% outside the image of 100 x 100 px" in message
    _write_face(tmp_path, "a", np.full((68, 2), 50.0))
    reason, message = _problem(tmp_path)
    assert reason == "face too small" and "a.png: the crop's side is 0.0 px, expected at least 1" in message
