"""Read pickles of plain data from untrusted sources.

A pickle is a program: it may name any function of any module and call it. Admitting numpy's own constructors would not
be safe either: their `__setstate__` believes what a file says about a dtype, so that 200 bytes make numpy read numbers
as addresses of Python objects. The few names that arrays are pickled with are therefore answered by the functions
below, which check what they are given; all other names are refused before anything is imported.
"""

import io
import pickle
import pickletools
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from storage.reading import read_bytes

_NUMBER_CODE = re.compile(r"[biufc]\d{1,2}")  # numpy's names of booleans, integers, floats and complex numbers


class _RefusedError(pickle.UnpicklingError):
    pass


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle of dictionaries, lists, tuples, strings, numbers and numpy arrays of numbers (numpy 1 and 2).

    Raises:
        ValueError: the file is damaged, or it asks for anything else, which is named and was not executed.
    """
    content = read_bytes(path)
    try:
        _check_memo(content)
        return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()  # Python 2 stored bytes as strings
    except _RefusedError as error:
        raise ValueError(f"{path}: refused, {error}") from None
    except Exception as error:  # damaged bytes can make the unpickler fail in any way
        raise ValueError(f"{path}: not a readable pickle ({type(error).__name__}: {str(error)[:100]})") from error


def _check_memo(content: bytes) -> None:
    """Refuse places in the unpickler's memo that lie beyond all reason: it would allocate gigabytes to reach them."""
    for opcode, place, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "LONG_BINPUT") and int(place or 0) > len(content):
            raise _RefusedError(f"it remembers an object as number {place} in a file of {len(content)} bytes")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        admitted = _ADMITTED.get((module.replace("numpy._core.", "numpy.core."), name))
        if admitted is None:
            raise _RefusedError(
                f"it asks for {module}.{name}, expected plain containers, numbers and arrays of numbers"
            )
        # A file can set attributes of what it is given: of this object, which ends with it, and not of our function.
        return partial(admitted) if callable(admitted) else admitted


class _Dtype:
    def __init__(self, code: str, *_: Any) -> None:
        if not _NUMBER_CODE.fullmatch(code):
            raise _RefusedError(f"it holds an array of {code!r}, expected arrays of numbers")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])  # (version, byte order, ...)


class _Array(np.ndarray):
    """Takes only numbers, and only as many as its shape asks for."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # type: ignore[override]
        _, shape, dtype, fortran, content = state
        filled = _fill(content, dtype, shape, "F" if fortran else "C")
        state = (1, filled.shape, filled.dtype, bool(fortran), filled.tobytes("A"))
        super().__setstate__(state)  # type: ignore[arg-type]  # numpy asks for its own bool, and takes none


def _fill(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Make an array, in this machine's byte order, of its bytes."""
    if not isinstance(dtype, _Dtype):
        raise _RefusedError("it holds an array of no known type, expected arrays of numbers")
    data = content.encode("latin1") if isinstance(content, str) else content
    numbers = np.frombuffer(data, dtype.numpy).astype(dtype.numpy.newbyteorder("="))
    return numbers.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array((0,), dtype=np.int8)  # to be filled by its state


def _scalar(dtype: Any, content: Any) -> np.generic:
    return _fill(content, dtype, (1,), "C")[0]


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,  # which keeps the order too, and has no attributes to be set
    ("_codecs", "encode"): str.encode,  # by which protocol 2 stores bytes
    ("numpy", "ndarray"): object(),  # an argument of `_reconstruct`; pickles of arrays never call the class itself
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _fill,
}
