"""`prepare.py`: what is packed equals what is cropped into memory; what cannot be used is listed with the reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands.prepare import prepare
from datamodules.faces.packed import is_prepared, open_faces
from datamodules.faces.sets import load_faces
from tests.datamodules.faces.face_writers import points, write_csv, write_face, write_image, write_pkl, write_pts


def _prepare(faces: Path, out: Path, *more: str) -> dict[str, Any]:
    prepare([f"--faces={faces}", f"--out={out}", "--hr_size=64", *more])
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return manifest


def _refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        prepare(args)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def _damaged(root: Path) -> Path:
    """A good face, and one face per reason to leave it out."""
    write_face(root, "good_1", points(3))
    write_image(root, "alone")
    write_pts(root / "imageless.pts", points())
    write_face(root, "small", 40 + points() / 5)
    write_face(root, "cut")
    (root / "cut.png").write_bytes((root / "cut.png").read_bytes()[:500])
    write_face(root, "text")
    (root / "text.pts").write_text("nothing")
    write_face(root, "few")
    (root / "few.pts").write_text((root / "few.pts").read_text().replace("n_points: 68", "n_points: 67"))
    far = points()
    far[0] = (-30, 50)
    write_face(root, "far", far)
    return root


def test_packed_faces_equal_those_cropped_into_memory(tiny_faces: Path, tmp_path: Path) -> None:
    manifest = _prepare(tiny_faces, tmp_path / "packed")
    packed, cropped = open_faces(tmp_path / "packed", 64, 1.3), load_faces(tiny_faces, 64, 1.3, 0)
    assert isinstance(packed.images, np.memmap) and packed.images.shape == (12, 64, 64, 3)
    np.testing.assert_array_equal(packed.images, np.asarray(cropped.images))
    np.testing.assert_array_equal(packed.landmarks, cropped.landmarks)
    np.testing.assert_array_equal(packed.crop_sides, cropped.crop_sides)
    assert packed.names == cropped.names == manifest["photographs"]
    assert packed.fingerprint == cropped.fingerprint == manifest["fingerprint"]
    assert (manifest["hr_size"], manifest["margin"], manifest["source"]) == (64, 1.3, str(tiny_faces))
    assert (tmp_path / "packed" / "SYNTHETIC").is_file()
    assert np.load(tmp_path / "packed" / "images.npy").sum() == np.asarray(cropped.images).sum()  # a plain .npy file


def test_every_reason_is_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = _prepare(_damaged(tmp_path / "faces"), tmp_path / "packed", "--min_face_size=40")
    assert manifest["names"] == ["good_1"] and manifest["photographs"] == ["good"]
    assert {entry["name"]: entry["reason"] for entry in manifest["left_out"]} == {
        "alone": "image without landmarks",
        "imageless": "landmarks without image",
        "small": "face too small",
        "cut": "unreadable image",
        "text": "unreadable landmarks",
        "few": "wrong number of landmarks",
        "far": "landmarks outside the image",
    }
    assert all(entry["name"] in entry["detail"] for entry in manifest["left_out"])
    said = capsys.readouterr().out
    assert "1 faces of 64 px" in said and "left out: 7\n" in said
    assert "  wrong number of landmarks: 1 (few)\n" in said
    assert not (tmp_path / "packed" / "SYNTHETIC").exists()


def test_only_the_first_names_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_face(tmp_path / "faces", "good")
    for number in range(7):
        write_image(tmp_path / "faces", f"x{number}")
    assert len(_prepare(tmp_path / "faces", tmp_path / "packed")["left_out"]) == 7
    assert "image without landmarks: 7 (x0, x1, x2, x3, x4, ...)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["pkl", "csv"])
def test_other_sources_give_the_same_faces(tmp_path: Path, kind: str) -> None:
    landmarks = {f"{number:06d}.jpg": points(number) for number in range(3)}
    for number, (name, values) in enumerate(landmarks.items()):
        write_face(tmp_path / "faces", name[:-4], values, seed=number)
    path = tmp_path / f"landmarks.{kind}"
    (write_pkl if kind == "pkl" else write_csv)(path, landmarks)  # type: ignore[operator]
    expected = _prepare(tmp_path / "faces", tmp_path / "from_pts")
    found = _prepare(tmp_path / "faces", tmp_path / f"from_{kind}", f"--landmarks={path}")
    assert found["digests"] == expected["digests"]
    ours, theirs = (open_faces(tmp_path / folder, 64, 1.3) for folder in (f"from_{kind}", "from_pts"))
    np.testing.assert_allclose(ours.landmarks, theirs.landmarks, atol=1e-4)


def test_what_cannot_be_prepared_exits_with_2_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces, out = tmp_path / "faces", tmp_path / "out"
    args = [f"--faces={faces}", f"--out={out}"]
    assert "folder of faces not found" in _refused(args, capsys)
    write_image(faces, "a")
    assert "no .pts files" in _refused(args, capsys)
    write_pts(faces / "b.pts", points())
    message = _refused(args, capsys)
    assert "no face left to use" in message and "image without landmarks: 1 (a)" in message
    write_face(faces, "c")
    assert "multiple of 64 pixels, got 100" in _refused([*args, "--hr_size=100"], capsys)
    assert "must be at least 1 (the landmarks' own box), got nan" in _refused([*args, "--margin=nan"], capsys)
    assert "got 1000.0 (at most 10)" in _refused([*args, "--margin=1000"], capsys)
    assert "got 64000 (the most is 2048)" in _refused([*args, "--hr_size=64000"], capsys)
    assert "min_face_size must be 0 or more pixels, got nan" in _refused([*args, "--min_face_size=nan"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_only_prepared_folders_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_face(tmp_path / "faces", "a")
    before = sorted(tmp_path.rglob("*"))
    message = _refused([f"--faces={tmp_path / 'faces'}", f"--out={tmp_path / 'faces'}"], capsys)
    assert "exists and holds no prepared faces; give an empty or new folder" in message
    assert sorted(tmp_path.rglob("*")) == before
    _prepare(tmp_path / "faces", tmp_path / "out")
    write_face(tmp_path / "faces", "b", seed=2)
    assert _prepare(tmp_path / "faces", tmp_path / "out")["names"] == ["a", "b"]
    (tmp_path / "out" / "notes.txt").write_text("mine")
    message = _refused([f"--faces={tmp_path / 'faces'}", f"--out={tmp_path / 'out'}"], capsys)
    assert "holds notes.txt, too, which would be lost" in message
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine" and (tmp_path / "out" / "images.npy").is_file()


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path: Path) -> None:
    write_face(tmp_path / "faces", "a")
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    _prepare(tmp_path / "faces", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "images.npy").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "faces", "link"]


def test_other_faces_than_asked_for_are_refused(tiny_faces: Path, tmp_path: Path) -> None:
    _prepare(tiny_faces, tmp_path / "out")
    with pytest.raises(ValueError, match=r"out holds faces of 64 px with margin 1\.3; asked for are hr_size 128 and"):
        open_faces(tmp_path / "out", 128, 1.3)
    with pytest.raises(ValueError, match=r"crop_margin 1\.5.*prepare\.py .*--hr_size 64 --margin 1\.5"):
        open_faces(tmp_path / "out", 64, 1.5)


@pytest.mark.parametrize("part", ["images.npy", "landmarks.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_damaged_folders_are_refused(tiny_faces: Path, tmp_path: Path, part: str, damage: str) -> None:
    _prepare(tiny_faces, tmp_path / "out")
    path = tmp_path / "out" / part
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "gone":
        path.unlink()
    else:  # of another set
        shutil.copytree(tiny_faces, tmp_path / "fewer")
        (tmp_path / "fewer" / "face00003.pts").unlink()
        _prepare(tmp_path / "fewer", tmp_path / "other")
        shutil.copy(tmp_path / "other" / part, path)
    with pytest.raises(ValueError, match=r"damaged|not the manifest of prepared faces"):
        open_faces(tmp_path / "out", 64, 1.3)


def test_faces_of_384_pixels(tiny_faces: Path, tmp_path: Path) -> None:
    prepare([f"--faces={tiny_faces}", f"--out={tmp_path / 'out'}", "--hr_size=384", "--margin=1.5"])
    faces = open_faces(tmp_path / "out", 384, 1.5)
    box = np.ptp(faces.landmarks, axis=1).max(axis=1)
    np.testing.assert_allclose(box, 384 / 1.5, rtol=1e-4)
    assert Image.fromarray(faces.images[0]).size == (384, 384)
    assert is_prepared(tmp_path / "out") and not is_prepared(tiny_faces)
