"""Point clouds from files of several kinds, told apart by suffix: .bin, .pcd.bin, .npy, .pcd and .ply.

Formats: PCD 0.7 (pointclouds.org; ascii, binary and binary_compressed, whose packing is M. Lehmann's LZF) and PLY 1.0
(G. Turk; ascii and both binary orders).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array

_INTENSITY = ("intensity", "reflectance", "reflectivity", "i")
_PCD_TYPES = {"F": "f", "I": "i", "U": "u"}
_PLY_TYPES = {
    old: kind
    for names, kind in (
        ("char int8", "i1"), ("uchar uint8", "u1"), ("short int16", "i2"), ("ushort uint16", "u2"),
        ("int int32", "i4"), ("uint uint32", "u4"), ("float float32", "f4"), ("double float64", "f8"),
    )
    for old in names.split()
}  # fmt: skip
_PLY_ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}


def read_points(path: str | Path, columns: int | None = None) -> Array:
    """Points float32 [N, F] of a file; columns x, y, z, then intensity where there is one, then what else the file has.

    columns: F of a headless .bin file; without it 5 for nuScenes' .pcd.bin (x, y, z, intensity, ring) and 4 for others.
    Raises DataError naming the file when it is missing, cut short, or no point cloud.
    """
    path = Path(path)
    if path.suffix == ".bin":
        return read_bin(path, columns or (5 if path.name.endswith(".pcd.bin") else 4))
    readers = {".npy": _read_npy, ".pcd": _read_pcd, ".ply": _read_ply}
    if path.suffix not in readers:
        raise DataError(f"{path}: point clouds of this kind are not read{suggest(path.suffix, ['.bin', *readers])}")
    try:
        return readers[path.suffix](path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{path}: damaged or not a {path.suffix} point cloud ({error})") from error


def read_bin(path: str | Path, columns: int) -> Array:
    """Points float32 [N, columns] from a headless little-endian file. Raises DataError when the last point is cut."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    if len(data) % (4 * columns):
        raise DataError(f"{path}: {len(data)} bytes are no whole number of {columns}-column float32 points; cut short?")
    return np.frombuffer(data, "<f4").astype(np.float32).reshape(-1, columns)


def _read_npy(path: Path) -> Array:
    points = np.load(path, allow_pickle=False)
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise ValueError(f"an array of numbers [N, 3 or more] is wanted, got {points.dtype} {list(points.shape)}")
    return points.astype(np.float32)


def _read_pcd(path: Path) -> Array:
    data = path.read_bytes()
    header, body = {}, 0
    while "DATA" not in header:
        line, body = _next_line(data, body)
        key, *values = line.partition("#")[0].split() or [""]
        header[key] = values
    names, kinds, sizes = header["FIELDS"], header["TYPE"], header["SIZE"]
    counts = header.get("COUNT", ["1"] * len(names))
    dtype = np.dtype([
        (f"{name}\0{i}", f"<{_PCD_TYPES[kind]}{size}", (int(count),))
        for i, (name, kind, size, count) in enumerate(zip(names, kinds, sizes, counts, strict=True))
    ])  # fmt: skip
    number = int(header["POINTS"][0])
    match header["DATA"][0]:
        case "ascii":
            table = _ascii_table(data[body:], dtype, number)
        case "binary":
            table = np.frombuffer(data, dtype, number, body)
        case "binary_compressed":
            packed, unpacked = (int(v) for v in np.frombuffer(data, "<u4", 2, body))
            if unpacked != number * dtype.itemsize or body + 8 + packed > len(data):
                raise ValueError("compressed data is cut short")
            columns = _lzf_decompressor()(np.frombuffer(data, np.uint8, packed, body + 8), unpacked)
            table = _from_columns(columns, dtype, number)
        case kind:
            raise ValueError(f"no such kind of data: {kind!r}")
    return _ordered(table)


def _read_ply(path: Path) -> Array:
    data = path.read_bytes()
    line, body = _next_line(data, 0)
    if line != "ply":
        raise ValueError("the first line is not 'ply'")
    order, element, number, fields = "", "", 0, []
    while line != "end_header":
        line, body = _next_line(data, body)
        match line.split():
            case ["format", kind, _]:
                order = kind
            case ["element", "vertex", count] if not element:
                element, number = "vertex", int(count)
            case ["element", name, _]:
                if not element:
                    raise ValueError(f"element {name!r} stands before the vertices")
                element = name
            case ["property", kind, name] if element == "vertex":
                fields.append((name, _PLY_ORDERS[order] + _PLY_TYPES[kind]))
            case ["property", "list", *_] if element == "vertex":
                raise ValueError("vertices with list properties are not read")
    dtype = np.dtype([(f"{name}\0{i}", kind, (1,)) for i, (name, kind) in enumerate(fields)])
    table = _ascii_table(data[body:], dtype, number) if order == "ascii" else np.frombuffer(data, dtype, number, body)
    return _ordered(table)


def _next_line(data: bytes, start: int) -> tuple[str, int]:
    end = data.find(b"\n", start)
    if end < 0:
        raise ValueError("the header has no end")
    return data[start:end].decode("ascii").strip(), end + 1


def _ascii_table(text: bytes, dtype: np.dtype, number: int) -> Array:
    width = sum(dtype[name].shape[0] for name in dtype.names)
    values = np.array(b" ".join(text.splitlines()[:number]).split(), np.float64)
    if len(values) != number * width:
        raise ValueError(f"{number} points of {width} numbers are announced, {len(values)} numbers are there")
    return _fill(dtype, values.reshape(number, width))


def _fill(dtype: np.dtype, values: Array) -> Array:
    table = np.empty(len(values), dtype)
    start = 0
    for name in dtype.names:
        width = dtype[name].shape[0]
        table[name] = values[:, start : start + width]
        start += width
    return table


def _from_columns(data: Array, dtype: np.dtype, number: int) -> Array:
    """Points of a compressed PCD file: all values of the first field, then of the second, …"""
    table = np.empty(number, dtype)
    start = 0
    for name in dtype.names:
        size = number * dtype[name].itemsize
        table[name] = data[start : start + size].view(dtype[name].base).reshape(number, -1)
        start += size
    return table


def _ordered(table: Array) -> Array:
    """Columns of a table as points: x, y, z, intensity, then the other fields that hold one number each."""
    fields = {key.partition("\0")[0]: key for key in table.dtype.names if table.dtype[key].shape == (1,)}
    missing = [axis for axis in "xyz" if axis not in fields]
    if missing:
        raise ValueError(f"no field {missing[0]!r}; there are {', '.join(fields)}")
    first = ["x", "y", "z", *(name for name in _INTENSITY if name in fields)]
    order = first + [name for name in fields if name not in first and name != "_"]
    return np.column_stack([table[fields[name]][:, 0].astype(np.float32) for name in order])


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
