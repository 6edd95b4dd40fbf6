"""The parsed data beside the sources: read while they belong to the files, made again when they do not."""

import multiprocessing
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.ferplus import table as table_module
from datamodules.ferplus.table import FERPlusTable, open_table
from tests.datamodules.ferplus.ferplus_writers import Sample, face, votes, write_folders, write_kaggle

SAMPLES = [
    Sample("Training", "fer0000000.png", votes(happiness=10), face(0)),
    Sample("Training", "fer0000001.png", votes(fear=10), face(1)),
    Sample("Training", "fer0000002.png", votes(fear=10), face(0)),
    Sample("PublicTest", "fer0000003.png", votes(anger=10), face(1)),
    Sample("PublicTest", "fer0000004.png", votes(anger=10), face(4)),
]


class Parses:
    """Counts how often the sources are parsed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("read_kaggle", "read_folders"):
            monkeypatch.setattr(table_module, name, self._counted(getattr(table_module, name)))

    def _counted(self, read: Any) -> Any:
        def counting(*args: Any) -> Any:
            self.count += 1
            return read(*args)

        return counting


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> Parses:
    return Parses(monkeypatch)


def same(one: FERPlusTable, other: FERPlusTable) -> bool:
    arrays = [(getattr(one, name), getattr(other, name)) for name in ("names", "images", "votes", "split", "identity")]
    return one.fingerprint == other.fingerprint and all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in arrays)


@pytest.mark.parametrize("write", [write_kaggle, write_folders])
def test_parsed_once(write: Any, tmp_path: Path, parses: Parses) -> None:
    first = open_table(write(tmp_path, SAMPLES))
    for _ in range(2):
        table = open_table(tmp_path)
        assert same(table, first)
        assert table.root == tmp_path
    assert parses.count == 1
    assert table.identity.tolist() == [0, 1, 0, 1, 4]
    assert table.in_train().tolist() == [True, True, True, True, False]


def test_both_layouts_have_one_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert same(open_table(write_kaggle(tmp_path / "a", SAMPLES)), open_table(write_folders(tmp_path / "b", SAMPLES)))


def test_changed_votes_are_read_again(tmp_path: Path, parses: Parses) -> None:
    before = open_table(write_folders(tmp_path, SAMPLES))
    path = tmp_path / "fer2013new.csv"
    modified = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("fer0000001.png,0,0,0,0,0,0,10", "fer0000001.png,10,0,0,0,0,0,0"))
    os.utime(path, ns=(modified, modified + 1))  # of the same length, a nanosecond later
    after = open_table(tmp_path)
    assert parses.count == 2
    assert after.votes[1].tolist() == list(votes(neutral=10))
    assert after.fingerprint != before.fingerprint


def test_file_of_another_size_with_its_old_time_is_read_again(tmp_path: Path) -> None:
    open_table(write_folders(tmp_path, SAMPLES))
    path = tmp_path / "fer2013new.csv"
    modified = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("fer0000001.png,0,0,0,0,0,0,10", "fer0000001.png,0,0,0,0,0,0,9"))
    os.utime(path, ns=(modified, modified))
    assert open_table(tmp_path).votes[1].tolist() == list(votes(fear=9))


def test_changed_image_is_read_again(tmp_path: Path, parses: Parses) -> None:
    open_table(write_folders(tmp_path, SAMPLES))
    changed = [*SAMPLES[:1], SAMPLES[1]._replace(image=face(9)), *SAMPLES[2:]]
    table = open_table(write_folders(tmp_path, changed))
    assert np.array_equal(table.images[1], face(9))
    (tmp_path / "FER2013Valid" / "fer0000004.png").unlink()
    table = open_table(write_folders(tmp_path, changed[:-1]))
    assert len(table.names) == 4
    assert parses.count == 3


def test_copied_folder_is_parsed_once_more(tmp_path: Path, parses: Parses) -> None:
    root = tmp_path / "one"
    root.mkdir()
    first = open_table(write_folders(root, SAMPLES))
    shutil.copytree(root, tmp_path / "two", copy_function=shutil.copyfile)
    for _ in range(2):
        assert same(open_table(tmp_path / "two"), first)
    assert parses.count == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "header", "empty", "lost"])
def test_damaged_data_are_parsed_again(damage: str, tmp_path: Path, parses: Parses) -> None:
    first = open_table(write_folders(tmp_path, SAMPLES))
    path = tmp_path / ".superfer_cache" / "ferplus.npz"
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(bytes(data[:-1]))
    elif damage == "flipped":
        data[bytes(data).index(face(1).tobytes()) + 100] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "header":
        path.write_bytes(bytes(data).replace(b"|u1", b"|i1"))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert same(open_table(tmp_path), first)
    assert any("damaged" in str(warning.message) for warning in caught) == (damage != "lost")
    open_table(tmp_path)
    assert parses.count == 2


def test_folder_that_cannot_be_written(tmp_path: Path, parses: Parses, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path, SAMPLES)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(table_module, "write_atomically", refuse)
    for _ in range(2):
        with pytest.warns(UserWarning, match="cannot be written .*Permission denied.*parsed at each start"):
            table = open_table(tmp_path)
    assert table.names.tolist() == [sample.name for sample in SAMPLES]
    assert parses.count == 2


def _open(root: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    table = open_table(root)
    results.put((table.fingerprint, int(table.images.sum())))


def test_processes_that_parse_at_once(tmp_path: Path) -> None:
    write_kaggle(tmp_path, SAMPLES * 40)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_open, args=(tmp_path, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    table = open_table(tmp_path)
    assert set(answers) == {(table.fingerprint, int(table.images.sum()))}
    assert [path.name for path in (tmp_path / ".superfer_cache").iterdir()] == ["ferplus.npz"]  # nothing is left over
