"""Reading pickles of plain data from people one does not know.

A pickle is a program: it may name any function of any module and call it. `load_plain_pickle` admits dictionaries,
lists, tuples, sets, strings, numbers, and arrays of numbers as numpy 1 and 2 write them (protocols 2 to 5), and
nothing else. Not even numpy's own functions are called: the few names that such pickles use are answered by the
functions below, which check what they are given. Everything else is refused before anything is imported.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

_NUMBER_CODE = re.compile(r"[biufc]\d{1,2}")  # numpy's names of booleans, integers, floats and complex numbers

_PLAIN = (str, bytes, bytearray, int, float, complex, bool, type(None), np.ndarray, np.generic)


class _Refused(pickle.UnpicklingError):
    """The pickle asks for something that plain data do not need."""


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle of plain containers, numbers and numpy arrays of numbers.

    Raises:
        ValueError: the file is damaged, or it asks for anything else, which is named and was not executed.
    """
    try:
        return _checked(_PlainUnpickler(io.BytesIO(path.read_bytes())).load())
    except _Refused as error:
        raise ValueError(f"{path}: refused, {error}") from None
    except Exception as error:  # damaged bytes can make the unpickler fail in any way
        raise ValueError(f"{path}: not a readable pickle ({type(error).__name__}: {error})") from error


def _checked(loaded: Any) -> Any:
    """Refuse what a file may name in order to build its data, but not hold: classes and the functions below."""
    waiting, seen = [loaded], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):  # not value.keys(), which a file may have set on an OrderedDict
            held = [*dict.keys(value), *dict.values(value), *getattr(value, "__dict__", {}).values()]
        elif isinstance(value, list | tuple | set | frozenset):
            held = list(value)
        elif isinstance(value, _PLAIN):
            continue
        else:
            raise _Refused(f"it holds {value!r}; admitted are plain containers, numbers and numpy arrays of numbers")
        if id(value) not in seen:
            seen.add(id(value))
            waiting += [part for part in held if not isinstance(part, _PLAIN)]
    return loaded


class _StandIn:
    """Answers for a function that pickles of plain data call. A file can call it, and can set nothing on it."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *given: Any) -> Any:
        return self._function(*given)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _Refused(f"it sets {name!r} of a function")


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")  # Python 2 stored the bytes of arrays as strings

    def find_class(self, module: str, name: str) -> Any:
        known = module.replace("numpy._core.", "numpy.core.").replace("__builtin__", "builtins")
        try:
            return _ADMITTED[known, name]
        except KeyError:
            raise _Refused(
                f"it asks for {module}.{name}; admitted are plain containers, numbers and numpy arrays of numbers"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"it refers to an object outside the file ({pid!r})")


class _Dtype:
    """Stands for `numpy.dtype`. Object dtypes exist only so that the array that has one can be refused."""

    def __init__(self, code: str) -> None:
        if code != "O8" and not _NUMBER_CODE.fullmatch(code):
            raise _Refused(f"it holds an array of {code!r}; admitted are arrays of numbers")
        self.numpy = None if code == "O8" else np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Numpy's state of a dtype is (version, byte order, subarray, names, fields, ...)."""
        if self.numpy is not None:
            if any(part is not None for part in state[2:5]):
                raise _Refused("it holds a structured array; admitted are arrays of numbers")
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that `_reconstruct` made empty, and that takes only numbers, and only as many as its shape asks for."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # type: ignore[override]
        _, shape, dtype, fortran, content = state
        filled = _fill(content, dtype, shape, "F" if fortran else "C")
        state = (1, filled.shape, filled.dtype, bool(fortran), filled.tobytes("A"))
        super().__setstate__(state)  # type: ignore[arg-type]  # numpy asks for its own bool, and takes none


def _fill(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array of numbers, in this machine's byte order, from its bytes."""
    if not isinstance(dtype, _Dtype) or dtype.numpy is None:
        raise _Refused("it holds an array of objects; admitted are arrays of numbers")
    data = content.encode("latin1") if isinstance(content, str) else bytes(content)
    numbers = np.frombuffer(data, dtype.numpy).astype(dtype.numpy.newbyteorder("="))
    return numbers.reshape(shape, order="F" if order == "F" else "C")


def _dtype(code: str, *_: Any) -> _Dtype:
    return _Dtype(code)


def _reconstruct(kind: object, *_: Any) -> _Array:
    """Stands for `numpy.core.multiarray._reconstruct`: an empty array, to be filled by its state."""
    if kind is not _NDARRAY:
        raise _Refused("it holds an array of an unknown class; admitted are arrays of numbers")
    return _Array((0,), dtype=np.int8)


def _scalar(dtype: Any, content: Any) -> np.generic:
    """Stands for `numpy.core.multiarray.scalar`."""
    return _fill(content, dtype, (1,), "C")[0]


def _encode(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`, by which protocol 2 stores bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"it encodes a text as {encoding!r}; bytes are stored as 'latin1'")
    return text.encode("latin1")


_NDARRAY = object()  # an argument of `_reconstruct`; pickles of arrays never call the class itself

_ADMITTED: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _StandIn(_encode),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _StandIn(_dtype),
    ("numpy.core.multiarray", "_reconstruct"): _StandIn(_reconstruct),
    ("numpy.core.multiarray", "scalar"): _StandIn(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _StandIn(_fill),
}
