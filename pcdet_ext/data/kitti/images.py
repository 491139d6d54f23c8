"""The size of an image from its header, without decoding it: PNG, JPEG and BMP, told apart by content."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from pcdet_ext.files import DataError

_NO_FRAME = (0xC4, 0xC8, 0xCC)  # JPEG segments numbered like frame headers that are none


def read_image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image in pixels. Raises DataError naming a file that is cut short or another kind."""
    with Path(path).open("rb") as stream:
        start = stream.read(2)
        stream.seek(0)
        readers = {b"\x89P": _png_size, b"\xff\xd8": _jpeg_size, b"BM": _bmp_size}
        if start not in readers:
            raise DataError(f"{path}: not a PNG, JPEG or BMP image (data.image_size states the size instead)")
        try:
            height, width = readers[start](stream)
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
