"""PNGs: what is read is what was written, or nothing is."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from storage.images import check_png, open_image

LEVELS = np.random.default_rng(0).integers(0, 256, (13, 11), dtype=np.uint8)


def _png(levels: np.ndarray, missing: int = 0) -> bytes:
    """A gray PNG, of whose last row bytes are missing although every checksum is right."""
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", *levels.shape[::-1], 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows[: len(rows) - missing])), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (9, 2), (13, 11)])
def test_one_byte_less_than_all_rows_is_noticed(shape: tuple[int, int]) -> None:
    levels = LEVELS[: shape[0], : shape[1]]
    np.testing.assert_array_equal(open_image(_png(levels), ["PNG"]), levels)
    with pytest.raises(ValueError, match="image file is truncated: rows are missing"):
        open_image(_png(levels, missing=1), ["PNG"])


def test_missing_rows_are_not_black() -> None:
    short = _png(LEVELS, missing=3 * 12)
    assert not np.asarray(Image.open(io.BytesIO(short)))[-3:].any()  # Pillow does not mind
    with pytest.raises(ValueError, match="image file is truncated: rows are missing"):
        open_image(short, ["PNG"])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_is_intact(mode: str) -> None:
    levels = LEVELS.astype(np.uint16) * 200 if mode == "I;16" else LEVELS
    for width in range(1, 10):
        image = Image.fromarray(levels[:, :width])
        buffer = io.BytesIO()
        (image if mode == "I;16" else image.convert("RGBA").convert(mode)).save(buffer, "PNG")
        check_png(buffer.getvalue())
        with pytest.raises(ValueError, match="truncated"):
            check_png(buffer.getvalue()[:-1])


@pytest.mark.parametrize(
    "damage",
    [lambda content, at: content[:at], lambda content, at: content[:at] + bytes(len(content) - at)],
    ids=["cut", "zeros"],
)
def test_a_png_is_not_read_in_part(damage: Callable[[bytes, int], bytes]) -> None:
    content = _png(LEVELS)
    for at in range(len(content) - 1):
        with pytest.raises(Exception, match=r"[Tt]runcated|checksum|cannot identify|broken PNG"):
            open_image(damage(content, at), ["PNG"])
