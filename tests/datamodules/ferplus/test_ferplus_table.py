"""The array cache beside the data: used when it belongs to the files, made anew when it does not."""

import multiprocessing
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ferplus_writers import Sample, face, votes, write_folders, write_kaggle

from datamodules.ferplus import table as ferplus_source
from datamodules.ferplus.table import FERPlusTable, open_table

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
            monkeypatch.setattr(ferplus_source, name, self._counted(getattr(ferplus_source, name)))

    def _counted(self, read: Any) -> Any:
        def counting(*args: Any) -> Any:
            self.count += 1
            return read(*args)

        return counting


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> Parses:
    return Parses(monkeypatch)


def same(one: FERPlusTable, other: FERPlusTable) -> bool:
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("write", [write_kaggle, write_folders])
def test_parsed_once(write: Any, tmp_path: Path, parses: Parses) -> None:
    first, fingerprint = open_table(write(tmp_path, SAMPLES))
    for _ in range(2):
        table, again = open_table(tmp_path)
        assert same(table, first)
        assert again == fingerprint
        assert isinstance(table.images, np.memmap)
    assert parses.count == 1
    assert table.identity.tolist() == [0, 1, 0, 1, 4]
    assert table.in_train().tolist() == [True, True, True, True, False]


def test_both_layouts_have_one_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert open_table(write_kaggle(tmp_path / "a", SAMPLES))[1] == open_table(write_folders(tmp_path / "b", SAMPLES))[1]


def test_changed_votes_are_read_anew(tmp_path: Path, parses: Parses) -> None:
    _, before = open_table(write_folders(tmp_path, SAMPLES))
    path = tmp_path / "fer2013new.csv"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("fer0000001.png,0,0,0,0,0,0,10", "fer0000001.png,10,0,0,0,0,0,0"))
    os.utime(path, ns=times)  # of the same length and time, as a restored backup could be
    table, after = open_table(tmp_path)
    assert parses.count == 2
    assert table.votes[1].tolist() == list(votes(neutral=10))
    assert after != before


def test_changed_image_is_read_anew(tmp_path: Path, parses: Parses) -> None:
    open_table(write_folders(tmp_path, SAMPLES))
    changed = [*SAMPLES[:1], SAMPLES[1]._replace(image=face(9)), *SAMPLES[2:]]
    table, _ = open_table(write_folders(tmp_path, changed))
    assert np.array_equal(table.images[1], face(9))
    (tmp_path / "FER2013Valid" / "fer0000004.png").unlink()
    table, _ = open_table(write_folders(tmp_path, changed[:-1]))
    assert len(table.names) == 4
    assert parses.count == 3


def test_copied_and_touched_sources_are_recognised_by_content(tmp_path: Path, parses: Parses) -> None:
    root = tmp_path / "one"
    root.mkdir()
    first, fingerprint = open_table(write_folders(root, SAMPLES))
    shutil.copytree(root, tmp_path / "two", copy_function=shutil.copyfile)
    table, again = open_table(tmp_path / "two")
    assert same(table, first)
    assert again == fingerprint
    assert parses.count == 1
    content = ferplus_source._content
    ferplus_source._content = None  # type: ignore[assignment]  # the new times are known now: nothing is compared
    try:
        open_table(tmp_path / "two")
    finally:
        ferplus_source._content = content


@pytest.mark.parametrize("damage", ["truncated", "flipped", "header", "manifest", "field", "lost"])
def test_damaged_cache_is_made_anew(damage: str, tmp_path: Path, parses: Parses) -> None:
    first, fingerprint = open_table(write_folders(tmp_path, SAMPLES))
    images = tmp_path / ".superfer_cache" / "ferplus" / "images.npy"
    manifest = images.with_name("manifest.json")
    data = bytearray(images.read_bytes())
    if damage == "truncated":
        images.write_bytes(bytes(data[:-1]))
    elif damage == "flipped":
        data[-100] ^= 1
        images.write_bytes(bytes(data))
    elif damage == "header":
        images.write_bytes(bytes(data).replace(b"|u1", b"|i1"))
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-9])
    elif damage == "field":
        manifest.write_text(manifest.read_text().replace("fingerprint", "footprint"))
    else:
        images.unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table, again = open_table(tmp_path)
    assert any("damaged" in str(warning.message) for warning in caught) == (damage != "lost")
    assert same(table, first)
    assert again == fingerprint
    open_table(tmp_path)
    assert parses.count == 2


def test_cache_that_cannot_be_written(tmp_path: Path, parses: Parses, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path, SAMPLES)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ferplus_source, "replace_folder", refuse)
    for _ in range(2):
        with pytest.warns(UserWarning, match="could not be kept .*Permission denied.*parsed each time"):
            table, _ = open_table(tmp_path)
    assert table.names.tolist() == [sample.name for sample in SAMPLES]
    assert parses.count == 2


def _open(root: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    table, fingerprint = open_table(root)
    results.put((fingerprint, int(np.asarray(table.images, dtype=np.int64).sum())))


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
    table, fingerprint = open_table(tmp_path)
    assert set(answers) == {(fingerprint, int(np.asarray(table.images, dtype=np.int64).sum()))}
    assert [path.name for path in (tmp_path / ".superfer_cache").iterdir()] == ["ferplus"]  # nothing is left over
