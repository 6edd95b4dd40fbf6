"""Which run a folder holds: read `run.json`, the same way everywhere, and tell a run from its copies."""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from storage.atomic import write_atomically
from storage.reading import read_mapping

_WORD = re.compile(r"[\w.+=-]{1,64}")


def is_word(value: object) -> bool:
    """Whether a value can name an arm in tables, dashboards and file names."""
    return isinstance(value, str) and bool(_WORD.fullmatch(value))


def _are_starts(value: Any) -> bool:
    try:
        return bool(value) and all(datetime.fromisoformat(start["started"]).tzinfo for start in value)
    except (KeyError, TypeError, ValueError):
        return False


_TEXT = (lambda value: isinstance(value, str), "text")
# What every run.json says: how to recognise it, and in words.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "run_id": (lambda value: bool(re.fullmatch("[0-9a-f]{32}", str(value))), "32 hexadecimal digits"),
    "arm": (lambda value: value is None or is_word(value), "one plain word, or null for a generator"),
    "seed": (lambda value: type(value) is int and 0 <= value < 2**32, "an integer from 0 to 4294967295"),
    "synthetic": (lambda value: isinstance(value, bool), "true or false"),
    "starts": (_are_starts, "a list of starts, each with its time"),
    **dict.fromkeys(("folder", "experiment", "data_fingerprint", "status", "wandb_id", "wandb_project"), _TEXT),
}


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of `run.json`; a ValueError says what is wrong with it, such as an earlier version."""
    path = folder / "run.json"
    if not path.is_file():
        kind = "has no run.json" if folder.is_dir() else "is not a folder"
        raise ValueError(f"{folder} {kind}, expected a run folder such as runs/<experiment>/<time>_s<seed>")
    record = read_mapping(path)
    if not {"run_id", "arm"} <= record.keys():
        raise ValueError(f"{path} has no run_id: an earlier version wrote it, whose runs can only be trained anew")
    for name, (is_valid, expected) in _FIELDS.items():
        if not is_valid(record.get(name)):
            found = repr(record.get(name))[:100]
            raise ValueError(f"{path}: {name} is {found}, expected {expected}; restore it, or start anew")
    return record


def original_of(folder: Path, record: dict[str, Any]) -> Path | None:
    """Return the folder of which this one is a copy; None if it was moved, so that the earlier one is gone."""
    original = folder.parent / record["folder"]  # absolute, but in runs of earlier versions only a name
    if not os.path.isfile(original / "run.json") or original.samefile(folder):
        return None
    try:
        return original if read_record(original)["run_id"] == record["run_id"] else None
    except ValueError:  # a damaged original, for which the copy may have been kept
        return None


def detach_copy(folder: Path) -> None:
    """Give a copied run a name and a W&B run of its own before it goes on: two folders must not write one W&B run."""
    record = read_record(folder)
    if original := original_of(folder.resolve(), record):
        record |= {"folder": str(folder.resolve()), "wandb_id": uuid.uuid4().hex[:8]}
        write_atomically(folder / "run.json", json.dumps(record, indent=1) + "\n")
        print(f"{folder} is a copy of {original}: in W&B it is a new run", flush=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
