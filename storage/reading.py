"""Read text that other programs and people wrote, without trusting it.

A named pipe in place of a file would block forever. YAML silently keeps the last of two equal keys, a few lines of
aliases expand to gigabytes, and the C parser crashes on deep nesting. All of these are refused.
"""

import csv
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_YAML_CHARACTERS, MAX_YAML_DEPTH, MAX_YAML_VALUES = 1_000_000, 100, 100_000
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a regular file; raise ValueError for a pipe or a device."""
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is not a regular file")
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe may have no writer


def read_text(path: str | Path) -> str:
    """Return the text of a regular file; raise ValueError for anything but UTF-8."""
    return read_bytes(path).decode()


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON or YAML file; raise a ValueError that names the file if there is none."""
    try:
        text = read_text(path)
        content = json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a mapping")
    return content


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and rows of a CSV file, without rows that a power failure cut short."""
    try:
        text = read_text(path)
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        rows = [row for row in reader if None not in row and None not in row.values()]
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from error
    return list(reader.fieldnames or ()), rows


def _unreadable(path: Path, error: Exception) -> ValueError:
    if isinstance(error, FileNotFoundError):
        return ValueError(f"{path} is missing: the run did not finish, or its folder was copied in part")
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).replace(str(path), "it")
    return ValueError(f"{path} cannot be read ({reason}); restore it")


def csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of a CSV file that are not blank, with their places for messages: "PATH, line 3"."""
    try:
        reader = csv.reader(io.TextIOWrapper(io.BytesIO(read_bytes(path)), encoding="utf-8-sig", newline=""))
        for row in filter(None, reader):
            yield f"{path}, line {reader.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable CSV file ({error})") from error


def parse_yaml(text: str) -> Any:
    """Parse plain YAML that `check_yaml` accepts; a ValueError gives the reason in one line."""
    check_yaml(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(_in_one_line(error)) from error


def check_yaml(text: str) -> None:
    """Refuse YAML that has a key twice in one mapping, is too large or too deep, or contains itself."""
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"the YAML has {len(text):,} characters, expected at most {MAX_YAML_CHARACTERS:,}")
    try:
        _check_depth(text)
        root = yaml.compose(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(_in_one_line(error)) from error
    pending, values = [(root, 0)], 0
    while pending:
        node, depth = pending.pop()
        values += 1
        if depth > MAX_YAML_DEPTH or values > MAX_YAML_VALUES:
            raise ValueError(f"the YAML contains itself, or stands for more than {MAX_YAML_VALUES:,} values")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            pending += [(value, depth + 1) for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            pending += [(value, depth + 1) for value in node.value]


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise ValueError(f"the YAML is nested more than {MAX_YAML_DEPTH} deep")


def _check_keys(mapping: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} is given twice")
            seen.add((key.tag, key.value))


def _in_one_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())[:200]
