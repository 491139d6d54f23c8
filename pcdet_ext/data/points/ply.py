"""PLY 1.0 (G. Turk): ascii and both binary orders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_ext.data.points.columns import ordered
from pcdet_ext.data.points.tables import ascii_table, count_of, next_line, single_numbers
from pcdet_ext.structures import Array

_PLY_TYPES = {
    old: kind
    for names, kind in (
        ("char int8", "i1"), ("uchar uint8", "u1"), ("short int16", "i2"), ("ushort uint16", "u2"),
        ("int int32", "i4"), ("uint uint32", "u4"), ("float float32", "f4"), ("double float64", "f8"),
    )
    for old in names.split()
}  # fmt: skip
_PLY_ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}


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


def read_ply(path: Path) -> tuple[Array, tuple[str, ...]]:
    """The vertices of a PLY file and the names of their columns. Raises ValueError where it is damaged."""
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
        return ordered(single_numbers(ascii_table(data[body:], dtype, element.number)))
    return ordered(single_numbers(np.frombuffer(data, dtype, element.number, body)))


def _ply_header(data: bytes) -> tuple[str, list[_Element], int]:
    """(format, elements, where the body begins) of a PLY file."""
    line, body = next_line(data, 0)
    if line != "ply":
        raise ValueError("the first line is not 'ply'")
    form = ""
    elements: list[_Element] = []
    while line != "end_header":
        line, body = next_line(data, body)
        match line.split():
            case ["format", kind, _]:
                form = kind
            case ["element", name, count]:
                elements.append(_Element(name, count_of(count, f"the number of {name!r}")))
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
        line, body = next_line(data, body)
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
                    size = np.dtype(length).itemsize + count_of(str(entries), "the length of a list") * size
                end += size
    if end > len(data):
        raise ValueError(f"{element.number} of {element.name!r} are announced, but the file ends before")
    return end
