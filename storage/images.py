"""Open intact pictures only: Pillow shows missing rows of a PNG as black and does not compare its checksums."""

import io
import struct
import zlib

from PIL import Image

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the type of colour


def open_image(content: bytes, formats: list[str] | tuple[str, ...]) -> Image.Image:
    """Open a picture with Pillow, which may raise anything for damaged bytes, without decoding it yet; check a PNG."""
    image = Image.open(io.BytesIO(content), formats=formats)
    if image.format == "PNG":
        check_png(content)
    return image


def check_png(content: bytes) -> None:
    """Refuse a PNG with a wrong checksum, without its end, or (unless it is interlaced) without its last rows."""
    at, kind, picture = 8, b"", bytearray()
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if len(content) < end + 4:
            raise ValueError("image file is truncated")
        kind = content[at + 4 : at + 8]
        if zlib.crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise ValueError(f"the checksum of {kind!r} at byte {at} is wrong")
        picture += content[at + 8 : end] if kind == b"IDAT" else b""
        at = end + 4
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", content, 16)
    size = 0 if interlaced else height * (1 + -(-width * bits * _CHANNELS[colour] // 8))  # a row begins with its filter
    if len(zlib.decompressobj().decompress(picture, size)) < size:
        raise ValueError("image file is truncated: rows are missing")
