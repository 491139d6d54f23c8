"""Selective scan: the recurrence of Mamba (Gu & Dao, 2023, equation 2 with input-dependent Δ, B and C)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import (
    TYPE_CODES,
    Argument,
    Int32,
    NativeArray,
    has_kernels,
    int64_array,
    kernel_kind,
    launch,
    on_cuda,
)
from pcdet_ext.ops._reference import reference_gradients

CHUNK = 32  # kScanChunk of ops/selective_scan: steps between the states that the forward pass leaves
CUDA_STATES = (8, 16)  # sizes of the state that the CUDA kernel is compiled for; others are made of these
_LANES = 16  # channels that the CPU kernel runs side by side
_PORTION = {"cpu": 64, "cuda": 32}  # channels whose gradients of B and C a kernel adds up
MaybeTensor = Tensor | None
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, MaybeTensor, MaybeTensor, MaybeTensor]  # u … delta_bias


@typed
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
) -> Tensor:
    """The selective scan of Mamba (Gu and Dao, 2023): h ← exp(Δ A) h + Δ u B, y = (C·h + D u) · SiLU(z), along time.

    The state h starts at zero. Tensors may have any strides, so that transposed views of [batch, L, dim] cost no copy;
    the result has the strides of u. Of float16 and bfloat16 (of any of u, delta, B, C, z) the widest type is read; the
    state and A, D, delta_bias are then float32. Differentiable in all tensors; the backward pass makes the states again
    from one in 32. Sums run in a fixed order, so results repeat. On the CPU, float32 exponentials are exact to about
    3e-7.

    Args:
        u: [batch, dim, L], float32, float64, float16 or bfloat16.
        delta: [batch, dim, L], Δ, or what it is made from.
        A: [dim, state].
        B: [batch, state, L].
        C: [batch, state, L].
        D: [dim], or None for 0.
        z: [batch, dim, L], or None for a result without this gate.
        delta_bias: [dim], added to delta, or None.
        delta_softplus: Δ = softplus(delta + delta_bias) instead of delta + delta_bias.
        reverse: from the last step to the first; nothing is flipped in memory.

    Returns:
        [batch, dim, L], of the type of u.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    kind = u.dtype
    for tensor in (delta, B, C, z):
        kind = kind if tensor is None else torch.promote_types(kind, tensor.dtype)
    wide = torch.promote_types(kind, torch.float32)
    series = kind if on_cuda(u) else wide
    u_, delta, B, C = (t.to(series) for t in (u, delta, B, C))
    z = None if z is None else z.to(series)
    D, delta_bias = (None if t is None else t.to(wide).contiguous() for t in (D, delta_bias))
    A = A.to(wide).contiguous()
    inputs = (u_, delta, A, B, C, D, z, delta_bias)
    in_parts = on_cuda(u) and has_kernels(u) and kind in TYPE_CODES and A.shape[1] not in (0, *CUDA_STATES)
    scan = _scan_parts if in_parts else _scan_all
    return scan(inputs, delta_softplus, reverse).to(u.dtype)


def _scan_all(inputs: Inputs, delta_softplus: bool, reverse: bool) -> Tensor:
    """u, delta, A, B, C, D, z and delta_bias in the types of the operator."""
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    return _scan(*inputs, delta_softplus, reverse, keep)[0]


def _scan_parts(inputs: Inputs, delta_softplus: bool, reverse: bool) -> Tensor:
    """The same with a state of any size, from several scans with states that the kernel for CUDA is compiled for.

    Numbers of the state do not read each other, and what they give to the output adds up, in float32. What is missing
    to a whole part is filled up with zeros, which stay zeros.
    """
    u, delta, A, B, C, D, z, bias = inputs
    state = A.shape[1]
    width = min(size for size in CUDA_STATES if size >= min(state, CUDA_STATES[-1]))
    missing = -state % width
    if state > width:
        u, delta, B, C = (t.float() for t in (u, delta, B, C))
    A, B, C = F.pad(A, (0, missing)), *(F.pad(t, (0, 0, 0, missing)) for t in (B, C))
    if state <= width:
        return _scan_all((u, delta, A, B, C, D, z, bias), delta_softplus, reverse)
    parts = zip(A.split(width, 1), B.split(width, 1), C.split(width, 1), strict=True)
    # The first part takes the skip, and all together the gate.
    shares = [
        _scan_all((u, delta, a.contiguous(), b, c, None if i else D, None, bias), delta_softplus, reverse)
        for i, (a, b, c) in enumerate(parts)
    ]
    y = torch.stack(shares).sum(0)
    return y if z is None else y * F.silu(z.float())


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
) -> Tensor:
    """The definition in PyTorch on any device, step by step. Arguments as in `selective_scan`."""
    wide = torch.promote_types(u.dtype, torch.float32)
    kind, length = u.dtype, u.shape[2]
    u, delta, B, C = (t.to(wide) for t in (u, delta, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    state, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), list(u.unbind(2))
    for t in reversed(range(length)) if reverse else range(length):
        step = delta[:, :, t, None]
        state = torch.exp(step * A) * state + step * u[:, :, t, None] * B[:, None, :, t]
        outputs[t] = (state * C[:, None, :, t]).sum(-1)
    y = torch.stack(outputs, -1) if outputs else u
    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(kind)


@torch.library.custom_op("pcdet_ext::selective_scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: MaybeTensor,
    z: MaybeTensor,
    delta_bias: MaybeTensor,
    delta_softplus: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The result, and with `keep` the states that the backward pass starts from."""
    y = torch.empty_like(u)
    if not _has_kernel(u, A):
        y.copy_(selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse))
        return y, _checkpoints(u, A, keep)
    states = _checkpoints(u, A, keep or on_cuda(u))  # on CUDA the chunks meet there
    between = [states, _elapsed(states)] if on_cuda(u) else [states if keep else None]
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    results = [(y, u.dtype, u.shape)]
    _launch("forward", inputs, results, delta_softplus, reverse, [*results, *_by_chunk(u, A, *between)])
    return y, states if keep else _checkpoints(u, A, False)


@_scan.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: MaybeTensor,
    z: MaybeTensor,
    delta_bias: MaybeTensor,
    delta_softplus: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), _checkpoints(u, A, keep)


@torch.library.custom_op("pcdet_ext::selective_scan_backward", mutates_args=())
def _backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: MaybeTensor,
    z: MaybeTensor,
    delta_bias: MaybeTensor,
    delta_softplus: bool,
    reverse: bool,
    dy: Tensor,
    states: Tensor,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias; empty where there is no such argument."""
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dz = u.new_empty(0, 0, 0) if z is None else torch.empty_like(z)
    batch, dim, length = u.shape
    parts, slices = -(-dim // _PORTION[kernel_kind(u.device)]), batch * (states.shape[1] if on_cuda(u) else 1)
    shares = [A.new_empty(parts * batch, length, A.shape[1]) for _ in range(2)]  # of the gradients of B and C
    dA, dD, dbias = A.new_empty(slices, *A.shape), A.new_empty(slices, dim), A.new_empty(slices, dim)
    above, wide = (dy, u.dtype, u.shape), A.dtype
    outputs: list[NativeArray] = [(t, u.dtype, u.shape) for t in (du, ddelta)]
    outputs += [(dz, u.dtype, (0, 0, 0) if z is None else u.shape)]
    outputs += [(t.mT, wide, (parts * batch, A.shape[1], length)) for t in shares]
    sums = (dA, wide, slices * dim * A.shape[1]), *((t, wide, slices * dim) for t in (dD, dbias))
    between = _by_chunk(u, A, torch.empty_like(states), _elapsed(states)) if on_cuda(u) else []
    last = [above, *_by_chunk(u, A, states), *outputs, *sums, *between]
    _launch("backward", inputs, [above, *outputs], delta_softplus, reverse, last)
    dB, dC = (t.unflatten(0, (parts, batch)).sum(0).to(u.dtype).mT for t in shares)
    dD = dD.sum(0) if D is not None else A.new_empty(0)
    dbias = dbias.sum(0) if delta_bias is not None else A.new_empty(0)
    return [du, ddelta, dA.sum(0), dB, dC, dD, dz if z is not None else u.new_empty(0), dbias]


@_backward.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: MaybeTensor,
    z: MaybeTensor,
    delta_bias: MaybeTensor,
    delta_softplus: bool,
    reverse: bool,
    dy: Tensor,
    states: Tensor,
) -> list[Tensor]:
    dB, dC = (B.new_empty(B.shape[0], B.shape[2], B.shape[1]).mT for _ in range(2))
    rest = [t.new_empty(0) if x is None else torch.empty_like(x) for x, t in ((D, A), (z, u), (delta_bias, A))]
    return [torch.empty_like(u), torch.empty_like(delta), torch.empty_like(A), dB, dC, *rest]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus, ctx.reverse, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, states = ctx.saved_tensors
    flags = {"delta_softplus": ctx.delta_softplus, "reverse": ctx.reverse}
    if _has_kernel(inputs[0], inputs[2]):
        grads = _backward(*inputs, *flags.values(), dy, states)
    else:
        grads = reference_gradients(partial(selective_scan_reference, **flags), inputs, dy)
    return (*(g if t is not None else None for t, g in zip(inputs, grads, strict=True)), None, None, None)


_scan.register_autograd(_differentiate, setup_context=_setup)


def _has_kernel(u: Tensor, A: Tensor) -> bool:
    """Whether a native kernel covers these sequences."""
    if on_cuda(u):
        covered = u.dtype in TYPE_CODES and A.shape[1] in CUDA_STATES
    else:
        covered = u.dtype in (torch.float32, torch.float64)
    return covered and has_kernels(u)


def _checkpoints(u: Tensor, A: Tensor, keep: bool) -> Tensor:
    """Room for the states at the start of every chunk, in the layout of the device's kernel."""
    if not keep or not _has_kernel(u, A):
        return A.new_empty(0)
    return A.new_empty(_chunk_shape(u, A))


def _chunk_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    batch, dim, length = u.shape
    chunks = -(-length // CHUNK)
    if on_cuda(u):
        return batch, chunks, dim, A.shape[1]
    return batch, -(-dim // _LANES), chunks, A.shape[1], _LANES


def _by_chunk(u: Tensor, A: Tensor, states: Tensor | None, elapsed: Tensor | None = None) -> list[NativeArray]:
    """The states at the start of every chunk and, on CUDA, the sum of its steps."""
    shape = _chunk_shape(u, A)
    buffers: list[NativeArray] = [(states, A.dtype, math.prod(shape))]
    return buffers if elapsed is None else [*buffers, (elapsed, A.dtype, math.prod(shape[:3]))]


def _elapsed(states: Tensor) -> Tensor:
    """Room for the sum of the steps of every chunk, which CUDA kernels use between them."""
    return states.new_empty(states.shape[:3])


def _launch(
    direction: str,
    inputs: Inputs,
    series: Sequence[NativeArray],
    delta_softplus: bool,
    reverse: bool,
    last: Sequence[Argument],
) -> None:
    """Call the kernel; inputs as of the operator; series: those of the `last` arguments whose strides it takes."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    (batch, dim, length), state, wide = u.shape, A.shape[1], A.dtype
    name, shares = f"selective_scan_{direction}", (batch, state, length)
    rows = [(t, u.dtype, u.shape) for t in (u, delta, z)]
    mixed = [(t, u.dtype, shares) for t in (B, C)]
    strided = (u, delta, z, B, C, *(tensor for tensor, *_ in series))
    strides = int64_array([s for t in strided for s in ((0, 0, 0) if t is None else t.stride())])
    task: list[Argument] = [*rows, (A, wide, dim * state), *mixed]
    task += [(D, wide, dim), (delta_bias, wide, dim), strides]
    task += [batch, dim, state, length, Int32(delta_softplus), Int32(reverse), *last]
    if on_cuda(u):
        launch(name, u.device, *task, Int32(TYPE_CODES[u.dtype]))
    else:
        launch(name, u.device, *task, dtype=u.dtype)


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: MaybeTensor, z: MaybeTensor, delta_bias: MaybeTensor
) -> None:
    if u.ndim != 3:
        raise ValueError(f"u must be [batch, dim, L], got {list(u.shape)}")
    if A.ndim != 2:
        raise ValueError(f"A must be [dim, state], got {list(A.shape)}")
    batch, dim, length = u.shape
    state = A.shape[1]
    for name, tensor, shape in (
        ("delta", delta, (batch, dim, length)),
        ("A", A, (dim, state)),
        ("B", B, (batch, state, length)),
        ("C", C, (batch, state, length)),
        ("D", D, (dim,)),
        ("z", z, (batch, dim, length)),
        ("delta_bias", delta_bias, (dim,)),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)} beside u {list(u.shape)}, got {list(tensor.shape)}")
        if tensor.device != u.device:
            raise ValueError(f"{name} must be on {u.device} as u is, got {tensor.device}")
    for name, tensor in (("u", u), ("delta", delta), ("A", A), ("B", B), ("C", C), ("z", z)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
