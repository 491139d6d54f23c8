"""Scattered linear attention: linear attention inside segments of any length (ScatterFormer, He et al., ECCV 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_ext.ops import _native
from pcdet_ext.ops._native import F64, I32, I64, POINTER

CUDA_DIMS = (8, 16, 32, 64)  # head dimensions that the CUDA kernel is compiled for
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def scattered_linear_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float = 1e-6) -> Tensor:
    """y_i = qᵢᵀ S / (qᵢ · s + eps) with S = Σ k vᵀ and s = Σ k over the rows of i's segment [N, H, D].

    q, k, v: [N, H, D], rows sorted by segment, non-negative q and k (a kernel feature map was applied); float32 or
    float64, on CUDA also float16 and bfloat16 with float32 accumulation. offsets: int64 [W + 1], segment w is rows
    offsets[w] to offsets[w + 1], from 0 to N. Differentiable in q, k, v; sums run in a fixed order, so results repeat.
    Raises ValueError naming the argument that is wrong.
    """
    if q.ndim != 3 or q.shape != k.shape or q.shape != v.shape:
        shapes = [list(t.shape) for t in (q, k, v)]
        raise ValueError(f"q, k and v must be [N, H, D] of one shape, got {shapes}")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (*_TYPES, torch.float64):
        raise ValueError(f"q, k and v must be of one floating type, got {q.dtype}, {k.dtype}, {v.dtype}")
    if offsets.dtype != torch.int64 or offsets.ndim != 1 or len(offsets) < 1:
        raise ValueError(f"offsets must be int64 [W + 1], got {offsets.dtype} {list(offsets.shape)}")
    if len({t.device for t in (q, k, v, offsets)}) != 1:
        raise ValueError("q, k, v and offsets must be on one device")
    return _attend(q.contiguous(), k.contiguous(), v.contiguous(), offsets.contiguous(), eps)


def scattered_linear_attention_reference(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float = 1e-6) -> Tensor:
    """The definition in PyTorch on any device; see `scattered_linear_attention`."""
    _check_offsets(offsets, len(q))
    kind = q.dtype
    q, k, v = (_widened(t) for t in (q, k, v))
    owner = _owners(q, offsets)
    state, total = _sums(_outer(k, v), owner, offsets), _sums(k, owner, offsets)
    above = (q.unsqueeze(-2) @ state[owner]).squeeze(-2)
    below = (q * total[owner]).sum(-1, keepdim=True) + eps
    return (above / below).to(kind)


def scattered_linear_attention_backward_reference(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v for that of the output, written out: autograd does not reach inside of an operation.

    With n = qᵀ S and z = q · s + eps: dn = dy / z, dz = -(dy · n) / z²; dq = S dn + s dz; dk = dS v + ds, dv = dSᵀ k
    with dS = Σ q dnᵀ and ds = Σ q dz.
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
    y, p = torch.empty_like(q), _native.pointer
    _launch("forward", q, (p(q), p(k), p(v)), offsets, eps, (), (p(y),))
    return y


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float) -> Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("pcdet_ext::linear_attention_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if not _has_kernel(q):
        return scattered_linear_attention_backward_reference(q, k, v, offsets, eps, dy)
    dq, dk, dv = (torch.empty_like(q) for _ in range(3))
    p, dy = _native.pointer, dy.contiguous()
    scratch = ()
    if q.is_cuda:
        scales = torch.empty(*q.shape[:2], 2, device=q.device)
        scratch = (p(scales),)
    _launch("backward", q, (p(q), p(k), p(v), p(dy)), offsets, eps, scratch, (p(dq), p(dk), p(dv)))
    return dq, dk, dv


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup(ctx: object, inputs: tuple, output: Tensor) -> None:
    q, k, v, offsets, eps = inputs
    ctx.save_for_backward(q, k, v, offsets)
    ctx.eps = eps


def _differentiate(ctx: object, dy: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(*ctx.saved_tensors, ctx.eps, dy), None, None)


_attend.register_autograd(_differentiate, setup_context=_setup)


def _has_kernel(q: Tensor) -> bool:
    """Whether a native kernel covers these rows."""
    device = q.device.type
    if device == "cpu":
        return q.dtype in (torch.float32, torch.float64) and q.shape[2] <= 256 and _native.library("cpu") is not None
    if device != "cuda" or q.dtype not in _TYPES or q.shape[2] not in CUDA_DIMS:
        return False
    return _native.library("cuda") is not None


def _launch(
    direction: str, q: Tensor, rows: tuple, offsets: Tensor, eps: float, scratch: tuple, outputs: tuple
) -> None:
    device = q.device.type
    pointers = [POINTER] * len(rows)
    segments, (_, heads, dim) = len(offsets) - 1, q.shape
    sizes = (_native.pointer(offsets), segments, heads, dim, eps)
    size_types = (POINTER, I64, I64, I64, F64)
    out_types = [POINTER] * (len(scratch) + len(outputs))
    name = f"pcdet_linear_attention_{direction}"
    if device == "cpu":
        kernel = _native.function("cpu", f"{name}_{str(q.dtype)[6:]}_cpu", *pointers, *size_types, *out_types, I32)
        kernel(*rows, *sizes, *outputs, _native.threads())
    else:
        kernel = _native.function("cuda", f"{name}_cuda", *pointers, *size_types, I32, *out_types, POINTER)
        kernel(*rows, *sizes, _TYPES[q.dtype], *scratch, *outputs, _native.stream(q))


def _check_offsets(offsets: Tensor, rows: int) -> None:
    ends = offsets[[0, -1]].tolist()
    if ends != [0, rows] or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets must ascend from 0 to the number of rows {rows}, got {ends[0]} to {ends[1]}")
