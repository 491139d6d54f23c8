"""PCD 0.7 (pointclouds.org): ascii, binary and binary_compressed, whose packing is M. Lehmann's LZF."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from pcdet_ext.data.points.columns import ordered
from pcdet_ext.data.points.tables import ascii_table, count_of, next_line, single_numbers
from pcdet_ext.structures import Array

LZF_EXPANSION = 88  # three bytes of LZF announce at most 264
_PCD_TYPES = {"F": "f", "I": "i", "U": "u"}


def read_pcd(path: Path) -> tuple[Array, tuple[str, ...]]:
    """Points of a PCD file and the names of their columns. Raises ValueError where it is damaged."""
    data = path.read_bytes()
    header: dict[str, list[str]] = {}
    body = 0
    while "DATA" not in header:
        line, body = next_line(data, body)
        key, *values = line.partition("#")[0].split() or [""]
        header["FIELDS" if key.upper() == "COLUMNS" else key.upper()] = values
    names, kinds, sizes = header["FIELDS"], header["TYPE"], header["SIZE"]
    counts = header.get("COUNT", ["1"] * len(names))
    dtype = np.dtype([
        (f"{name}\0{i}", f"<{_PCD_TYPES[kind.upper()]}{size}", (int(count),))
        for i, (name, kind, size, count) in enumerate(zip(names, kinds, sizes, counts, strict=True))
    ])  # fmt: skip
    number = _pcd_points(header)
    match header["DATA"][0].lower():
        case "ascii":
            table = ascii_table(data[body:], dtype, number)
        case "binary":
            table = np.frombuffer(data, dtype, number, body)
        case "binary_compressed":
            table = _pcd_compressed(data, body, dtype, number)
        case kind:
            raise ValueError(f"no such kind of data: {kind!r}")
    return ordered(single_numbers(table))


def _pcd_points(header: dict[str, list[str]]) -> int:
    """How many points a PCD header announces: POINTS, or else WIDTH times HEIGHT."""
    if "POINTS" in header:
        return count_of(header["POINTS"][0], "POINTS")
    return count_of(header["WIDTH"][0], "WIDTH") * count_of(header.get("HEIGHT", ["1"])[0], "HEIGHT")


def _pcd_compressed(data: bytes, body: int, dtype: np.dtype, number: int) -> Array:
    if number == 0:
        return np.empty(0, dtype)
    packed, unpacked = (int(v) for v in np.frombuffer(data, "<u4", 2, body))
    if unpacked != number * dtype.itemsize or body + 8 + packed > len(data) or unpacked > LZF_EXPANSION * packed:
        raise ValueError("compressed data is cut short")
    columns = _lzf_decompressor()(np.frombuffer(data, np.uint8, packed, body + 8), unpacked)
    return _from_columns(columns, dtype, number)


def _from_columns(data: Array, dtype: np.dtype, number: int) -> Array:
    """Points of a compressed PCD file: all values of the first field, then of the second, …"""
    table = np.empty(number, dtype)
    start = 0
    for name in dtype.names or ():
        size = number * dtype[name].itemsize
        table[name] = data[start : start + size].view(dtype[name].base).reshape(number, -1)
        start += size
    return table


@cache
def _lzf_decompressor() -> Callable[[Array, int], Array]:
    """LZF: a control byte below 32 announces that many literal bytes plus one, others a copy from what came before."""
    from numba import njit

    @njit(cache=True)
    def decompress(packed: Array, size: int) -> Array:
        out = np.empty(size, np.uint8)
        read, written = 0, 0
        while read < len(packed):
            control = int(packed[read])
            read += 1
            if control < 32:
                length = control + 1
                if read + length > len(packed) or written + length > size:
                    raise ValueError("compressed data is damaged")
                out[written : written + length] = packed[read : read + length]
                read += length
            else:
                length = (control >> 5) + 2
                if read + (length == 9) >= len(packed):
                    raise ValueError("compressed data is damaged")
                if length == 9:
                    length += int(packed[read])
                    read += 1
                source = written - ((control & 31) << 8) - int(packed[read]) - 1
                read += 1
                if source < 0 or written + length > size:
                    raise ValueError("compressed data is damaged")
                for i in range(length):  # one by one: the copy may overlap what it writes
                    out[written + i] = out[source + i]
            written += length
        if written != size:
            raise ValueError("compressed data is cut short")
        return out

    return decompress
