"""Files and folders that appear whole or not at all, and what killed processes leave behind."""

import os
import time
from pathlib import Path

import pytest

from datamodules.synthetic import is_synthetic
from storage.atomic import remove_leftovers, replace_folder, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_atomically_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["b.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask  # others may read it, unlike the usual temporary file


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "file", []
    write_atomically(path, "old")
    before = path.stat().st_ino
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.read_text()))
    write_atomically(path, "new")
    assert seen == ["old"] and path.read_text() == "new"
    assert path.stat().st_ino != before, "renamed into its place, not written over"


def test_replace_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    replace_folder(path, lambda new: (new / "one").write_text("1"))
    replace_folder(path, lambda new: (new / "two").write_text("2"))
    assert names(path) == ["two"]
    assert names(tmp_path) == ["folder"]


def test_failed_replacement_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    replace_folder(path, lambda new: (new / "one").write_text("1"))

    def fail(new: Path) -> None:
        (new / "two").write_text("2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_folder(path, fail)
    assert names(path) == ["one"]
    assert names(tmp_path) == ["folder"]


def test_a_file_in_the_way_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.write_text("in the way")
    replace_folder(path, lambda new: (new / "one").write_text("1"))
    assert names(path) == ["one"]


def test_leftovers_are_removed_when_they_are_old(tmp_path: Path) -> None:
    (tmp_path / ".block.npy.writing-0123456789ab").write_text("old")
    (tmp_path / ".ferplus.writing-0123456789ab").mkdir()
    (tmp_path / ".ferplus.writing-0123456789ab" / "images.npy").write_text("old")
    (tmp_path / "kept").write_text("old")
    (tmp_path / ".hidden").write_text("old")
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    (tmp_path / ".new.writing-0123456789ab").write_text("being written, since two hours")
    os.utime(tmp_path / ".new.writing-0123456789ab", (time.time() - 2 * 3600,) * 2)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", ".new.writing-0123456789ab", "kept"]


def test_synthetic_marker_of_a_folder_or_its_parent(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    assert not is_synthetic(tmp_path / "a")
    (tmp_path / "a" / "SYNTHETIC").write_text("")
    assert is_synthetic(tmp_path / "a")
    assert is_synthetic(str(tmp_path / "a" / "b"))
    assert not is_synthetic(tmp_path / "a" / "b" / "c")
