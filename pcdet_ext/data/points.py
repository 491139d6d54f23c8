"""Point clouds from files of several kinds, distinguished by suffix: .bin, .pcd.bin, .npy, .pcd, .ply, .las and .laz.

Formats: PCD 0.7 (pointclouds.org; ascii, binary and binary_compressed, whose packing is M. Lehmann's LZF), PLY 1.0
(G. Turk; ascii and both binary orders), and LAS 1.0 to 1.4 (ASPRS), which the optional package laspy reads, with lazrs
the compressed .laz too. Columns are taken by name wherever a file names them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.files import ARCHIVE_ERRORS, DataError, MissingFileError, read_array
from pcdet_ext.structures import Array

XYZ = ("x", "y", "z")
# What a column may be called in files, the likeliest first; spelling is compared without case, "_" and "scalar_".
SYNONYMS = {
    "intensity": ("intensity", "intensities", "i", "reflectance", "reflectivity", "remission"),
    "timestamp": ("timestamp", "time", "timelag"),
    "elongation": ("elongation",),
    "ring": ("ring", "channel", "laserid", "beam"),
}
# Columns of files that do not name theirs, by their number, as the data sets that use them have it.
HEADLESS = (*XYZ, "intensity", "timestamp")
NUSCENES = (*XYZ, "intensity", "ring")
ONE_SCAN = ".pcd.bin"  # how files end that have them
LZF_EXPANSION = 88  # three bytes of LZF announce at most 264
LAZ_EXPANSION = 10_000  # of a file whose points are all alike; what announces more is damaged
SUFFIXES = (".bin", ".npy", ".pcd", ".ply", ".las", ".laz")  # of the files that are read

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


@dataclass(frozen=True, eq=False)
class PointFile:
    """The content of a point file.

    points: float32 [N, F]; columns: name of each column as the file has it, or for a file that names none, as is usual
    for its kind; path: where it was read; named: whether the columns are what the file (or its kind) says, not a guess.
    """

    points: Array
    columns: tuple[str, ...]
    path: Path
    named: bool = True

    def select(self, wanted: Sequence[str]) -> Array:
        """Points float32 [N, len(wanted)] of the wanted columns, found under any of their usual names.

        Raises DataError that names the columns which the file lacks, and those that it has.
        """
        found = [find_column(name, self.columns) for name in wanted]
        missing = [name for name, place in zip(wanted, found, strict=True) if place is None]
        if missing:
            raise DataError(
                f"{self.path}: has no column for {', '.join(map(repr, missing))}; it has {', '.join(self.columns)}"
            )
        return self.points[:, [place for place in found if place is not None]]


def find_column(name: str, columns: Sequence[str]) -> int | None:
    """Place of a column, by its name or else one of its usual other names; None where there is none."""
    spelled = [_plain(column) for column in columns]
    for candidate in (_plain(name), *SYNONYMS.get(name, ())):
        if candidate in spelled:
            return spelled.index(candidate)
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("scalar_"))


def read_point_file(path: str | Path, columns: int | None = None) -> PointFile:
    """The points of a file and the names of their columns.

    Args:
        path: a .bin, .pcd.bin, .npy, .pcd, .ply, .las or .laz file; the case of the suffix does not matter.
        columns: columns of a headless .bin file; without it 5 for nuScenes' .pcd.bin (x, y, z, intensity, ring) and 4
            (x, y, z, intensity) for others.

    Raises:
        DataError: that names the file when it is missing, cut short, or no point cloud.
        ImportError: a .las or .laz file, and laspy (for .laz also lazrs) is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".bin":
        nuscenes = is_one_scan(path)
        points = read_bin(path, columns or (5 if nuscenes else 4))
        usual = NUSCENES if nuscenes else HEADLESS
        return PointFile(points, _headless(points.shape[1], usual), path, named=nuscenes)
    readers = {".npy": _read_npy, ".pcd": _read_pcd, ".ply": _read_ply, ".las": _read_las, ".laz": _read_las}
    if suffix not in readers:
        raise DataError(f"{path}: point clouds of this kind are not read{suggest(suffix, ['.bin', *readers])}")
    try:
        points, names = readers[suffix](path)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (*ARCHIVE_ERRORS, IndexError, OverflowError) as error:
        raise DataError(f"{path}: damaged or not a {suffix} point cloud ({error})") from error
    named = suffix != ".npy" or names != _headless(points.shape[1], HEADLESS)
    return PointFile(points, names, path, named)


def is_one_scan(path: str | Path) -> bool:
    """Whether a file is, by its name, one of several scans that make a frame together (nuScenes' .pcd.bin)."""
    return str(path).lower().endswith(ONE_SCAN)


def is_headless_bin(path: str | Path) -> bool:
    """Whether a file is a .bin file of which nobody says how many columns it has."""
    return Path(path).suffix.lower() == ".bin" and not is_one_scan(path)


def read_points(path: str | Path, columns: int | None = None) -> Array:
    """Points float32 [N, F] of a file; columns x, y, z, then intensity where there is one, then what else the file has.

    See `read_point_file`, which also gives the names of the columns.
    """
    return read_point_file(path, columns).points


def read_columns(path: str | Path, wanted: Sequence[str]) -> Array:
    """Points float32 [N, F] with the wanted columns first.

    They are taken by name where the file names its columns; else they are taken to be the file's columns in their
    order, of which it may have fewer or (except in a headless .bin file) more. A .pcd.bin file of nuScenes is one scan:
    where the age of points is wanted ("timestamp"), all of them have the age 0.
    Raises DataError for a damaged file, and for one without a wanted column.
    """
    path = Path(path)
    one_scan = is_one_scan(path)
    content = read_point_file(path, len(wanted) if is_headless_bin(path) else None)
    if one_scan and "timestamp" in wanted:
        points = np.insert(content.points, len(content.columns), 0, axis=1)
        content = replace(content, points=points, columns=(*content.columns, "timestamp"))
    return content.select(wanted) if content.named else content.points


def read_cloud(path: str | Path, features: Sequence[str] | None = None) -> tuple[Array, tuple[str, ...]]:
    """Points float32 [N, F] of a file and the names of their F columns.

    features: the columns to read, by name or in their order, see `read_columns`; None for all that the file has, of a
    headless .bin file x, y, z, intensity. Raises DataError for a damaged file, and for one without these columns.
    """
    if features is None:
        content = read_point_file(path)
        return content.points, content.columns
    points = read_columns(path, features)
    if points.shape[1] < len(features):
        raise DataError(f"{path}: has {points.shape[1]} columns, not the {len(features)} of {', '.join(features)}")
    return points[:, : len(features)], tuple(features)


def read_bin(path: str | Path, columns: int) -> Array:
    """Points float32 [N, columns] from a headless little-endian file. Raises DataError when the last point is cut."""
    path = Path(path)
    try:
        size = path.stat().st_size
        values = np.fromfile(path, "<f4")  # one copy in memory, which is ours to write to
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if size % (4 * columns) or values.nbytes != size:
        raise DataError(
            f"{path}: {size} bytes are no whole number of {columns}-column float32 points; cut short, or are "
            "there other columns?"
        )
    return values.astype(np.float32, copy=False).reshape(-1, columns)


def _headless(count: int, usual: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of a file that has none."""
    return (*usual[:count], *(f"column {i}" for i in range(len(usual), count)))


def _read_npy(path: Path) -> tuple[Array, tuple[str, ...]]:
    with path.open("rb") as file:
        points = read_array(file, path.stat().st_size, path.name)
    if points.dtype.names and points.ndim == 1:
        return _ordered({name: points[name] for name in points.dtype.names if points.dtype[name].kind in "fiu"})
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise ValueError(f"an array of numbers [N, 3 or more] is wanted, got {points.dtype} {list(points.shape)}")
    return points.astype(np.float32), _headless(points.shape[1], HEADLESS)


def _read_pcd(path: Path) -> tuple[Array, tuple[str, ...]]:
    data = path.read_bytes()
    header: dict[str, list[str]] = {}
    body = 0
    while "DATA" not in header:
        line, body = _next_line(data, body)
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
            table = _ascii_table(data[body:], dtype, number)
        case "binary":
            table = np.frombuffer(data, dtype, number, body)
        case "binary_compressed":
            table = _pcd_compressed(data, body, dtype, number)
        case kind:
            raise ValueError(f"no such kind of data: {kind!r}")
    return _ordered(_single_numbers(table))


def _pcd_points(header: dict[str, list[str]]) -> int:
    """How many points a PCD header announces: POINTS, or else WIDTH times HEIGHT."""
    if "POINTS" in header:
        return _count(header["POINTS"][0], "POINTS")
    return _count(header["WIDTH"][0], "WIDTH") * _count(header.get("HEIGHT", ["1"])[0], "HEIGHT")


def _count(text: str, what: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(f"{what} is {number}")
    return number


def _pcd_compressed(data: bytes, body: int, dtype: np.dtype, number: int) -> Array:
    if number == 0:
        return np.empty(0, dtype)
    packed, unpacked = (int(v) for v in np.frombuffer(data, "<u4", 2, body))
    if unpacked != number * dtype.itemsize or body + 8 + packed > len(data) or unpacked > LZF_EXPANSION * packed:
        raise ValueError("compressed data is cut short")
    columns = _lzf_decompressor()(np.frombuffer(data, np.uint8, packed, body + 8), unpacked)
    return _from_columns(columns, dtype, number)


@dataclass(frozen=True)
class _Element:
    """An element of a PLY header: its name, how many there are, and (name, type, type of a list's length or "")."""

    name: str
    number: int
    properties: tuple[tuple[str, str, str], ...] = ()

    @property
    def has_lists(self) -> bool:
        return any(length for _, _, length in self.properties)

    def dtype(self, order: str) -> np.dtype:
        return np.dtype([(f"{name}\0{i}", order + kind, (1,)) for i, (name, kind, _) in enumerate(self.properties)])


def _read_ply(path: Path) -> tuple[Array, tuple[str, ...]]:
    data = path.read_bytes()
    form, elements, body = _ply_header(data)
    order = _PLY_ORDERS[form]
    for element in elements:
        if element.name == "vertex":
            break
        body = (_skip_lines if form == "ascii" else _skip_binary)(data, body, element, order)
    else:
        raise ValueError("no element 'vertex'")
    if element.has_lists:
        raise ValueError("vertices with list properties are not read")
    dtype = element.dtype(order)
    if form == "ascii":
        return _ordered(_single_numbers(_ascii_table(data[body:], dtype, element.number)))
    return _ordered(_single_numbers(np.frombuffer(data, dtype, element.number, body)))


def _ply_header(data: bytes) -> tuple[str, list[_Element], int]:
    """(format, elements, where the body begins) of a PLY file."""
    line, body = _next_line(data, 0)
    if line != "ply":
        raise ValueError("the first line is not 'ply'")
    form = ""
    elements: list[_Element] = []
    while line != "end_header":
        line, body = _next_line(data, body)
        match line.split():
            case ["format", kind, _]:
                form = kind
            case ["element", name, count]:
                elements.append(_Element(name, _count(count, f"the number of {name!r}")))
            case ["property", "list", length, kind, name]:
                elements[-1] = _with_property(elements[-1], name, _PLY_TYPES[kind], _PLY_TYPES[length])
            case ["property", kind, name]:
                elements[-1] = _with_property(elements[-1], name, _PLY_TYPES[kind], "")
    if form not in _PLY_ORDERS:
        raise ValueError(f"no such format: {form!r}")
    return form, elements, body


def _with_property(element: _Element, name: str, kind: str, length: str) -> _Element:
    return _Element(element.name, element.number, (*element.properties, (name, kind, length)))


def _skip_lines(data: bytes, body: int, element: _Element, order: str) -> int:
    """Where the lines of an element end: one line for each that is not blank."""
    left = element.number
    while left:
        line, body = _next_line(data, body)
        left -= bool(line)
    return body


def _skip_binary(data: bytes, body: int, element: _Element, order: str) -> int:
    """Where an element ends in a binary file."""
    if not element.has_lists:
        end = body + element.number * element.dtype(order).itemsize
    else:
        end = body
        for _ in range(element.number):
            for _, kind, length in element.properties:
                size = np.dtype(kind).itemsize
                if length:
                    entries = int(np.frombuffer(data, order + length, 1, end)[0])
                    size = np.dtype(length).itemsize + _count(str(entries), "the length of a list") * size
                end += size
    if end > len(data):
        raise ValueError(f"{element.number} of {element.name!r} are announced, but the file ends before")
    return end


def _next_line(data: bytes, start: int) -> tuple[str, int]:
    """The next line of a header, without a byte-order mark; comments may be in any encoding."""
    end = data.find(b"\n", start)
    if end < 0:
        raise ValueError("the header has no end")
    return data[start:end].decode("utf-8", errors="replace").lstrip("\ufeff").strip(), end + 1


def _ascii_table(text: bytes, dtype: np.dtype, number: int) -> Array:
    width = sum(dtype[name].shape[0] for name in dtype.names or ())
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
    values = np.array(b" ".join(lines[:number]).split(), np.float64)
    if len(values) != number * width:
        raise ValueError(f"{number} points of {width} numbers are announced, {len(values)} numbers are there")
    return _fill(dtype, values.reshape(number, width))


def _fill(dtype: np.dtype, values: Array) -> Array:
    """Numbers as a table; float64 throughout, so that "nan" in an integer column stays what it is."""
    names = dtype.names or ()
    table = np.empty(len(values), np.dtype([(name, np.float64, dtype[name].shape) for name in names]))
    start = 0
    for name in names:
        width = dtype[name].shape[0]
        table[name] = values[:, start : start + width]
        start += width
    return table


def _from_columns(data: Array, dtype: np.dtype, number: int) -> Array:
    """Points of a compressed PCD file: all values of the first field, then of the second, …"""
    table = np.empty(number, dtype)
    start = 0
    for name in dtype.names or ():
        size = number * dtype[name].itemsize
        table[name] = data[start : start + size].view(dtype[name].base).reshape(number, -1)
        start += size
    return table


def _single_numbers(table: Array) -> dict[str, Array]:
    """Fields of a table that hold one number for each point, by name ("_" is what PCD calls padding)."""
    fields = {key.partition("\0")[0]: key for key in table.dtype.names or () if table.dtype[key].shape == (1,)}
    return {name: table[key][:, 0] for name, key in fields.items() if name != "_"}


def _read_las(path: Path) -> tuple[Array, tuple[str, ...]]:
    """Points of a LAS or LAZ file: x, y, z in the file's units (scaled and moved as its header says), then the rest."""
    size = path.stat().st_size
    try:
        import laspy
    except ImportError as error:
        raise ImportError(f"{path}: files of this kind need the package laspy: pip install 'pcdet_ext[las]'") from error
    _check_las_header(path, size)
    try:
        with laspy.open(path) as reader:
            header = reader.header
            announced = header.point_count * header.point_format.size
            packed = header.are_points_compressed
            if announced > (LAZ_EXPANSION * size if packed else size - header.offset_to_point_data):
                raise ValueError(f"{header.point_count} points are announced, more than the file can hold")
            if packed and not laspy.LazBackend.detect_available():
                raise ImportError(f"{path}: compressed files need the package lazrs: pip install 'pcdet_ext[las]'")
            las = reader.read()
    except (laspy.errors.LaspyException, RuntimeError) as error:  # RuntimeError: lazrs
        raise ValueError(str(error) or type(error).__name__) from error
    names = [name for name in las.point_format.dimension_names if name not in ("X", "Y", "Z")]
    others = {name: np.asarray(las[name]) for name in names if np.ndim(las[name]) == 1}
    return _ordered({axis: np.asarray(las[axis], np.float64) for axis in XYZ} | others)


def _check_las_header(path: Path, size: int) -> None:
    """Raise ValueError where a header announces records or points where the file has none, as laspy would believe."""
    with path.open("rb") as file:
        start = file.read(255)  # longer than the header of any version before 1.4
    if start[:4] != b"LASF" or len(start) < 104:
        raise ValueError("no LAS header")
    header, points, records = struct.unpack("<HII", start[94:104])
    fits = 104 <= header <= points <= size and records * 54 <= points - header
    if start[25] >= 4 and fits:
        fits = len(start) >= 247
        first, extended = struct.unpack("<QI", start[235:247]) if fits else (0, 0)
        fits = fits and (extended == 0 or (first <= size and extended * 60 <= size - first))
    if not fits:
        raise ValueError("its header announces records or points that the file does not have")


def _ordered(fields: dict[str, Array]) -> tuple[Array, tuple[str, ...]]:
    """Points and the names of their columns: x, y, z, intensity, then the others."""
    names = list(fields)
    first = [find_column(axis, names) for axis in XYZ]
    for axis, place in zip(XYZ, first, strict=True):
        if place is None:
            raise ValueError(f"no field {axis!r}; there are {', '.join(names)}")
    first.append(find_column("intensity", names))
    places = [place for place in first if place is not None]
    order = [names[place] for place in places] + [name for i, name in enumerate(names) if i not in places]
    return np.column_stack([fields[name].astype(np.float32) for name in order]), tuple(order)


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
