"""Text from other programs and people: from regular files only, and no more than it claims to be."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.reading import parse_yaml, read_bytes, read_mapping, read_text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5: the key 'c' is given twice"),
        ("a: &a [*a]", "contains itself"),
        ("m: &m {x: *m}", "contains itself"),
        ("\n".join(["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]), "stands for"),
        ("[" * 100_000, "nest"),  # of which older C parsers die; newer ones refuse it themselves
        ("a: " + "[" * 101 + "]" * 101, "nested more than 100 deep"),
        ("a" * 1_000_001, "has 1,000,001 characters"),
        ("a:\n\tb: 1", "line 2: found character"),
        ("a: !!python/object/apply:os.getcwd []", "line 1: could not determine a constructor"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        parse_yaml(text)
    assert len(str(refusal.value).splitlines()) == 1


def test_yaml_that_means_what_it_says() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, x: 2}\n1: one\n'1': text\nd:\n"
    shared = {"x": 1, "y": [1, 2]}
    assert parse_yaml(text) == {"a": shared, "b": shared, "c": shared | {"x": 2}, 1: "one", "1": "text", "d": None}
    assert parse_yaml("") is None


@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
def test_a_mapping_is_read_or_its_file_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(ValueError, match=f"{name} is missing"):
        read_mapping(path)
    for text, message in (("[" * 100_000, "cannot be read .*nest"), ("{", "cannot be read"), ("[1]", "holds a list")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            read_mapping(path)
    path.write_text('{"a": [1]}')
    assert read_mapping(path) == {"a": [1]}


@pytest.mark.parametrize("read", [read_bytes, read_text])
def test_only_regular_files_are_read(read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert read(tmp_path / "link") in ("text", b"text")
    for other in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"{other} is not a regular file"):
            read(other)
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match=str(missing)):
            read(missing)
