"""Landmarks from `.pts`, the authors' `.pkl` and CSV are the same numbers; a damaged entry spoils no other."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from datamodules.faces.annotations import FaceError, FaceFiles, find_faces, read_pts
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


def test_points_become_zero_based(tmp_path: Path) -> None:
    write_pts(tmp_path / "a.pts", points())
    np.testing.assert_allclose(read_pts(tmp_path / "a.pts"), points(), atol=1e-9)


@pytest.mark.parametrize(
    ("line", "text", "reason", "message"),
    [
        (1, "version: 2", "unreadable landmarks", r"found 'version: 2.*', expected 'version: 1 n_points: 68 "),
        (2, "n_points: many", "unreadable landmarks", "found 'version: 1"),
        (3, "[", "unreadable landmarks", "found 'version: 1"),
        (10, "1.0", "unreadable landmarks", "point 6: not enough values .*, expected two finite numbers"),
        (10, "1.0 2.0 3.0", "unreadable landmarks", "point 6: too many values"),
        (10, "1.0 two", "unreadable landmarks", "point 6: could not convert string to float: 'two'"),
        (10, "nan 2.0", "unreadable landmarks", "point 6: found nan, 2.0, expected two finite numbers"),
        (10, "", "wrong number of landmarks", "found 67 points, expected 68"),
        (72, "9 9", "unreadable landmarks", "found 'version: 1"),
    ],
)
def test_malformed_pts_say_what_is_wrong(tmp_path: Path, line: int, text: str, reason: str, message: str) -> None:
    path = tmp_path / "bad.pts"
    write_pts(path, points())
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines))
    with pytest.raises(FaceError, match=rf"bad\.pts(:|,) {message}") as caught:
        read_pts(path)
    assert caught.value.reason == reason


@pytest.mark.parametrize("content", [b"", b"version: 1\n", b"\xff\xfe\x00binary"])
def test_truncated_and_binary_pts_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pts"
    path.write_bytes(content)
    with pytest.raises(FaceError, match=r"bad\.pts: (found|'utf-8' codec).*, expected 'version: 1"):
        read_pts(path)


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
        tmp_path / "l.pkl",
        {"a": points(), "few": points()[:5], "none": None, "text": "68", "inf": infinite, "ragged": [[1], []]},
    )
    files = find_faces(folder, tmp_path / "l.pkl")
    np.testing.assert_array_equal(files.landmarks["a"](), points())
    reason, message = _problem(files, "few")
    assert reason == "wrong number of landmarks"
    assert "l.pkl, entry 'few': found 5 points, expected 68" in message
    assert [_problem(files, name)[0] for name in ("none", "text")] == ["unreadable landmarks"] * 2
    assert "entry 'inf', point 3: found" in _problem(files, "inf")[1]
    assert "entry 'ragged', point 0: not enough values" in _problem(files, "ragged")[1]


def test_named_pipes_are_passed_over(tmp_path: Path) -> None:
    write_face(tmp_path, "a")
    os.mkfifo(tmp_path / "b.png")
    write_pts(tmp_path / "b.pts", points())
    assert set(find_faces(tmp_path).images) == {"a"}


def test_landmarks_that_would_not_fit_into_memory_are_refused(tmp_path: Path, folder: Path) -> None:
    nested: list[object] = [1.0]
    for _ in range(9):
        nested = [nested] * 12  # few bytes in a pickle, 40 GB as an array
    entries = {"nested": {"landmark": nested}, "pair": {"landmark": [[nested, nested]]}}
    entries["huge"] = {"landmark": [[10**400, 0]] * 68}
    (tmp_path / "l.pkl").write_bytes(pickle.dumps(entries))
    files = find_faces(folder, tmp_path / "l.pkl")
    assert [_problem(files, name)[0] for name in entries] == ["unreadable landmarks"] * 3


def test_what_is_wrong_with_a_row_of_the_csv_is_its_own(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "l.csv"
    write_csv(path, {"a": points(), "few": points()[:67]})
    row = path.read_text().splitlines()[1].split(",")
    path.write_text(
        path.read_text() + "\n" + ",".join(["word", "left", *row[2:]]) + "\n" + ",".join(["odd", *row[2:]]) + "\n"
    )
    files = find_faces(folder, path)
    np.testing.assert_array_equal(files.landmarks["a"](), points())
    assert _problem(files, "few") == ("wrong number of landmarks", f"{path}, line 3: found 67 points, expected 68")
    assert f"{path}, line 6, point 67: not enough values" in _problem(files, "odd")[1]
    assert f"{path}, line 5, point 0: could not convert string to float: 'left'" in _problem(files, "word")[1]


@pytest.mark.parametrize("number", ["1_0", "\u0661", "\uff11"])
def test_only_plain_digits_are_numbers(tmp_path: Path, number: str) -> None:
    write_face(tmp_path, "a")
    path = tmp_path / "a.pts"
    path.write_text(path.read_text().replace("21.0", number, 1))
    reason, message = _problem(find_faces(tmp_path), "a")
    assert reason == "unreadable landmarks" and f"{path}, point 0: found {number!r}, expected two finite" in message


def test_messages_do_not_repeat_long_files(tmp_path: Path) -> None:
    write_face(tmp_path, "a")
    path = tmp_path / "a.pts"
    path.write_text(path.read_text().replace("21.0", "x" * 100_000, 1))
    (tmp_path / "l.csv").write_text("x" * 100_000)
    (tmp_path / "l.pkl").write_text("x" * 100_000)
    messages = [_problem(find_faces(tmp_path), "a")[1]]
    for name in ("l.csv", "l.pkl"):
        with pytest.raises(ValueError) as refusal:
            find_faces(tmp_path, tmp_path / name)
        messages.append(str(refusal.value))
    assert max(map(len, messages)) < 300 + len(str(tmp_path))


def test_what_is_wrong_as_a_whole_is_an_error(tmp_path: Path, folder: Path) -> None:
    def refused(name: str, text: str = "") -> str:
        path = tmp_path / name
        if text:
            path.write_text(text)
        with pytest.raises(ValueError) as caught:
            find_faces(folder, path)
        return str(caught.value)

    assert "landmarks not found: " in refused("none.csv")
    assert "l.txt, expected a .pkl or .csv file" in refused("l.txt", "a")
    assert "l.csv, line 1: found 'name,x,y', expected name,x0,y0,...,x67,y67" in refused("l.csv", "name,x,y\n")
    assert "not a readable pickle" in refused("l.pkl", "name,x0")
    write_pkl(tmp_path / "l.pkl", {"a.jpg": points(), "a": points()})
    assert "two entries for the face 'a', the second is a; keep one of them" in refused("l.pkl")
    write_pkl(tmp_path / "l.pkl", {})
    assert "l.pkl: no landmarks, expected" in refused("l.pkl")
    (tmp_path / "l.pkl").write_bytes(b"\x80\x02]q\x00.")  # a list
    assert "expected a dictionary of image name" in refused("l.pkl")
    write_image(folder, "a")
    (folder / "a.png").rename(folder / "a.jpg")
    write_image(folder, "a")
    with pytest.raises(ValueError, match=r"two entries for the face 'a', the second is a\.png"):
        find_faces(folder)
    with pytest.raises(ValueError, match=r"folder of faces not found: .*nowhere"):
        find_faces(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no landmarks, expected NAME\.pts beside NAME\.jpg"):
        find_faces(tmp_path)
