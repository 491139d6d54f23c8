"""The size of an image from its header, without decoding it. Its content tells the kind, not the file's name."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

from pcdet_ext.files import DataError

KINDS = "PNG, JPEG, BMP, TIFF, WebP, GIF or PNM"
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # JPEG segments numbered like frame headers that are none
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_MAX_PNM_HEADER = 1024


def read_image_size(path: str | Path) -> tuple[int, int] | None:
    """(height, width) of an image in pixels, None for a kind that is not known (see `KINDS`).

    Raises DataError naming a file that is cut short or damaged.
    """
    with Path(path).open("rb") as stream:
        start = stream.read(12)
        stream.seek(0)
        reader = next((reader for magic, reader in _READERS if re.match(magic, start, re.DOTALL)), None)
        if reader is None:
            return None
        try:
            height, width = reader(stream)
        except (struct.error, ValueError) as error:
            raise DataError(f"{path}: damaged image ({error})") from error
    if height < 1 or width < 1:
        raise DataError(f"{path}: damaged image (size {width} × {height})")
    return height, width


def _png_size(stream: BinaryIO) -> tuple[int, int]:
    header = stream.read(24)
    if header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR":
        raise ValueError("no PNG header")
    width, height = struct.unpack(">II", header[16:24])
    return height, width


def _jpeg_size(stream: BinaryIO) -> tuple[int, int]:
    """Walk over the segments up to the frame header."""
    stream.seek(2)
    while True:
        byte = stream.read(1)
        if byte != b"\xff":
            raise ValueError("no frame header")
        while byte == b"\xff":  # fill bytes
            byte = stream.read(1)
        marker = byte[0] if byte else 0
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            _, _, height, width = struct.unpack(">HBHH", stream.read(7))
            return height, width
        if marker not in (0x01, *range(0xD0, 0xD8)):  # those without content
            (length,) = struct.unpack(">H", stream.read(2))
            stream.seek(max(length - 2, 0), 1)


def _bmp_size(stream: BinaryIO) -> tuple[int, int]:
    header = stream.read(26)
    (size,) = struct.unpack("<I", header[14:18])
    width, height = struct.unpack("<HH", header[18:22]) if size == 12 else struct.unpack("<ii", header[18:26])
    return abs(height), width  # negative where the rows go from top to bottom


def _tiff_size(stream: BinaryIO) -> tuple[int, int]:
    """Look through the first directory of tags."""
    order = "<" if stream.read(4)[:2] == b"II" else ">"
    (start,) = struct.unpack(f"{order}I", stream.read(4))
    stream.seek(start)
    (count,) = struct.unpack(f"{order}H", stream.read(2))
    found = {}
    for _ in range(count):
        tag, kind, _, value = struct.unpack(f"{order}HHI4s", stream.read(12))
        found[tag] = struct.unpack(f"{order}I", value)[0] if kind == 4 else struct.unpack(f"{order}H", value[:2])[0]
    if not {_TIFF_HEIGHT, _TIFF_WIDTH} <= set(found):
        raise ValueError("no size in the first directory")
    return found[_TIFF_HEIGHT], found[_TIFF_WIDTH]


def _webp_size(stream: BinaryIO) -> tuple[int, int]:
    header = stream.read(30)
    match header[12:16]:
        case b"VP8 ":
            width, height = struct.unpack("<HH", header[26:30])
            return height & 0x3FFF, width & 0x3FFF
        case b"VP8L":
            (bits,) = struct.unpack("<I", header[21:25])
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        case b"VP8X":
            width, height = (struct.unpack("<I", header[i : i + 3] + b"\0")[0] for i in (24, 27))
            return height + 1, width + 1
    raise ValueError("no WebP header")


def _gif_size(stream: BinaryIO) -> tuple[int, int]:
    width, height = struct.unpack("<HH", stream.read(10)[6:10])
    return height, width


def _pnm_size(stream: BinaryIO) -> tuple[int, int]:
    text = re.sub(rb"#[^\n]*\n", b" ", stream.read(_MAX_PNM_HEADER))
    found = re.match(rb"P[1-6]\s+(\d+)\s+(\d+)\s", text)
    if found is None:
        raise ValueError("no PNM header")
    return int(found[2]), int(found[1])


_READERS = (
    (rb"\x89P", _png_size),
    (rb"\xff\xd8", _jpeg_size),
    (rb"BM", _bmp_size),
    (rb"II\*\0|MM\0\*", _tiff_size),
    (rb"RIFF....WEBP", _webp_size),
    (rb"GIF8", _gif_size),
    (rb"P[1-6]\s", _pnm_size),
)
