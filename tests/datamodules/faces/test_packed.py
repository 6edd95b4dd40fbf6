"""Prepared folders and packed ones: the same faces, once; what cannot be used is listed with the reason."""

import json
import multiprocessing
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands.prepare import prepare
from datamodules.faces.annotations import find_faces
from datamodules.faces.cropping import FaceCrop, cut_faces
from datamodules.faces.packed import open_faces
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
    (root / "few.pts").write_text("version: 1 n_points: 1 {\n1 2\n}")
    far = points()
    far[0] = (-30, 50)
    write_face(root, "far", far)
    return root


def _copy(faces: Path, root: Path, count: int = 4) -> Path:
    """Some faces of a folder, in one that may be written to."""
    root.mkdir()
    for path in sorted(faces.glob("face*"))[: 2 * count]:
        shutil.copy2(path, root)
    return root


@pytest.mark.parametrize("prepared", [False, True])
def test_packed_faces_are_those_that_were_cut_out(tiny_faces: Path, tmp_path: Path, prepared: bool) -> None:
    root = tiny_faces
    if prepared:
        root = tmp_path / "packed"
        manifest = _prepare(tiny_faces, root)
        assert (manifest["hr_size"], manifest["margin"], manifest["source"]) == (64, 1.3, str(tiny_faces))
        assert (root / "SYNTHETIC").is_file()
    faces = open_faces(root, 64, 1.3)
    cut = dict(cut_faces(find_faces(tiny_faces), 64, 1.3, 0))
    assert faces.names == list(cut) and len(faces) == 12
    assert isinstance(faces.images, np.memmap) and faces.images.shape == (12, 64, 64, 3)
    for index, face in enumerate(cut.values()):
        assert isinstance(face, FaceCrop)
        np.testing.assert_array_equal(faces.image(index), face.image)
        np.testing.assert_array_equal(faces.landmarks[index], face.landmarks)
        assert (faces.crop_sides[index], faces.digests[index]) == (face.side, face.digest)
    assert faces.summary == f"{root}: 12 faces; left out 0"
    (images,) = root.rglob("images.npy") if prepared else root.rglob("faces_64_1.3/images.npy")
    assert np.load(images).sum() == faces.images.sum()  # a plain .npy file


def test_fingerprint_stays_what_it_was(tmp_path: Path) -> None:
    """Runs record it: another one would keep them from being resumed."""
    for name in ("a", "b"):
        write_face(tmp_path, name, points(3))
    assert open_faces(tmp_path, 64, 1.3).fingerprint == "d5fd4addb854ff0a"


def test_every_reason_is_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = _prepare(_damaged(tmp_path / "faces"), tmp_path / "packed", "--min_face_size=40")
    assert manifest["names"] == ["good_1"]
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
    printed = capsys.readouterr().out
    assert "packed: 1 faces; left out 7; face too small: 1 (such as small); image without landmarks: 1 (such" in printed
    assert not (tmp_path / "packed" / "SYNTHETIC").exists()
    packed, raw = (open_faces(tmp_path / folder, 64, 1.3) for folder in ("packed", "faces"))
    assert raw.names == ["good_1", "small"]  # how large faces have to be is asked for later
    assert raw.select(raw.crop_sides >= 40).fingerprint == packed.fingerprint
    assert "faces: 2 faces; left out 6; image without landmarks: 1 (such as alone); " in raw.summary


def test_a_folder_without_a_usable_face_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder of faces not found: .*nowhere"):
        open_faces(tmp_path / "nowhere", 64, 1.3)
    write_image(tmp_path, "a")
    with pytest.raises(ValueError, match=r"no landmarks, expected NAME\.pts beside"):
        open_faces(tmp_path, 64, 1.3)
    write_pts(tmp_path / "b.pts", points())
    with pytest.raises(
        ValueError, match=r"no face left to use: 0 faces; left out 2; image without landmarks: 1 \(such"
    ):
        open_faces(tmp_path, 64, 1.3)


def _pack(root: Path) -> os.stat_result:
    return (root / ".superfer_cache" / "faces_64_1.3" / "images.npy").stat()


def test_a_folder_of_images_is_packed_once_and_again_when_it_has_changed(tiny_faces: Path, tmp_path: Path) -> None:
    root = _copy(tiny_faces, tmp_path / "faces")
    faces = open_faces(root, 64, 1.3)
    first = _pack(root)
    (root / "notes.txt").write_text("of no concern")
    assert open_faces(root, 64, 1.3).fingerprint == faces.fingerprint and _pack(root) == first
    assert open_faces(root, 128, 1.3).images.shape == (4, 128, 128, 3) and _pack(root) == first
    image = sorted(root.glob("face*.png"))[0]
    os.utime(image, ns=(0, 0))
    assert open_faces(root, 64, 1.3).fingerprint == faces.fingerprint and _pack(root) != first
    Image.new("RGB", (128, 128)).save(image)
    assert (open_faces(root, 64, 1.3).image(0) == 0).all() and faces.image(0).any()  # which stays mapped
    image.with_suffix(".pts").unlink()
    assert open_faces(root, 64, 1.3).names == faces.names[1:]


def test_a_damaged_pack_is_made_again(tiny_faces: Path, tmp_path: Path) -> None:
    root = _copy(tiny_faces, tmp_path / "faces")
    expected = open_faces(root, 64, 1.3).fingerprint
    for part in ("images.npy", "landmarks.npy", "manifest.json"):
        path = root / ".superfer_cache" / "faces_64_1.3" / part
        path.write_bytes(path.read_bytes()[:-200])
        faces = open_faces(root, 64, 1.3)
        assert faces.fingerprint == expected and faces.image(3).any()


def test_faces_are_packed_elsewhere_where_nothing_can_be_written(tiny_faces: Path, tmp_path: Path) -> None:
    root = _copy(tiny_faces, tmp_path / "faces")
    (root / ".superfer_cache").write_text("in the way")  # whoever runs the tests may write anywhere
    with pytest.warns(UserWarning, match=r"\.superfer_cache/faces_64_1\.3 cannot be written .*cut out at every start"):
        faces = open_faces(root, 64, 1.3)
    (root / ".superfer_cache").unlink()
    np.testing.assert_array_equal(faces.images, open_faces(root, 64, 1.3).images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_faces(root, 64, 1.3).fingerprint == faces.fingerprint


def _open(root: Path) -> tuple[str, int]:
    faces = open_faces(root, 64, 1.3)
    return faces.fingerprint, int(faces.images.sum())


def test_processes_that_open_a_folder_at_once_find_the_same_faces(tiny_faces: Path, tmp_path: Path) -> None:
    root = _copy(tiny_faces, tmp_path / "faces")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(_open, [root] * 4, chunksize=1)
    assert set(found) == {_open(root)}
    assert [path.name for path in (root / ".superfer_cache").iterdir()] == ["faces_64_1.3"]


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
    assert "no landmarks, expected NAME.pts beside NAME.jpg" in _refused(args, capsys)
    write_pts(faces / "b.pts", points())
    message = _refused(args, capsys)
    assert "no face left to use: 0 faces; left out 2; image without landmarks: 1 (such as a)" in message
    write_face(faces, "c")
    assert "hr_size is 100, expected a multiple of 64 pixels, 64 to 2048" in _refused([*args, "--hr_size=100"], capsys)
    assert "margin is nan, expected 1 (the landmarks' own box) to 10" in _refused([*args, "--margin=nan"], capsys)
    assert "margin is 1000.0, expected 1" in _refused([*args, "--margin=1000"], capsys)
    assert "hr_size is 64000, expected" in _refused([*args, "--hr_size=64000"], capsys)
    assert "min_face_size is nan, expected 0 or more pixels" in _refused([*args, "--min_face_size=nan"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_only_prepared_folders_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_face(tmp_path / "faces", "a")
    before = sorted(tmp_path.rglob("*"))
    message = _refused([f"--faces={tmp_path / 'faces'}", f"--out={tmp_path / 'faces'}"], capsys)
    assert "faces holds 'a.png', which would be lost, expected an empty or new folder" in message
    assert sorted(tmp_path.rglob("*")) == before
    _prepare(tmp_path / "faces", tmp_path / "out")
    write_face(tmp_path / "faces", "b", seed=2)
    assert _prepare(tmp_path / "faces", tmp_path / "out")["names"] == ["a", "b"]
    (tmp_path / "out" / "notes.txt").write_text("mine")
    message = _refused([f"--faces={tmp_path / 'faces'}", f"--out={tmp_path / 'out'}"], capsys)
    assert "holds 'notes.txt', which would be lost" in message
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine" and (tmp_path / "out" / "images.npy").is_file()
    (tmp_path / "mine.npy").write_text("mine")
    assert "holds 'mine.npy'" in _refused([f"--faces={tmp_path / 'faces'}", f"--out={tmp_path / 'mine.npy'}"], capsys)
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays" / "images.npy").write_text("mine")
    assert "holds 'images.npy'" in _refused([f"--faces={tmp_path / 'faces'}", f"--out={tmp_path / 'arrays'}"], capsys)


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path: Path) -> None:
    write_face(tmp_path / "faces", "a")
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    _prepare(tmp_path / "faces", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "images.npy").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "faces", "link"]


def test_other_faces_than_asked_for_are_refused(tiny_faces: Path, tmp_path: Path) -> None:
    _prepare(tiny_faces, tmp_path / "out")
    with pytest.raises(ValueError, match=r"out holds faces of 64 px with margin 1\.3, expected hr_size 128 and"):
        open_faces(tmp_path / "out", 128, 1.3)
    with pytest.raises(ValueError, match=r"crop_margin 1\.5.*superfer prepare .*--hr_size 64 --margin 1\.5"):
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
    with pytest.raises(ValueError, match=r"out is damaged.*; prepare it again"):
        open_faces(tmp_path / "out", 64, 1.3)


@pytest.mark.parametrize(
    "change",
    [
        {"names": "x" * 12},
        {"names": list(range(12))},
        {"digests": ["0"] * 11},
        {"crop_sides": ["1"] * 12},
        {"left_out": 3},
        {"left_out": ["a"]},
    ],
    ids=str,
)
def test_a_senseless_manifest_is_refused(tiny_faces: Path, tmp_path: Path, change: dict[str, object]) -> None:
    manifest = _prepare(tiny_faces, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(ValueError, match=r"out is damaged.*; prepare it again"):
        open_faces(tmp_path / "out", 64, 1.3)


@pytest.mark.parametrize("part", ["images.npy", "landmarks.npy", "manifest.json"])
def test_nothing_but_files_is_read(tiny_faces: Path, tmp_path: Path, part: str) -> None:
    _prepare(tiny_faces, tmp_path / "out")
    (tmp_path / "out" / part).unlink()
    os.mkfifo(tmp_path / "out" / part)
    with pytest.raises(ValueError, match=rf"out is damaged.*{part}.* is not a regular file"):
        open_faces(tmp_path / "out", 64, 1.3)


def test_a_deep_manifest_is_refused(tiny_faces: Path, tmp_path: Path) -> None:
    _prepare(tiny_faces, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"out is damaged.*nested too deeply"):
        open_faces(tmp_path / "out", 64, 1.3)


def test_a_face_that_has_changed_is_named_when_it_is_read(tiny_faces: Path, tmp_path: Path) -> None:
    names = _prepare(tiny_faces, tmp_path / "out")["names"]
    path = tmp_path / "out" / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    faces = open_faces(tmp_path / "out", 64, 1.3)
    others = faces.select(np.arange(12) != 11)
    assert all(others.image(index).any() for index in range(11))
    with pytest.raises(ValueError, match=rf"images\.npy is damaged: face {names[11]} has changed"):
        faces.select(np.arange(12) == 11).image(0)


def test_faces_of_384_pixels(tiny_faces: Path, tmp_path: Path) -> None:
    prepare([f"--faces={tiny_faces}", f"--out={tmp_path / 'out'}", "--hr_size=384", "--margin=1.5"])
    faces = open_faces(tmp_path / "out", 384, 1.5)
    box = np.ptp(faces.landmarks, axis=1).max(axis=1)
    np.testing.assert_allclose(box, 384 / 1.5, rtol=1e-4)
    assert Image.fromarray(faces.image(0)).size == (384, 384)
