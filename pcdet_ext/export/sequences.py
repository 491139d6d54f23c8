"""Orders and sets of voxels written with basic operators, for one frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.export import basics
from pcdet_ext.export.operators import argsort
from pcdet_ext.grouping.partitions import even_sets
from pcdet_ext.ops.lsh import lsh_axes
from pcdet_ext.ops.rotated_sets import RotatedSets
from pcdet_ext.ops.serialize import curve_depth, curve_of, curve_places, window_places


def serialize(coords: Tensor, grid: Sequence[int], order: str, **options: Any) -> Tensor:
    """The form of `pcdet_ext.ops.serialize` for export. Arguments as in that function.

    Raises:
        NotImplementedError: the order has no form here.
    """
    if order not in FORMS:
        raise NotImplementedError(f"the order {order!r} has no ONNX form")
    return FORMS[order](coords, grid, **options)


def _windows(
    coords: Tensor,
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int] = (0, 0, 0),
    path: str = "rows",
    along_y: bool = False,
) -> Tensor:
    return window_places(coords, grid, window, shift, along_y, path == "snake")


def _curve(
    coords: Tensor, grid: Sequence[int], lowest: str = "z", depth: int | None = None, order: str = "zorder"
) -> Tensor:
    return curve_places(coords, curve_of(order, lowest), curve_depth(grid) if depth is None else depth)


def _buckets(
    coords: Tensor,
    grid: Sequence[int],
    projections: int = 3,
    width: float = 8.0,
    seed: int = 0,
    border_shift: float = 0.0,
) -> Tensor:
    axes, step = lsh_axes(tuple(grid), projections, width, seed, border_shift)
    z, y, x = coords[:, 1:].long().unbind(1)
    key = torch.zeros_like(z)
    for size, start, (dz, dy, dx) in axes:
        key = key * size + torch.div(z * dz + y * dy + x * dx + start, step, rounding_mode="floor")
    return key


FORMS: Mapping[str, Callable[..., Tensor]] = {
    "window_x": _windows,
    "window_y": partial(_windows, along_y=True),
    "zorder": _curve,
    "hilbert": partial(_curve, order="hilbert"),
    "lsh": _buckets,
}


def rotated_sets(
    coords: Tensor, grid: Sequence[int], batch_size: int, window: Sequence[int], shift: Sequence[int], set_size: int
) -> RotatedSets:
    """The form of `pcdet_ext.ops.rotated_sets` for export. Arguments as in that function."""
    shifted = coords[:, 1:].long() + torch.tensor(list(shift))
    sizes = torch.tensor(list(window))
    place, inside = torch.div(shifted, sizes, rounding_mode="floor"), shifted % sizes
    count = [math.ceil((g + s) / w) for g, w, s in zip(grid, window, shift, strict=True)]
    number = (place[:, 2] * count[1] + place[:, 1]) * count[0] + place[:, 0]
    directions = []
    for major, minor in ((1, 2), (2, 1)):
        cell = (inside[:, major] * window[minor] + inside[:, minor]) * window[0] + inside[:, 0]
        order = argsort(number * math.prod(window) + cell)
        counts = basics.run_lengths(basics.new_runs(number[order]))[1]
        directions.append(even_sets(order, counts, set_size))
    index, slot = (torch.stack([getattr(d, name) for d in directions]) for name in ("index", "inverse"))
    repeats = torch.stack([~d.valid for d in directions if d.valid is not None])
    return RotatedSets(index, repeats, slot, number, inside.int())
