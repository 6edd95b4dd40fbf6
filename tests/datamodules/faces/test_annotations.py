"""Landmarks from `.pts`, the authors' `.pkl` and CSV are the same numbers; what is wrong with one face is its own."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from datamodules.faces.annotations import FaceFiles, find_faces
from datamodules.faces.cropping import FaceError
from tests.datamodules.faces.face_writers import points, write_csv, write_face, write_image, write_pkl, write_pts


def _problem(files: FaceFiles, name: str) -> tuple[str, str]:
    with pytest.raises(FaceError) as caught:
        files.landmarks[name]()
    return caught.value.reason, str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "b.c")):
        write_face(tmp_path / "faces", name, points(number))
    return tmp_path / "faces"


@pytest.mark.parametrize("suffix", ["", ".jpg", ".PNG"])
@pytest.mark.parametrize("kind", ["pkl", "csv"])
def test_every_source_gives_the_same_landmarks(tmp_path: Path, folder: Path, kind: str, suffix: str) -> None:
    landmarks = {f"a{suffix}": points(0), f"b.c{suffix}": points(1)}
    path = tmp_path / f"landmarks.{kind}"
    if kind == "pkl":
        write_pkl(path, {**landmarks, f"a{suffix}": points(0).tolist()})
    else:
        write_csv(path, landmarks)
    files, from_pts = find_faces(folder, path), find_faces(folder)
    assert files.images == from_pts.images == {"a": folder / "a.png", "b.c": folder / "b.c.png"}
    assert set(files.landmarks) == set(from_pts.landmarks) == {"a", "b.c"}
    for name, read in files.landmarks.items():
        np.testing.assert_allclose(read(), from_pts.landmarks[name](), atol=1e-9)


def test_what_is_wrong_with_an_entry_of_the_pkl_is_its_own(tmp_path: Path, folder: Path) -> None:
    infinite = points()
    infinite[3, 1] = np.inf
    write_pkl(
        tmp_path / "l.pkl", {"a": points(), "few": points()[:5], "text": "none", "inf": infinite, "ragged": [[1], []]}
    )
    files = find_faces(folder, tmp_path / "l.pkl")
    np.testing.assert_array_equal(files.landmarks["a"](), points())
    reason, message = _problem(files, "few")
    assert reason == "wrong number of landmarks"
    assert "l.pkl, entry 'few': found 5 x 2, expected 68 x 2 numbers" in message
    assert [_problem(files, name)[0] for name in ("text", "inf", "ragged")] == ["unreadable landmarks"] * 3


def test_named_pipes_are_passed_over(tmp_path: Path) -> None:
    write_face(tmp_path, "a")
    os.mkfifo(tmp_path / "b.png")
    write_pts(tmp_path / "b.pts", points())
    assert set(find_faces(tmp_path).images) == {"a"}


def test_landmarks_that_would_not_fit_into_memory_are_refused(tmp_path: Path, folder: Path) -> None:
    nested: list[object] = [1.0]
    for _ in range(9):
        nested = [nested] * 12  # few bytes in a pickle, 40 GB as an array
    entries = {"nested": {"landmark": nested}, "huge": {"landmark": [[10**400, 0]] * 68}}
    (tmp_path / "l.pkl").write_bytes(pickle.dumps(entries))
    files = find_faces(folder, tmp_path / "l.pkl")
    assert [_problem(files, name)[0] for name in entries] == ["unreadable landmarks"] * 2


def test_what_is_wrong_with_a_row_of_the_csv_is_its_own(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "l.csv"
    write_csv(path, {"a": points(), "few": points()[:67]})
    row = path.read_text().splitlines()[1].split(",")
    path.write_text(
        path.read_text() + "\n" + ",".join(["word", "left", *row[2:]]) + "\n" + ",".join(["odd", *row[2:]]) + "\n"
    )
    files = find_faces(folder, path)
    np.testing.assert_array_equal(files.landmarks["a"](), points())
    assert _problem(files, "few") == (
        "wrong number of landmarks",
        f"{path}, line 3: found 67 x 2, expected 68 x 2 numbers",
    )
    assert _problem(files, "odd") == ("wrong number of landmarks", f"{path}, line 6: found 135 numbers, expected 136")
    assert _problem(files, "word")[0] == "unreadable landmarks" and "line 5" in _problem(files, "word")[1]


def test_what_is_wrong_as_a_whole_is_an_error(tmp_path: Path, folder: Path) -> None:
    def refused(name: str, text: str = "") -> str:
        path = tmp_path / name
        if text:
            path.write_text(text)
        with pytest.raises(ValueError) as caught:
            find_faces(folder, path)
        return str(caught.value)

    assert "file of landmarks not found" in refused("none.csv")
    assert "landmarks are read from .pkl or .csv files" in refused("l.txt", "a")
    assert "l.csv, line 1: found 'name,x,y'..., expected name,x0,y0,...,x67,y67" in refused("l.csv", "name,x,y\n")
    assert "not a readable pickle" in refused("l.pkl", "name,x0")
    write_pkl(tmp_path / "l.pkl", {"a.jpg": points(), "a": points()})
    assert "two entries for one face: a.jpg and a" in refused("l.pkl")
    write_pkl(tmp_path / "l.pkl", {})
    assert "holds no face" in refused("l.pkl")
    (tmp_path / "l.pkl").write_bytes(b"\x80\x02]q\x00.")  # a list
    assert "expected a dictionary of image name" in refused("l.pkl")
    write_image(folder, "a")
    (folder / "a.png").rename(folder / "a.jpg")
    write_image(folder, "a")
    with pytest.raises(ValueError, match=r"two entries for one face: a\.jpg and a\.png"):
        find_faces(folder)
