"""Pictures that are intact: Pillow takes missing rows of a PNG for black ones, and does not compare checksums."""

import io
import struct
import zlib

from PIL import Image

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the type of colour
_INTERLACED = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def open_image(content: bytes, formats: list[str] | tuple[str, ...]) -> Image.Image:
    """Open a picture as Pillow does, without decoding it yet; refuse a PNG that is damaged or not complete.

    Raises:
        Exception: About any, since damaged bytes can make Pillow fail in any way.
    """
    image = Image.open(io.BytesIO(content), formats=formats)
    if image.format == "PNG":
        check_png(content)
    return image


def check_png(content: bytes) -> None:
    """Refuse a PNG with a wrong checksum, without its end, or with less than all of its rows."""
    at, kind, picture = 8, b"", bytearray()
    while kind != b"IEND":
        length = int.from_bytes(content[at : at + 4], "big")
        if len(content) < at + 12 + length:
            raise ValueError("image file is truncated")
        kind = content[at + 4 : at + 8]
        chunk, checksum = content[at + 4 : at + 8 + length], content[at + 8 + length : at + 12 + length]
        if zlib.crc32(chunk).to_bytes(4, "big") != checksum:
            raise ValueError(f"the checksum of {kind!r} at byte {at} is wrong")
        picture += chunk[4:] if kind == b"IDAT" else b""
        at += 12 + length
    expected, found, inflater, rest = _inflated_size(content), 0, zlib.decompressobj(), bytes(picture)
    while found < expected:
        piece = inflater.decompress(rest, 1 << 24)
        if not piece:
            raise ValueError("image file is truncated: rows are missing")
        found, rest = found + len(piece), inflater.unconsumed_tail


def _inflated_size(content: bytes) -> int:
    """Return the bytes of all rows of a PNG, each with its filter's number in front."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", content, 16)
    size = 0
    for left, top, across, down in _INTERLACED if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            size += rows * (1 + -(-columns * bits * _CHANNELS[colour] // 8))
    return size
