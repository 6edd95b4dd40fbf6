"""Pickles of plain data are read; those that ask for anything else are refused, and nothing is executed."""

import builtins
import contextlib
import io
import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.pickles import load_plain_pickle


def _load(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "annotations.pkl"
    path.write_bytes(content)
    return load_plain_pickle(path)


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_numbers_and_containers_come_back(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(0)
    data = {
        "double": rng.random((68, 2)),
        "big-endian": rng.random((3, 2)).astype(">f4"),
        "columns": np.asfortranarray(rng.random((4, 3))),
        "transposed": np.arange(6, dtype=np.int16).reshape(2, 3).T,
        "bool": np.array([True, False]),
    }
    plain = OrderedDict(scalars=[np.float32(1.5), np.int64(-3)], rest=(None, 1.5, "é", b"\xff"))
    arrays, others = _load(tmp_path, pickle.dumps((data, plain), protocol))
    for name, expected in data.items():
        assert isinstance(arrays[name], np.ndarray) and arrays[name].dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(arrays[name], expected)
    assert others == plain and type(others["scalars"][0]) is np.float32


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_numpy_1_come_back(tmp_path: Path, protocol: int) -> None:
    expected = np.arange(6.0).reshape(3, 2)
    content = pickle.dumps({"a": expected}, protocol)
    assert b"numpy._core.multiarray" in content
    old = content.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")  # length and name
    old = old.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    if protocol == 4:
        old = old[:3] + (int.from_bytes(old[3:11], "little") - 1).to_bytes(8, "little") + old[11:]  # the frame's length
    np.testing.assert_array_equal(_load(tmp_path, old)["a"], expected)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("nested", ["bare", "dictionary", "object array", "array state"])
def test_a_command_is_refused_by_name_and_not_executed(tmp_path: Path, protocol: int, nested: str) -> None:
    trace = tmp_path / "executed"
    evil = _Call(os.system, f"touch {trace}")
    content: Any = {
        "bare": evil,
        "dictionary": {"a.jpg": {"landmark": np.zeros((68, 2)), "bbox": evil}},
        "object array": np.array([None, evil], dtype=object),
        "array state": _Call(np.frombuffer, evil),
    }[nested]
    problem = {"object array": "it holds an array of 'O8'", "array state": "it asks for numpy.frombuffer"}
    expected = problem.get(nested, "it asks for (posix|nt).system")
    with pytest.raises(ValueError, match=rf"annotations\.pkl: refused, {expected}, expected"):
        _load(tmp_path, pickle.dumps(content, protocol))
    assert not trace.exists()
    if nested == "bare":  # the attack works on those who are not careful
        pickle.loads(pickle.dumps(content, protocol))
        assert trace.exists()


@pytest.mark.parametrize(
    "function", [builtins.eval, builtins.getattr, builtins.bytearray, subprocess.Popen, np.load, io.open, np.ndarray]
)
def test_other_functions_are_refused(tmp_path: Path, function: Any) -> None:
    with pytest.raises(ValueError, match=r"refused, it asks for|TypeError: 'object' object is not callable"):
        _load(tmp_path, pickle.dumps(_Call(function, "1"), 4))


@pytest.mark.parametrize("protocol", [3, 5])
def test_bytes_never_become_addresses_of_objects(tmp_path: Path, protocol: int) -> None:
    """A dtype of objects whose state denies that it holds objects: numpy itself would read the bytes as pointers."""
    dtype = _Call(np.dtype, "O", False, True)
    dtype.call += ((3, "|", None, None, None, -1, -1, 0),)
    array = _Call(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b")
    array.call += ((1, (1,), dtype, False, b"A" * 8),)
    with pytest.raises(ValueError, match="refused, it holds an array of 'O', expected arrays of numbers"):
        _load(tmp_path, pickle.dumps(array, protocol))


def test_a_file_changes_nothing_for_those_read_after_it(tmp_path: Path) -> None:
    expected = np.arange(3.0)
    for attributes in (b"(S'__defaults__'\nS'z'\nd", b"(N(S'__defaults__'\nS'z'\ndt"):  # in its __dict__, by setattr
        with contextlib.suppress(ValueError):
            _load(tmp_path, b"cnumpy.core.multiarray\nscalar\n" + attributes + b"b.")
    swapped = b"\x80\x03cnumpy.core.multiarray\nscalar\n(ccollections\nOrderedDict\n)}Ntb."  # its function
    assert _load(tmp_path, swapped).func() == {}
    for protocol in (2, 5):
        np.testing.assert_array_equal(_load(tmp_path, pickle.dumps([expected, expected[1]], protocol))[0], expected)


def test_a_short_file_takes_no_long_memory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused, it remembers an object as number 268435455 in a file of 9 bytes"):
        _load(tmp_path, b"\x80\x02Nr\xff\xff\xff\x0f.")
    array = _Call(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b")
    array.call += ((1, (10**10,), np.dtype("f8"), False, 8 * 10**10),)  # a number where bytes should be
    with pytest.raises(ValueError, match="not a readable pickle"):
        _load(tmp_path, pickle.dumps(array, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps(np.array([1, "a"], dtype=object)),
            "refused, it holds an array of 'O8', expected arrays of numbers",
        ),
        (pickle.dumps(np.array(["a"])), "refused, it holds an array of 'U1'"),
        (pickle.dumps(np.zeros(2, dtype=[("a", "f4"), ("b", "O")])), "refused, it holds an array of 'V12'"),
        (b"cposix\nsystem\n(S'true'\ntR.", r"refused, it asks for posix\.system"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "not a readable pickle"),
        (pickle.dumps({"a": set}), "refused, it asks for builtins.set"),
        (  # an OrderedDict that answers for its own contents
            b"ccollections\nOrderedDict\n(tR(S'keys'\nNdb.",
            "not a readable pickle",
        ),
        (b"Pname\n.", "not a readable pickle"),
        (b"\x80\x02\x82\x01.", "not a readable pickle"),
        (b"", "not a readable pickle"),
        (pickle.dumps({"a": np.zeros(9)})[:-40], "not a readable pickle"),
        (b"name,x0\n", "not a readable pickle"),
    ],
)
def test_everything_else_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"annotations\.pkl: {message}"):
        _load(tmp_path, content)
