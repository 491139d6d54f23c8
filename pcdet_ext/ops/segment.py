"""Reduction of rows by segment: sum, mean, maximum, minimum."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pcdet_ext.ops import _native
from pcdet_ext.ops._native import I32, I64, POINTER

KINDS = {"sum": 0, "mean": 1, "max": 2, "min": 3}


def segment_reduce(
    values: Tensor, index: Tensor, num_segments: int, reduce: Literal["sum", "mean", "max", "min"] = "sum"
) -> Tensor:
    """Rows [S, C] that reduce the rows of `values` [P, C] which share a number in `index` int64 [P].

    Rows with a negative index are left out; a segment without rows is 0. Sums run in the order of the rows, a tie of
    maxima goes to the lowest row (its gradient too), so results repeat. float32 or float64; float16 and bfloat16 are
    accumulated in float32. Differentiable. Raises ValueError naming the argument that is wrong.
    """
    if values.ndim != 2 or not values.is_floating_point():
        raise ValueError(f"values must be floating point [P, C], got {values.dtype} {list(values.shape)}")
    if index.dtype != torch.int64 or index.shape != values.shape[:1] or index.device != values.device:
        shape = list(index.shape)
        raise ValueError(f"index must be int64 [{len(values)}] on {values.device}, got {index.dtype} {shape}")
    if reduce not in KINDS:
        raise ValueError(f"reduce must be one of {', '.join(KINDS)}, got {reduce!r}")
    if num_segments < 0:
        raise ValueError(f"num_segments must not be negative, got {num_segments}")
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return _segment_reduce(wide.contiguous(), index.contiguous(), num_segments, KINDS[reduce])[0].to(values.dtype)


@torch.library.custom_op("pcdet_ext::segment_reduce", mutates_args=())
def _segment_reduce(values: Tensor, index: Tensor, num_segments: int, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    if len(index) and int(index.max()) >= num_segments:
        raise ValueError(f"index must be below num_segments {num_segments}, got {int(index.max())}")
    types = (POINTER, POINTER, I64, I64, I64, I32, POINTER, POINTER, POINTER, I32)
    name = f"pcdet_segment_reduce_{str(values.dtype)[6:]}_cpu"
    kernel = _native.function("cpu", name, *types) if values.device.type == "cpu" else None
    if kernel is None:
        return segment_reduce_reference(values, index, num_segments, kind)
    n, c = values.shape
    out = torch.empty(num_segments, c, dtype=values.dtype)
    chosen = torch.empty(num_segments if kind >= 2 else 0, c, dtype=torch.int64)
    count = torch.empty(num_segments, dtype=torch.int64)
    p = _native.pointer
    kernel(p(values), p(index), n, c, num_segments, kind, p(out), p(chosen), p(count), _native.threads())
    return out, chosen, count


@_segment_reduce.register_fake
def _(values: Tensor, index: Tensor, num_segments: int, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    out = values.new_empty(num_segments, values.shape[1])
    chosen = index.new_empty(num_segments if kind >= 2 else 0, values.shape[1])
    return out, chosen, index.new_empty(num_segments)


def _setup(ctx: object, inputs: tuple, output: tuple) -> None:
    values, index, _, kind = inputs
    ctx.kind, ctx.rows = kind, len(values)
    ctx.save_for_backward(index, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: object, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    index, chosen, count = ctx.saved_tensors
    if ctx.kind >= 2:
        taken = chosen >= 0  # each row and column is chosen once at most
        back = grad.new_zeros(ctx.rows + 1, grad.shape[1])
        back = back.scatter(0, torch.where(taken, chosen, ctx.rows), grad)[: ctx.rows]
        return back, None, None, None
    if ctx.kind == KINDS["mean"]:
        grad = grad / count.clamp(min=1)[:, None]
    padded = torch.cat([grad, grad.new_zeros(1, grad.shape[1])])  # -1 reads the row of zeros
    return padded[index.clamp(min=-1)], None, None, None


_segment_reduce.register_autograd(_differentiate, setup_context=_setup)


def segment_reduce_reference(
    values: Tensor, index: Tensor, num_segments: int, kind: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition in PyTorch on any device; see `segment_reduce`.

    Returns the result, the row that each maximum or minimum came from (-1: none) [S, C], and the rows a segment [S].
    """
    kept = index >= 0
    values, index = values[kept], index[kept]
    count = torch.bincount(index, minlength=num_segments)
    columns = values.shape[1]
    if kind < 2:
        order = torch.argsort(index, stable=True)
        out = values.new_zeros(num_segments, columns).index_add(0, index[order], values[order])
        return out / (count.clamp(min=1)[:, None] if kind else 1), index.new_empty(0, columns), count
    spread = index[:, None].expand(-1, columns)
    name = "amax" if kind == KINDS["max"] else "amin"
    out = values.new_zeros(num_segments, columns).scatter_reduce(0, spread, values, name, include_self=False)
    rows = torch.nonzero(kept).expand(-1, columns)
    best = out.gather(0, spread)
    wins = (values == best) | (values.isnan() & best.isnan())
    last = torch.iinfo(torch.int64).max
    chosen = torch.full((num_segments, columns), last, device=values.device, dtype=torch.int64)
    chosen = chosen.scatter_reduce(0, spread, torch.where(wins, rows, last), "amin")
    return out, torch.where(chosen == last, -1, chosen), count
