"""Scattered linear attention: linear attention inside segments of any length (ScatterFormer, He et al., ECCV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import TYPE_CODES, Argument, Int32, NativeArray, has_kernels, launch, on_cuda
from pcdet_ext.ops._reference import own_precision

CUDA_DIMS = (8, 16, 32, 64)  # head dimensions that the CUDA kernel is compiled for


@typed
def scattered_linear_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float = 1e-6) -> Tensor:
    """Linear attention inside segments: y_i = qᵢᵀ S / (qᵢ · s + eps), S = Σ k vᵀ and s = Σ k over the segment of row i.

    Differentiable in q, k and v; sums run in a fixed order, so results repeat.

    Args:
        q: [N, H, D], queries of the rows, which are sorted by segment; not negative (a feature map was applied).
            float32 or float64, on CUDA also float16 and bfloat16, which are accumulated in float32.
        k: keys, of the same shape and type, not negative.
        v: values, of the same shape and type.
        offsets: int64 [W + 1]; segment w is rows offsets[w] to offsets[w + 1], from 0 to N.
        eps: added to the denominator.

    Returns:
        [N, H, D].

    Raises:
        ValueError: naming the argument that is wrong.
    """
    if q.ndim != 3 or q.shape != k.shape or q.shape != v.shape:
        shapes = [list(t.shape) for t in (q, k, v)]
        raise ValueError(f"q, k and v must be [N, H, D] of one shape, got {shapes}")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (*TYPE_CODES, torch.float64):
        raise ValueError(f"q, k and v must be of one floating type, got {q.dtype}, {k.dtype}, {v.dtype}")
    if offsets.dtype != torch.int64 or offsets.ndim != 1 or len(offsets) < 1:
        raise ValueError(f"offsets must be int64 [W + 1], got {offsets.dtype} {list(offsets.shape)}")
    if len({t.device for t in (q, k, v, offsets)}) != 1:
        raise ValueError("q, k, v and offsets must be on one device")
    return _attend(q, k, v, offsets.contiguous(), eps)


def _are_parts(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether these rows [N, H, D] may be read where they lie: parts of longer rows, as one projection makes them."""
    step, side_by_side = q.stride(0), (q.shape[2], 1)
    alike = all(t.stride()[1:] == side_by_side and t.stride(0) == step for t in (q, k, v))
    return alike and step >= q.shape[1] * q.shape[2] and not on_cuda(q)


def scattered_linear_attention_reference(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float = 1e-6) -> Tensor:
    """The definition in PyTorch on any device. Arguments as in `scattered_linear_attention`."""
    _check_offsets(offsets, len(q))
    kind = q.dtype
    q, k, v = (_widened(t) for t in (q, k, v))
    owner = _owners(q, offsets)
    state, total = _sums(_outer(k, v), owner, offsets), _sums(k, owner, offsets)
    with own_precision(q):
        above = (q.unsqueeze(-2) @ state[owner]).squeeze(-2)
    below = (q * total[owner]).sum(-1, keepdim=True) + eps
    return (above / below).to(kind)


def scattered_linear_attention_backward_reference(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, written out: autograd does not reach inside of an operation.

    With n = qᵀ S and z = q · s + eps: dn = dy / z, dz = -(dy · n) / z²; dq = S dn + s dz; dk = dS v + ds, dv = dSᵀ k
    with dS = Σ q dnᵀ and ds = Σ q dz. Arguments as in `scattered_linear_attention`, and dy: the gradient of its result,
    of the shape of v.
    """
    kind = q.dtype
    q, k, v, dy = (_widened(t) for t in (q, k, v, dy))
    owner = _owners(q, offsets)
    state, total = _sums(_outer(k, v), owner, offsets)[owner], _sums(k, owner, offsets)[owner]
    below = (q * total).sum(-1, keepdim=True) + eps
    dn = dy / below
    dz = -(dn * (q.unsqueeze(-2) @ state).squeeze(-2)).sum(-1, keepdim=True) / below
    dstate, dtotal = _sums(_outer(q, dn), owner, offsets)[owner], _sums(q * dz, owner, offsets)[owner]
    dq = (state @ dn.unsqueeze(-1)).squeeze(-1) + total * dz
    dk = (dstate @ v.unsqueeze(-1)).squeeze(-1) + dtotal
    dv = (k.unsqueeze(-2) @ dstate).squeeze(-2)
    return dq.to(kind), dk.to(kind), dv.to(kind)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _owners(q: Tensor, offsets: Tensor) -> Tensor:
    """The segment of each row."""
    segments = torch.arange(len(offsets) - 1, device=q.device)
    return torch.repeat_interleave(segments, offsets.diff(), output_size=len(q))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a.unsqueeze(-1) * b.unsqueeze(-2)


def _sums(rows: Tensor, owner: Tensor, offsets: Tensor) -> Tensor:
    """Sums of rows by segment."""
    return rows.new_zeros(len(offsets) - 1, *rows.shape[1:]).index_add(0, owner, rows)


@torch.library.custom_op("pcdet_ext::linear_attention", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float) -> Tensor:
    if not _has_kernel(q):
        return scattered_linear_attention_reference(q, k, v, offsets, eps)
    _check_offsets(offsets, len(q))
    if not _are_parts(q, k, v):  # looked at here: a compiler may lay out anew what it hands to the operator
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    y = q.new_empty(q.shape)
    if on_cuda(q):
        _launch("forward", (q, k, v), offsets, eps, (), (y,))
        return y
    segments, (_, heads, dim) = len(offsets) - 1, q.shape
    rows: list[NativeArray] = [(t, q.dtype, tuple(q.shape)) for t in (q, k, v)]
    bounds = (offsets, torch.int64, segments + 1)
    sizes: list[Argument] = [segments, heads, dim, q.stride(0), float(eps)]
    launch("linear_attention_forward", q.device, *rows, bounds, *sizes, (y, q.dtype, y.numel()), dtype=q.dtype)
    return y


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op("pcdet_ext::linear_attention_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if not _has_kernel(q):
        with own_precision(q):
            return scattered_linear_attention_backward_reference(q, k, v, offsets, eps, dy)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    dq, dk, dv = (torch.empty_like(q) for _ in range(3))
    scratch = []
    if on_cuda(q):
        rows = q.shape[0] * q.shape[1]
        scratch = [(q.new_empty(rows, 2, dtype=torch.float32), torch.float32, 2 * rows)]
    _launch("backward", (q, k, v, dy.contiguous()), offsets, eps, scratch, (dq, dk, dv))
    return dq, dk, dv


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, offsets, eps = inputs
    ctx.save_for_backward(q, k, v, offsets)
    ctx.eps = eps


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(*ctx.saved_tensors, ctx.eps, dy), None, None)


_attend.register_autograd(_differentiate, setup_context=_setup)


def _has_kernel(q: Tensor) -> bool:
    """Whether a native kernel covers these rows."""
    if on_cuda(q):
        covered = q.dtype in TYPE_CODES and q.shape[2] in CUDA_DIMS
    else:
        covered = q.dtype in (torch.float32, torch.float64) and q.shape[2] <= 256
    return covered and has_kernels(q)


def _launch(
    direction: str,
    inputs: Sequence[Tensor],
    offsets: Tensor,
    eps: float,
    scratch: Sequence[NativeArray],
    outputs: Sequence[Tensor],
) -> None:
    """Call the kernel; inputs and outputs are rows [N, H, D] of one type."""
    q, segments = inputs[0], len(offsets) - 1
    name, (n, heads, dim) = f"linear_attention_{direction}", q.shape
    rows, results = ([(t, q.dtype, n * heads * dim) for t in tensors] for tensors in (inputs, outputs))
    task: list[Argument] = [*rows, (offsets, torch.int64, segments + 1), segments, heads, dim, float(eps)]
    if on_cuda(q):
        launch(name, q.device, *task, Int32(TYPE_CODES[q.dtype]), *scratch, *results)
    else:
        launch(name, q.device, *task, *results, dtype=q.dtype)


def _check_offsets(offsets: Tensor, rows: int) -> None:
    ends = offsets[[0, -1]].tolist()
    if ends != [0, rows] or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets must ascend from 0 to the number of rows {rows}, got {ends[0]} to {ends[1]}")
