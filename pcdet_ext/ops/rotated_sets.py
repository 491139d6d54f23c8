"""Rotated sets: windows of voxels cut into sets of equal size, along y and along x (DSVT, Wang et al., CVPR 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import has_kernels, int32_array, kernel_kind, launch
from pcdet_ext.ops._operator import integer_operator, run, shapes_of
from pcdet_ext.ops.serialize import check_coords, raise_outside


class RotatedSets(NamedTuple):
    """index: int64 [2, S, set_size], voxel in each slot, first sorted by (y, x, z) in the window, then by (x, y, z);
    repeats: bool [2, S, set_size], True where a slot repeats the one to its left; slot: int64 [2, N], the first slot of
    each voxel, set * set_size + place; window: int64 [N], number of each voxel's window, ascending by (frame, x, y, z);
    inside: int32 [N, 3], place in the window as (z, y, x).
    """

    index: Tensor  # type: ignore[assignment]  # a tuple has a method of that name
    repeats: Tensor
    slot: Tensor
    window: Tensor
    inside: Tensor


@typed
def rotated_sets(
    coords: Tensor,
    grid: Sequence[int],
    batch_size: int,
    window: Sequence[int],
    shift: Sequence[int],
    set_size: int,
) -> RotatedSets:
    """Cut every window into ⌈n / set_size⌉ sets that share out its n voxels evenly (DSVT section 3.2).

    Slot k of set j of a window with S sets holds the voxel of rank ⌊(j · set_size + k) · n / (S · set_size)⌋, so every
    voxel is in exactly one set per direction, in one slot or in several adjacent ones.

    Args:
        coords: int32 [N, 4] as (batch, z, y, x), each at most once, inside the grid.
        grid: (Z, Y, X) cells.
        batch_size: number of frames.
        window: cells (Z, Y, X) of a window.
        shift: cells (Z, Y, X) that are added to the coordinates before windows are counted.
        set_size: slots of a set.

    Returns:
        The sets in both directions.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    check_coords(coords, grid)
    for name, value, low, high in (("batch_size", batch_size, 0, 1 << 15), ("set_size", set_size, 1, LARGEST_SET)):
        if not low <= value <= high:
            raise ValueError(f"{name} must lie in [{low}, {high}], got {value}")
    if len(window) != 3 or len(shift) != 3 or min(window) < 1 or min(shift) < 0:
        raise ValueError(f"window must be three positive numbers and shift three from 0 on, got {window} and {shift}")
    count = [math.ceil((g + s) / w) for g, w, s in zip(grid, window, shift, strict=True)]
    count = [max(c, math.ceil(g / w) + 1) for c, g, w in zip(count, grid, window, strict=True)]
    if batch_size * math.prod(count) * math.prod(window) >= 1 << 62:
        raise ValueError(
            f"window {list(window)} with shift {list(shift)} on grid {list(grid)}: too many cells for int64 keys"
        )
    return RotatedSets(*run(_rotated_sets, coords.contiguous(), grid, batch_size, window, shift, count, set_size))


@integer_operator("rotated_sets")
def _rotated_sets(
    coords: Tensor,
    grid: Sequence[int],
    batch_size: int,
    window: Sequence[int],
    shift: Sequence[int],
    count: Sequence[int],
    set_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    windows, cells = batch_size * math.prod(count), math.prod(window)
    device = kernel_kind(coords.device)
    # Tables of windows and of their cells pay where there are not many more of them than voxels.
    fits = 0 < windows <= 8 * len(coords) + 65536 and cells <= (
        CUDA_CELLS if device == "cuda" else 64 * len(coords) + 65536
    )
    if not fits or not has_kernels(coords):
        return rotated_sets_reference(coords, grid, batch_size, window, shift, count, set_size)
    run = _sets_on_cuda if device == "cuda" else _sets_on_cpu
    layout = [*grid, *window, *shift, *count]
    return run(coords, grid, batch_size, layout, windows, cells, set_size)


LARGEST_SET = 1 << 20  # voxels
CUDA_CELLS = 6000 * 32  # whose bit map and its running sum fit into a block's shared memory


def _sets_on_cpu(
    coords: Tensor, grid: Sequence[int], batch_size: int, layout: list[int], windows: int, cells: int, set_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sets by two kernels; layout: grid, window, shift and number of windows, (Z, Y, X) each."""
    n, i64, i32 = len(coords), torch.int64, torch.int32
    number, totals = coords.new_empty(n, dtype=i64), coords.new_empty(2, dtype=i64)
    inside, members = coords.new_empty(2, n, 3)
    starts, first_set = coords.new_empty(2, windows + 1)
    gathered = (members, i32, 3 * n), (starts, i32, windows + 1), (first_set, i32, windows + 1)
    located = (number, i64, n), (inside, i32, 3 * n)
    task = (coords, i32, 4 * n), n, batch_size, int32_array(layout), set_size
    launch("rotated_windows", coords.device, *task, *located, *gathered, (totals, i64, 2))
    outside, sets = totals.tolist()
    raise_outside(outside, grid)
    index = coords.new_empty(2, sets, set_size, dtype=i64)
    repeats = torch.empty_like(index, dtype=torch.bool)
    slot = coords.new_empty(2, n, dtype=i64)
    slots = 2 * sets * set_size
    filled = (index, i64, slots), (repeats, torch.bool, slots), (slot, i64, 2 * n)
    launch("rotated_fill", coords.device, *gathered, n, windows, cells, set_size, sets, *filled)
    return index, repeats, slot, number, inside


def _sets_on_cuda(
    coords: Tensor, grid: Sequence[int], batch_size: int, layout: list[int], windows: int, _cells: int, set_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sets by two kernels and a running sum; layout: as for the CPU."""
    n, i64, i32 = len(coords), torch.int64, torch.int32
    number, slot = coords.new_empty(n, dtype=i64), coords.new_empty(2, n, dtype=i64)
    inside, arrival, members = (coords.new_empty(shape) for shape in ((n, 3), (n,), (n,)))
    counts, outside = coords.new_zeros(windows), coords.new_zeros(1, dtype=i64)
    located = (number, i64, n), (inside, i32, 3 * n), (arrival, i32, n)
    task = (coords, i32, 4 * n), n, batch_size, int32_array(layout)
    found = (counts, i32, windows), (outside, i64, 1)
    launch("rotated_windows", coords.device, *task, *located, *found)
    sizes = torch.stack([counts, (counts + set_size - 1) // set_size])
    starts, first_set = torch.nn.functional.pad(sizes.cumsum(1), (1, 0))
    wrong, sets = torch.stack([outside[0], first_set[-1]]).tolist()
    raise_outside(wrong, grid)
    index = coords.new_zeros(2, sets, set_size, dtype=i64)  # some stay where cells repeat
    repeats = torch.zeros_like(index, dtype=torch.bool)
    slots = 2 * sets * set_size
    filled = (index, i64, slots), (repeats, torch.bool, slots), (slot, i64, 2 * n)
    firsts = (starts, i64, windows + 1), (first_set, i64, windows + 1)
    numbers = n, windows, int32_array(layout), set_size, sets
    launch("rotated_fill", coords.device, *located, *firsts, *numbers, (members, i32, n), *filled)
    return index, repeats, slot, number, inside


@shapes_of("rotated_sets")
def _(
    coords: Tensor,
    grid: Sequence[int],
    batch_size: int,
    window: Sequence[int],
    shift: Sequence[int],
    count: Sequence[int],
    set_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sets = torch.library.get_ctx().new_dynamic_size()
    index = coords.new_empty(2, sets, set_size, dtype=torch.int64)
    slot, number = (coords.new_empty(*shape, len(coords), dtype=torch.int64) for shape in ((2,), ()))
    return index, torch.empty_like(index, dtype=torch.bool), slot, number, coords.new_empty(len(coords), 3)


def rotated_sets_reference(
    coords: Tensor,
    grid: Sequence[int],
    batch_size: int,
    window: Sequence[int],
    shift: Sequence[int],
    count: Sequence[int],
    set_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The definition in PyTorch on any device.

    Arguments as in `rotated_sets`, and count: windows along each axis, (Z, Y, X).
    """
    limit = torch.tensor([batch_size, *grid], device=coords.device)
    raise_outside(int(((coords < 0) | (coords >= limit)).any(1).sum()), grid)
    shifted = coords[:, 1:].long() + torch.tensor(shift, device=coords.device)
    sizes = torch.tensor(window, device=coords.device)
    place, inside = shifted // sizes, shifted % sizes
    number = ((coords[:, 0].long() * count[2] + place[:, 2]) * count[1] + place[:, 1]) * count[0] + place[:, 0]
    index = torch.stack([_one_direction(number, inside, window, set_size, major) for major in (1, 2)])
    repeats = torch.zeros_like(index, dtype=torch.bool)
    repeats[..., 1:] = index[..., 1:] == index[..., :-1]
    slots = torch.arange(index[0].numel(), device=coords.device)
    slot = slots.new_empty(2, len(coords) + 1)  # one more takes the repeats, so that no two write to the same place
    slot.scatter_(1, torch.where(repeats, len(coords), index).flatten(1), slots.expand(2, -1))
    return index, repeats, slot[:, :-1].contiguous(), number, inside.int()


def _one_direction(number: Tensor, inside: Tensor, window: Sequence[int], set_size: int, major: int) -> Tensor:
    minor = 3 - major
    cell = (inside[:, major] * window[minor] + inside[:, minor]) * window[0] + inside[:, 0]
    order = torch.argsort(number * math.prod(window) + cell, stable=True)
    counts = torch.unique_consecutive(number[order], return_counts=True)[1]
    sets = (counts + set_size - 1) // set_size
    owner = torch.repeat_interleave(sets)
    local = torch.arange(len(owner), device=number.device) - (sets.cumsum(0) - sets)[owner]
    slot = local[:, None] * set_size + torch.arange(set_size, device=number.device)
    rank = slot * counts[owner, None] // (sets[owner, None] * set_size)
    return order[(counts.cumsum(0) - counts)[owner, None] + rank]
