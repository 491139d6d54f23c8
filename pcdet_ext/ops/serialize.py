"""Serialization: an int64 key for each voxel, whose ascending order is a 1-D sequence.

Every key carries the frame in its bits 48 and up, so frames follow each other. `serialize` is the entry; the curves
have an inverse (`deserialize`), and z-order keys the arithmetic of octrees (`octree_parent`, `octree_children`).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Literal, cast

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import Argument, Int32, has_kernels, int32_array, launch, on_cuda
from pcdet_ext.ops._operator import integer_operator, run, shapes_of
from pcdet_ext.ops.hilbert_reference import hilbert_transpose, hilbert_untranspose
from pcdet_ext.ops.lsh import KEY_BITS, lsh_axes

BATCH_SHIFT = KEY_BITS
MAX_DEPTH = 16
WIDEST_BUCKET = 1 << 32  # cells
CURVES = {"zorder": 0, "zorder_x_lowest": 1, "hilbert": 2}


class _WindowOrder(ctypes.Structure):
    """Mirrors pcdet::WindowOrder of ops/serialize/serialize.h."""

    _fields_ = [
        ("grid", ctypes.c_int32 * 3),
        ("window", ctypes.c_int32 * 3),
        ("shift", ctypes.c_int32 * 3),
        ("count", ctypes.c_int32 * 3),
        ("along_y", ctypes.c_int32),
        ("snake", ctypes.c_int32),
    ]


@typed
def serialize(coords: Tensor, grid: Sequence[int], order: str, **options: object) -> Tensor:
    """Keys of voxels whose ascending order is a curve through the grid, distinct for distinct voxels except for "lsh".

    Orders and their options:

    - "zorder": Morton code (Morton 1966). `lowest="z"` as in octrees (ocnn), or `"x"`; `depth` bits per axis.
    - "hilbert": Hilbert curve, Skilling's transform (AIP Conf. Proc. 707, 2004); `depth`.
    - "window_x", "window_y": voxels window by window, lines of windows and of cells along x or y. `window` (Z, Y, X)
      cells, `shift` (Z, Y, X) cells added first, `path="rows"` (LION, three axes) or `"snake"` (FlatFormer, back and
      forth; z must have one window).
    - "lsh": buckets of random projections (Datar et al., SCG 2004): `projections` directions drawn with `seed`, each
      quantised in steps of `width` cells; `border_shift`, from 0 to below 1, moves the borders by that share of a step.

    Args:
        coords: int32 [N, 4] as (batch, z, y, x).
        grid: (Z, Y, X) cells.
        order: one of the names above.
        options: of the order.

    Returns:
        int64 [N]; with "lsh" a key is that of a bucket.

    Raises:
        ValueError: naming the argument that is wrong; coordinates must lie inside the grid, batch indices in
            [0, 32768).
    """
    check_coords(coords, grid)
    if order not in _FUNCTIONS:
        raise ValueError(f"order must be one of {', '.join(_FUNCTIONS)}, got {order!r}")
    try:
        return _FUNCTIONS[order](coords, _whole(grid), **options)
    except TypeError as error:
        raise ValueError(f"options of order {order!r}: {error}") from error


def _whole(numbers: Sequence[int]) -> tuple[int, ...]:
    """As a tuple of plain numbers; the same one, if it is that already."""
    plain = type(numbers) is tuple and set(map(type, numbers)) == {int}
    return cast("tuple[int, ...]", numbers) if plain else tuple(map(int, numbers))


@typed
def deserialize(keys: Tensor, order: Literal["zorder", "hilbert"], depth: int, lowest: str = "z") -> Tensor:
    """The coordinates of keys, the inverse of `serialize` for its two curves.

    Args:
        keys: int64 [N].
        order: the curve that made them.
        depth: the bits per axis that they were made with.
        lowest: the axis of the lowest bit of "zorder" that they were made with.

    Returns:
        int32 [N, 4] as (batch, z, y, x).

    Raises:
        ValueError: naming the argument that is wrong.
    """
    if keys.dtype != torch.int64 or keys.ndim != 1:
        raise ValueError(f"keys must be int64 [N], got {keys.dtype} {list(keys.shape)}")
    if order not in ("zorder", "hilbert"):
        raise ValueError(f"order must be 'zorder' or 'hilbert', got {order!r}")
    _check_depth(depth, (1, 1, 1))
    return run(_curve_decode, keys.contiguous(), curve_of(order, lowest), depth)


@typed
def octree_parent(keys: Tensor, levels: int = 1) -> Tensor:
    """Keys of the ancestors `levels` depths up, for z-order keys int64 of any shape; frames are kept.

    Raises ValueError for keys of another type, and for levels outside [0, 16].
    """
    _check_keys(keys)
    if not 0 <= levels <= MAX_DEPTH:
        raise ValueError(f"levels must lie in [0, {MAX_DEPTH}], got {levels}")
    low = keys & ((1 << BATCH_SHIFT) - 1)
    return (low >> (3 * levels)) | (keys >> BATCH_SHIFT << BATCH_SHIFT)


@typed
def octree_children(keys: Tensor) -> Tensor:
    """Keys [..., 8] of the children of keys at a depth below 16, in octant order 4·x + 2·y + z; frames are kept.

    Raises ValueError for keys that are not int64.
    """
    _check_keys(keys)
    low = keys & ((1 << BATCH_SHIFT) - 1)
    octants = torch.arange(8, device=keys.device)
    return ((low << 3) | (keys >> BATCH_SHIFT << BATCH_SHIFT)).unsqueeze(-1) | octants


def _check_keys(keys: Tensor) -> None:
    if keys.dtype != torch.int64:
        raise ValueError(f"keys must be int64, got {keys.dtype}")


def curve_depth(grid: Sequence[int]) -> int:
    """Bits an axis that hold every coordinate of a grid (Z, Y, X)."""
    return max(1, math.ceil(math.log2(max(grid))))


def _zorder(coords: Tensor, grid: tuple[int, ...], lowest: str = "z", depth: int | None = None) -> Tensor:
    _check_depth(curve_depth(grid) if depth is None else depth, grid)
    return run(_curve_encode, coords.contiguous(), grid, curve_of("zorder", lowest), MAX_DEPTH)


def _hilbert(coords: Tensor, grid: tuple[int, ...], depth: int | None = None) -> Tensor:
    depth = curve_depth(grid) if depth is None else depth
    _check_depth(depth, grid)
    return run(_curve_encode, coords.contiguous(), grid, CURVES["hilbert"], depth)


def _window_order(
    coords: Tensor,
    grid: tuple[int, ...],
    window: Sequence[int],
    shift: Sequence[int] = (0, 0, 0),
    path: str = "rows",
    *,
    along_y: bool,
) -> Tensor:
    layout = grid, _whole(window), _whole(shift)
    _check_windows(*layout, path)
    return run(_window_keys, coords.contiguous(), *layout, along_y, path == "snake")


@lru_cache(maxsize=64)
def _check_windows(grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], path: str) -> None:
    for name, values, least in (("window", window, 1), ("shift", shift, 0)):
        if len(values) != 3 or any(int(v) != v or v < least for v in values):
            raise ValueError(f"{name} must be three whole numbers (z, y, x), at least {least}, got {list(values)}")
    if path not in ("rows", "snake"):
        raise ValueError(f"path must be 'rows' or 'snake', got {path!r}")
    count = [math.ceil(g / w) + 1 for g, w in zip(grid, window, strict=True)]
    if any(s > w for s, w in zip(shift, window, strict=True)):
        raise ValueError(f"shift must not be larger than window, got {list(shift)} and {list(window)}")
    if path == "snake" and (shift[0] or window[0] < grid[0]):
        raise ValueError(f"a snake path needs one window along z, got window {list(window)} on grid {list(grid)}")
    factor = 8 if path == "snake" else 1
    if factor * math.prod(count) * math.prod(window) >= 1 << BATCH_SHIFT:
        raise ValueError(f"window {list(window)} on grid {list(grid)}: too many cells for a 48-bit key")


def _lsh(
    coords: Tensor,
    grid: tuple[int, ...],
    projections: int = 3,
    width: float = 8.0,
    seed: int = 0,
    border_shift: float = 0.0,
) -> Tensor:
    """Integer projections (directions in units of 2⁻¹⁶), so that every device gives the same buckets."""
    if not 1 <= projections <= BATCH_SHIFT:
        raise ValueError(f"projections must lie in [1, {BATCH_SHIFT}], got {projections}")
    if not 0 < width < WIDEST_BUCKET:
        raise ValueError(f"width must be positive and below {WIDEST_BUCKET} cells, got {width}")
    if not 0 <= border_shift < 1:
        raise ValueError(f"border_shift must be a share of the width from 0 to below 1, got {border_shift}")
    _check_inside(coords, grid)
    axes, step = lsh_axes(grid, projections, width, seed, border_shift)
    batch, z, y, x = coords.t().to(torch.int64, memory_format=torch.contiguous_format)
    key, value = torch.zeros_like(batch), torch.empty_like(batch)
    for size, start, (dz, dy, dx) in axes:
        torch.mul(z, dz, out=value)
        value.add_(y, alpha=dy).add_(x, alpha=dx).add_(start)
        key.mul_(size).add_(value.div_(step, rounding_mode="trunc"))
    return (batch << BATCH_SHIFT).bitwise_or_(key)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "zorder": typed(_zorder),
    "hilbert": typed(_hilbert),
    "window_x": partial(typed(_window_order), along_y=False),
    "window_y": partial(typed(_window_order), along_y=True),
    "lsh": typed(_lsh),
}


def curve_of(order: str, lowest: str) -> int:
    if lowest not in ("z", "x"):
        raise ValueError(f"lowest must be 'z' or 'x', got {lowest!r}")
    return CURVES["zorder_x_lowest" if order == "zorder" and lowest == "x" else order]


def check_coords(coords: Tensor, grid: Sequence[int]) -> None:
    """Raise ValueError unless coords are int32 [N, 4] and grid three positive numbers."""
    if coords.dtype != torch.int32 or coords.ndim != 2 or coords.shape[1] != 4:
        raise ValueError(f"coords must be int32 [N, 4], got {coords.dtype} {list(coords.shape)}")
    if len(grid) != 3 or any(n < 1 for n in grid):
        raise ValueError(f"grid must be three positive numbers (Z, Y, X), got {list(grid)}")


def _check_depth(depth: int, grid: Sequence[int]) -> None:
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth must be between 1 and {MAX_DEPTH}, got {depth} (grid {list(grid)})")
    if max(grid) > 1 << depth:
        raise ValueError(f"grid {list(grid)} needs a depth of {curve_depth(grid)}, got {depth}")


def _check_inside(coords: Tensor, grid: Sequence[int]) -> None:
    if not len(coords):
        return
    limit = torch.tensor([1 << 15, *grid], device=coords.device)
    low, high = torch.aminmax(coords, dim=0)
    if bool(((low < 0) | (high >= limit)).any()):  # only then they are counted, which takes longer
        raise_outside(int(((coords < 0) | (coords >= limit)).any(1).sum()), grid)


def raise_outside(count: int, grid: Sequence[int]) -> None:
    """Raise ValueError when `count` rows of coordinates were found outside the grid."""
    if count:
        raise ValueError(
            f"coords: {count} rows are outside the grid {list(grid)} (or their batch index is outside batch_size)"
        )


@integer_operator("curve_encode")
def _curve_encode(coords: Tensor, grid: Sequence[int], curve: int, depth: int) -> Tensor:
    if not has_kernels(coords):
        return curve_encode_reference(coords, grid, curve, depth)
    return _make_keys("curve_encode", coords, grid, int32_array(grid), Int32(curve), Int32(depth))


@shapes_of("curve_encode")
def _(coords: Tensor, grid: list[int], curve: int, depth: int) -> Tensor:
    return coords.new_empty(len(coords), dtype=torch.int64)


@integer_operator("curve_decode")
def _curve_decode(keys: Tensor, curve: int, depth: int) -> Tensor:
    if not has_kernels(keys):
        return curve_decode_reference(keys, curve, depth)
    n = len(keys)
    coords = keys.new_empty(n, 4, dtype=torch.int32)
    task = (keys, torch.int64, n), n, Int32(curve), Int32(depth)
    launch("curve_decode", keys.device, *task, (coords, torch.int32, 4 * n))
    return coords


@shapes_of("curve_decode")
def _(keys: Tensor, curve: int, depth: int) -> Tensor:
    return keys.new_empty(len(keys), 4, dtype=torch.int32)


@integer_operator("window_keys")
def _window_keys(
    coords: Tensor, grid: Sequence[int], window: Sequence[int], shift: Sequence[int], along_y: bool, snake: bool
) -> Tensor:
    if not has_kernels(coords):
        return window_keys_reference(coords, grid, window, shift, along_y, snake)
    layout = _window_layout(tuple(grid), tuple(window), tuple(shift), along_y, snake)
    return _make_keys("window_keys", coords, grid, layout)


@lru_cache(maxsize=64)
def _window_layout(
    grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], along_y: bool, snake: bool
) -> _WindowOrder:
    """What the kernels take; they only read it."""
    count = [math.ceil(g / w) + 1 for g, w in zip(grid, window, strict=True)]
    return _WindowOrder(*map(int32_array, (grid, window, shift, count)), along_y, snake)


@shapes_of("window_keys")
def _(coords: Tensor, grid: list[int], window: list[int], shift: list[int], along_y: bool, snake: bool) -> Tensor:
    return coords.new_empty(len(coords), dtype=torch.int64)


def _make_keys(name: str, coords: Tensor, grid: Sequence[int], *order: Argument) -> Tensor:
    """Keys by a kernel that counts the rows outside of the grid."""
    n = len(coords)
    keys, task = coords.new_empty(n, dtype=torch.int64), ((coords, torch.int32, 4 * n), n, *order)
    if on_cuda(coords):
        outside = coords.new_zeros(1, dtype=torch.int64)
        launch(name, coords.device, *task, (keys, torch.int64, n), (outside, torch.int64, 1))
        raise_outside(int(outside), grid)
    else:
        count = ctypes.c_int64()
        launch(name, coords.device, *task, (keys, torch.int64, n), count)
        raise_outside(count.value, grid)
    return keys


def _interleave(high: Tensor, middle: Tensor, low: Tensor, depth: int) -> Tensor:
    key = torch.zeros_like(high)
    for bit in range(depth):
        for axis, values in enumerate((low, middle, high)):
            key = key | ((values >> bit) & 1) << (3 * bit + axis)
    return key


def curve_encode_reference(coords: Tensor, grid: Sequence[int], curve: int, depth: int) -> Tensor:
    """Keys along a space-filling curve, in PyTorch on any device; see `serialize`.

    Args:
        coords: int32 [N, 4] as (batch, z, y, x).
        grid: cells (Z, Y, X); coordinates outside are refused with ValueError.
        curve: a value of `CURVES`.
        depth: bits of each axis, see `curve_depth`.

    Returns:
        int64 [N], the frame in the high bits.
    """
    _check_inside(coords, grid)
    return coords[:, 0].long() << BATCH_SHIFT | curve_places(coords, curve, depth)


def curve_places(coords: Tensor, curve: int, depth: int) -> Tensor:
    """The part int64 [N] of the keys of the curves that tells the place in a frame.

    Arguments as in `curve_encode_reference`.
    """
    z, y, x = coords[:, 1:].long().unbind(1)
    if curve == CURVES["hilbert"]:
        x, y, z = hilbert_transpose(x, y, z, depth)
    return _interleave(z, y, x, depth) if curve == CURVES["zorder_x_lowest"] else _interleave(x, y, z, depth)


def curve_decode_reference(keys: Tensor, curve: int, depth: int) -> Tensor:
    """The inverse of `curve_encode_reference`.

    Args:
        keys: int64 [N].
        curve: a value of `CURVES`.
        depth: bits of each axis.

    Returns:
        int32 [N, 4] as (batch, z, y, x).
    """
    axes = [torch.zeros_like(keys) for _ in range(3)]
    for bit in range(depth):
        for axis in range(3):
            axes[axis] = axes[axis] | ((keys >> (3 * bit + axis)) & 1) << bit
    low, middle, high = axes
    if curve == CURVES["hilbert"]:
        x, y, z = hilbert_untranspose(high, middle, low, depth)
    else:
        x, y, z = (low, middle, high) if curve == CURVES["zorder_x_lowest"] else (high, middle, low)
    return torch.stack([keys >> BATCH_SHIFT, z, y, x], 1).int()


def window_keys_reference(
    coords: Tensor, grid: Sequence[int], window: Sequence[int], shift: Sequence[int], along_y: bool, snake: bool
) -> Tensor:
    """Keys of the window orders, in PyTorch on any device; see `serialize`.

    Args:
        coords: int32 [N, 4] as (batch, z, y, x).
        grid: cells (Z, Y, X); coordinates outside are refused with ValueError.
        window: cells of a window (Z, Y, X).
        shift: cells by which the windows are moved (Z, Y, X).
        along_y: True for the order "window_y", False for "window_x".
        snake: True for the path "snake", False for "rows".

    Returns:
        int64 [N], the frame in the high bits.
    """
    _check_inside(coords, grid)
    return coords[:, 0].long() << BATCH_SHIFT | window_places(coords, grid, window, shift, along_y, snake)


def window_places(
    coords: Tensor, grid: Sequence[int], window: Sequence[int], shift: Sequence[int], along_y: bool, snake: bool
) -> Tensor:
    """The part int64 [N] of the keys of the window orders that tells the place in a frame.

    Arguments as in `window_keys_reference`.
    """
    cells = coords[:, 1:].long().unbind(1)
    shifted = [c + s for c, s in zip(cells, shift, strict=True)]
    w = [c // size for c, size in zip(shifted, window, strict=True)]
    r = [c % size for c, size in zip(shifted, window, strict=True)]
    count = [math.ceil(g / size) + 1 for g, size in zip(grid, window, strict=True)]
    if snake:
        line, along = (2, 1) if along_y else (1, 2)
        turn, flip = 1 - 2 * (w[line] % 2), 1 - 2 * (r[along] % 2)
        cell = 2 * window[line] * r[along] + flip * r[line]
        key = (2 * count[along] * w[line] + turn * w[along]) * (4 * window[1] * window[2]) + turn * cell
        key = key * window[0] + r[0]
    else:
        major, minor = (1, 2) if along_y else (2, 1)
        place = (w[major] * count[minor] + w[minor]) * count[0] + w[0]
        cell = (r[major] * window[minor] + r[minor]) * window[0] + r[0]
        key = place * math.prod(window) + cell
    return key
