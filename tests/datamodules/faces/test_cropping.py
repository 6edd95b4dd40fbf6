"""Reading `.pts` files, cropping faces, and folders of them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.faces.cropping import crop_face, read_pts
from datamodules.faces.sets import load_faces
from tests.datamodules.faces.face_writers import points as _points
from tests.datamodules.faces.face_writers import write_face as _write_face
from tests.datamodules.faces.face_writers import write_pts as _write_pts


def test_points_become_zero_based(tmp_path: Path) -> None:
    _write_pts(tmp_path / "a.pts", _points())
    np.testing.assert_allclose(read_pts(tmp_path / "a.pts"), _points(), atol=1e-9)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "version: 2", "line 1: found 'version: 2', expected 'version: 1'"),
        (2, "n_points: 5", "line 2: found 'n_points: 5', expected 'n_points: 68'"),
        (3, "[", "line 3: found '\\[', expected '{'"),
        (10, "1.0", "line 10: found '1.0', expected two finite numbers"),
        (10, "1.0 2.0 3.0", "line 10: found '1.0 2.0 3.0'"),
        (10, "1.0 two", "line 10: found '1.0 two'"),
        (10, "nan 2.0", "line 10: found 'nan 2.0'"),
        (10, "", "line 72: 67 points before '}', expected 68"),
        (72, "9 9", "line 72: the file ends with '9 9', expected a closing '}'"),
    ],
)
def test_malformed_pts_names_file_and_line(tmp_path: Path, line: int, text: str, message: str) -> None:
    path = tmp_path / "bad.pts"
    _write_pts(path, _points())
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"bad\.pts, {message}"):
        read_pts(path)


@pytest.mark.parametrize("content", [b"", b"version: 1\n", b"\xff\xfe\x00binary"])
def test_truncated_and_binary_pts_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pts"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.pts"):
        read_pts(path)


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


def test_folder_is_read_and_counted(tmp_path: Path) -> None:
    for name in ("b", "a"):
        _write_face(tmp_path, name, _points())
    _write_face(tmp_path, "small", 20 + (_points() - 20) / 2)  # crop of 39 pixels
    Image.new("L", (50, 50)).save(tmp_path / "unmarked.bmp")
    faces = load_faces(tmp_path, size=32, margin=1.3, min_face_size=50)
    assert faces.names == ["a", "b"]
    images = np.asarray(faces.images)
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8
    assert faces.crop_sides.tolist() == pytest.approx([78, 78])
    assert faces.landmarks.shape == (2, 68, 2) and faces.landmarks.dtype == np.float32
    assert "2 faces kept; left out 1 with a crop below 50 px and 1 images without a .pts file" in faces.summary


def test_gray_images_become_rgb(tmp_path: Path) -> None:
    _write_pts(tmp_path / "a.pts", _points())
    Image.new("L", (100, 100), 77).save(tmp_path / "a.jpg")
    assert np.asarray(load_faces(tmp_path, 32, 1.3, 0).images).tolist() == np.full((1, 32, 32, 3), 77).tolist()


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not found: .*nowhere"):
        load_faces(tmp_path / "nowhere", 32, 1.3, 0)
    with pytest.raises(ValueError, match=r"no \.pts files"):
        load_faces(tmp_path, 32, 1.3, 0)
    _write_pts(tmp_path / "a.pts", _points())
    with pytest.raises(ValueError, match=r"a: has landmarks, but no image of that name"):
        load_faces(tmp_path, 32, 1.3, 0)
    _write_face(tmp_path, "a", _points())
    with pytest.raises(ValueError, match=r"no face left to use.*left out 1 with a crop below 500 px"):
        load_faces(tmp_path, 32, 1.3, 500)
    Image.new("L", (50, 50)).save(tmp_path / "a.bmp")
    with pytest.raises(ValueError, match=r"two entries for one face: a\.bmp and a\.png"):
        load_faces(tmp_path, 32, 1.3, 0)


def test_bad_images_are_refused(tmp_path: Path) -> None:
    _write_face(tmp_path, "a", _points())
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        load_faces(tmp_path, 32, 1.3, 0)
    Image.fromarray(np.zeros((100, 100), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: pixel format 'I;16', expected 8 bits"):
        load_faces(tmp_path, 32, 1.3, 0)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 100, 3), np.uint16))  # which Pillow would open as 8-bit
    with pytest.raises(ValueError, match=r"a\.png: 16 bits, expected 8 bits"):
        load_faces(tmp_path, 32, 1.3, 0)
    for kind in ("EPS", "GIF"):  # whatever its name says; the former would start Ghostscript
        Image.fromarray(np.zeros((100, 100), np.uint8)).save(tmp_path / "a.png", kind)
        with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
            load_faces(tmp_path, 32, 1.3, 0)


def test_impossible_landmarks_are_refused(tmp_path: Path) -> None:
    far = _points()
    far[7] = (124.4, 50)  # the image ends at 99.5: 24.9 % of its width outside
    _write_face(tmp_path, "a", far)
    assert load_faces(tmp_path, 32, 1.3, 0).names == ["a"]
    far[7] = (125, 50)
    _write_face(tmp_path, "a", far)
    with pytest.raises(
        ValueError, match=r"a\.png: point 7 at zero-based \(125, 50\) .* 25% outside .* of 100 x 100 px"
    ):
        load_faces(tmp_path, 32, 1.3, 0)
    _write_face(tmp_path, "a", np.full((68, 2), 50.0))
    with pytest.raises(ValueError, match=r"a\.png: all 68 landmarks lie on one point"):
        load_faces(tmp_path, 32, 1.3, 0)
