"""Reading text that other programs and people wrote: from regular files only, and no more than it claims to be.

A named pipe in the place of a file would be waited for without end. YAML takes the later of two equal keys without a
word, a few lines with aliases stand for gigabytes, and its C parser dies of deep nesting.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

MAX_YAML_CHARACTERS, MAX_YAML_DEPTH, MAX_YAML_VALUES = 1_000_000, 100, 100_000
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: It is missing, a folder, or cannot be read.
        ValueError: It is a pipe or a device.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is not a regular file")
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe may have no writer


def read_text(path: str | Path) -> str:
    """Return the text of a regular file in UTF-8.

    Raises:
        OSError: It is missing, a folder, or cannot be read.
        ValueError: It is a pipe or a device, or not UTF-8.
    """
    return read_bytes(path).decode()


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """Parse plain YAML, without what `check_yaml` refuses.

    Raises:
        ValueError: With the reason in one line.
    """
    check_yaml(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(_in_one_line(error)) from error


def check_yaml(text: str) -> None:
    """Refuse YAML with a key twice in one mapping, that is too large or too deep, or that contains itself.

    Raises:
        ValueError: With the reason in one line.
    """
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
