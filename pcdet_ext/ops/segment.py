"""Reduction of rows by segment (sum, mean, maximum, minimum), and softmax inside segments."""

from __future__ import annotations

import ctypes
from typing import Any, Literal

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import Int32, NativeArray, has_kernels, kernel_kind, launch, on_cuda
from pcdet_ext.ops._operator import differentiable_operator, run

Reduction = Literal["sum", "mean", "max", "min"]
KINDS: dict[Reduction, int] = {"sum": 0, "mean": 1, "max": 2, "min": 3}
_NATIVE, _WIDENED = (torch.float32, torch.float64), (torch.float16, torch.bfloat16)


@typed
def segment_reduce(values: Tensor, index: Tensor, num_segments: int, reduce: Reduction = "sum") -> Tensor:
    """Sum, mean, maximum or minimum of the rows that belong to one segment. Differentiable in the values.

    Sums run in the order of the rows, and of equal maxima the lowest row counts (and gets the gradient), so that
    results repeat.

    Args:
        values: [P, C], float32 or float64; float16 and bfloat16 are accumulated in float32.
        index: int64 [P], the segment of each row; rows with a negative index are left out.
        num_segments: the number of segments S.
        reduce: "sum", "mean", "max" or "min".

    Returns:
        [S, C], of the type of the values. A segment without rows is 0.

    Raises:
        ValueError: an argument has the wrong shape, type or device, or an index is not below `num_segments`.
    """
    if reduce not in KINDS:
        raise ValueError(f"reduce must be one of {', '.join(KINDS)}, got {reduce!r}")
    _check_segments(values, index, num_segments)
    if values.dtype in _WIDENED:
        return segment_reduce(values.float(), index, num_segments, reduce).to(values.dtype)
    return run(_segment_reduce, values.contiguous(), index.contiguous(), num_segments, KINDS[reduce])[0]


@typed
def segment_argmax(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """The row from which `segment_reduce` takes each maximum; of equal rows the lowest.

    Args:
        values: [P, C], see `segment_reduce`.
        index: int64 [P], the segment of each row; rows with a negative index are left out.
        num_segments: the number of segments S.

    Returns:
        int64 [S, C], -1 for a segment without rows.

    Raises:
        ValueError: as `segment_reduce`.
    """
    _check_segments(values, index, num_segments)
    values = values.detach()
    wide = values.float() if values.dtype in _WIDENED else values
    return run(_segment_reduce, wide.contiguous(), index.contiguous(), num_segments, KINDS["max"])[1].long()


def _check_segments(values: Tensor, index: Tensor, num_segments: int) -> None:
    if values.ndim != 2 or values.dtype not in (*_NATIVE, *_WIDENED):
        raise ValueError(f"values must be floating point [P, C], got {values.dtype} {list(values.shape)}")
    if index.dtype != torch.int64 or index.shape != values.shape[:1] or index.device != values.device:
        shape = list(index.shape)
        raise ValueError(f"index must be int64 [{len(values)}] on {values.device}, got {index.dtype} {shape}")
    if num_segments < 0:
        raise ValueError(f"num_segments must not be negative, got {num_segments}")
    if len(values) >= 1 << 31:
        raise ValueError(f"values must have fewer than 2³¹ rows, got {len(values)}")


@typed
def segment_softmax(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Softmax inside segments: exp(v) / Σ exp over the rows that belong to one segment, for each column.

    Differentiable; it stands on `segment_reduce`.

    Args:
        values: [P, C], float32 or float64; float16 and bfloat16 are computed in float32.
        index: int64 [P], the segment of each row; rows with a negative index are 0.
        num_segments: the number of segments S.

    Returns:
        [P, C], of the type of the values. Rows of a segment whose values are all -inf are 0.

    Raises:
        ValueError: as `segment_reduce`.
    """
    wide = values.float() if values.dtype in _WIDENED else values
    highest = segment_reduce(wide.detach(), index, num_segments, "max")
    padded = torch.cat([highest, highest.new_zeros(1, values.shape[1])])  # what rows outside read
    shift = torch.where(padded.isinf(), 0.0, padded)[index.clamp(min=-1)]
    raised = torch.where((index < 0)[:, None], -torch.inf, wide - shift).exp()
    total = segment_reduce(raised, index, num_segments, "sum")
    below = torch.cat([total, total.new_ones(1, values.shape[1])])[index.clamp(min=-1)]
    return (raised / torch.where(below == 0, 1.0, below)).to(values.dtype)


@differentiable_operator("segment_reduce")
def _segment_reduce(values: Tensor, index: Tensor, num_segments: int, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    n, c = values.shape
    if kernel_kind(values.device) == "cpu" and has_kernels(values):
        out, chosen, count = _outputs(values, num_segments, kind)
        highest = ctypes.c_int64()
        given = (values, values.dtype, n * c), (index, torch.int64, n), n, c, num_segments, Int32(kind)
        results = *_buffers(out, chosen, num_segments, c, kind), (count, torch.int64, num_segments), highest
        launch("segment_reduce", values.device, *given, *results, dtype=values.dtype)
        _check_highest(highest.value, num_segments)
        return out, chosen, count
    _check_highest(int(index.max()) if n else -1, num_segments)
    if on_cuda(values) and has_kernels(values):
        out, chosen, _ = _outputs(values, num_segments, kind)
        narrow = index.clamp(min=-1).int() if num_segments < 1 << 31 else index  # half the passes to sort
        ordered, rows = torch.sort(narrow, stable=True)
        offsets = torch.searchsorted(ordered, torch.arange(num_segments + 1, device=index.device, dtype=narrow.dtype))
        table = (values, values.dtype, n * c), (rows, torch.int64, n)
        sizes = (offsets, torch.int64, num_segments + 1), num_segments, c, Int32(kind)
        to = _buffers(out, chosen, num_segments, c, kind)
        launch("segment_reduce", values.device, *table, *sizes, *to, dtype=values.dtype)
        return out, chosen, offsets.diff()
    return segment_reduce_reference(values, index, num_segments, kind)


@_segment_reduce.register_fake
def _(values: Tensor, index: Tensor, num_segments: int, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(values, num_segments, kind)


@differentiable_operator("segment_spread")
def _segment_spread(grad: Tensor, index: Tensor, chosen: Tensor, count: Tensor, kind: int) -> Tensor:
    """Gradients of rows [P, C] from those of segments [S, C]; the other arguments are those of the reduction."""
    if not has_kernels(grad):
        return segment_spread_reference(grad, index, chosen, count, kind)
    n, (segments, c), dtype, i64 = len(index), grad.shape, grad.dtype, torch.int64
    out, grad = grad.new_empty(n, c), grad.contiguous()
    rows = segments if kind >= KINDS["max"] else 0
    reduced = (chosen, torch.int32, rows * c), (count, i64, segments)
    task = (grad, dtype, segments * c), (index, i64, n), *reduced, n, c, Int32(kind)
    launch("segment_spread", grad.device, *task, (out, dtype, n * c), dtype=dtype)
    return out


@_segment_spread.register_fake
def _(grad: Tensor, index: Tensor, chosen: Tensor, count: Tensor, kind: int) -> Tensor:
    return grad.new_empty(len(index), grad.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _, index, _, ctx.kind = inputs
    ctx.save_for_backward(index, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return _segment_spread(grad, *ctx.saved_tensors, ctx.kind), None, None, None


def _setup_spread(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, chosen, count, ctx.kind = inputs
    ctx.save_for_backward(index, chosen, count)


def _differentiate_spread(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Spreading is linear: its transpose is the reduction again, of the chosen rows where rows were chosen."""
    index, chosen, count = ctx.saved_tensors
    if ctx.kind < KINDS["max"]:
        back = _segment_reduce(grad.contiguous(), index, len(count), ctx.kind)[0]
    else:
        padded = torch.cat([grad, grad.new_zeros(1, grad.shape[1])])
        back = padded.gather(0, torch.where(chosen < 0, len(grad), chosen).long())
    return back, None, None, None, None


_segment_reduce.register_autograd(_differentiate, setup_context=_setup)
_segment_spread.register_autograd(_differentiate_spread, setup_context=_setup_spread)


def _outputs(values: Tensor, num_segments: int, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the result, the row that each maximum or minimum comes from, and the rows a segment."""
    columns = values.shape[1]
    chosen = values.new_empty(num_segments if kind >= KINDS["max"] else 0, columns, dtype=torch.int32)
    return values.new_empty(num_segments, columns), chosen, values.new_empty(num_segments, dtype=torch.int64)


def _buffers(out: Tensor, chosen: Tensor, segments: int, columns: int, kind: int) -> tuple[NativeArray, NativeArray]:
    rows = segments if kind >= KINDS["max"] else 0
    return (out, out.dtype, segments * columns), (chosen, torch.int32, rows * columns)


def _check_highest(highest: int, num_segments: int) -> None:
    if highest >= num_segments:
        raise ValueError(f"index must be below num_segments {num_segments}, got {highest}")


def segment_reduce_reference(
    values: Tensor, index: Tensor, num_segments: int, kind: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `segment_reduce` in PyTorch on any device.

    Args:
        values: [N, C], floating point.
        index: int64 [N], segment of each row, below 0 for rows that do not count.
        num_segments: S.
        kind: a value of `KINDS`.

    Returns:
        The result [S, C]; the row that each maximum or minimum came from (-1: none), int32 [S, C]; the number of rows
        in each segment, int64 [S].
    """
    kept = index >= 0
    rows, values, index = torch.nonzero(kept), values[kept], index[kept]
    count = torch.bincount(index, minlength=num_segments)
    columns = values.shape[1]
    if kind < KINDS["max"]:
        out = values.new_zeros(num_segments, columns)
        if values.is_cuda:  # index_put sorts, where index_add would add in any order
            out.index_put_((index,), values, accumulate=True)
        else:
            out.index_add_(0, index, values)
        out = out / count.clamp(min=1)[:, None] if kind == KINDS["mean"] else out
        return out, index.new_empty(0, columns, dtype=torch.int32), count
    spread = index[:, None].expand(-1, columns)
    name = "amax" if kind == KINDS["max"] else "amin"
    out = values.new_zeros(num_segments, columns).scatter_reduce(0, spread, values, name, include_self=False)
    best = out.gather(0, spread)
    wins = (values == best) | (values.isnan() & best.isnan())
    last = torch.iinfo(torch.int32).max
    candidates = torch.where(wins, rows.int(), last)
    chosen = torch.full((num_segments, columns), last, device=values.device, dtype=torch.int32)
    chosen = chosen.scatter_reduce(0, spread, candidates, "amin")
    return out, torch.where(chosen == last, -1, chosen), count


def segment_spread_reference(grad: Tensor, index: Tensor, chosen: Tensor, count: Tensor, kind: int) -> Tensor:
    """The gradient of `segment_reduce_reference` in PyTorch on any device.

    Args:
        grad: gradient of the result, [S, C].
        index: int64 [N], segment of each row.
        chosen: int32 [S, C], the row that each maximum or minimum came from.
        count: int64 [S], rows in each segment.
        kind: a value of `KINDS`.

    Returns:
        [N, C], the gradient of the values.
    """
    if kind == KINDS["mean"]:
        grad = grad / count.clamp(min=1)[:, None]
    padded = torch.cat([grad, grad.new_zeros(1, grad.shape[1])])
    place = index.clamp(min=-1)  # -1 reads the row of zeros
    if kind < KINDS["max"]:
        return padded[place]
    here = torch.arange(len(index), device=index.device)[:, None]
    return torch.where(torch.cat([chosen, chosen.new_full((1, chosen.shape[1]), -1)])[place] == here, padded[place], 0)
