"""Points of Feather files, as Argoverse 2 has its sweeps: a column of numbers for each property of a point."""

from __future__ import annotations

from pathlib import Path

from pcdet_ext.data.points.columns import ordered
from pcdet_ext.structures import Array


def read_feather(path: Path) -> tuple[Array, tuple[str, ...]]:
    """Points float32 [N, F] and the names of their columns; those that are no numbers are left out.

    Raises ValueError for a file that is none, or has no x, y and z.
    """
    from pyarrow import ArrowException, feather, types

    try:
        table = feather.read_table(path)
        numbers = [f.name for f in table.schema if types.is_integer(f.type) or types.is_floating(f.type)]
        fields = {name: table[name].to_numpy() for name in numbers}
    except ArrowException as error:
        raise ValueError(" ".join(str(error).split())) from error
    return ordered(fields)
