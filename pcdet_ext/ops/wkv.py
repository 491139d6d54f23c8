"""The recurrence of RWKV-6 (Peng et al., "Eagle and Finch", 2024, section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import TYPE_CODES, Argument, Int32, NativeArray, has_kernels, launch, on_cuda
from pcdet_ext.ops._reference import reference_gradients

CHUNK = 32  # kWkvChunk of ops/wkv: steps between the states that the forward pass leaves
CUDA_DIMS = (16, 32)  # widths of a head that the CUDA kernel is compiled for; others are made of these
MaybeTensor = Tensor | None


@typed
def wkv(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor | None = None, reverse: bool = False) -> Tensor:
    """The recurrence of RWKV-6 (Peng et al., 2024) along time.

    y_t = r_tᵀ (S + diag(u) k_t v_tᵀ), then S ← diag(e_t) S + k_t v_tᵀ with e_t = exp(−exp(w_t)). The state S [D, D] of
    a head starts at zero; its rows (key channels) decay each at their own rate. Of float16 and bfloat16 the widest type
    of r, k, v, w is read; the state and u are then float32. Differentiable in all tensors; the backward pass makes the
    states again from one in 32. Sums run in a fixed order, so results repeat.

    Args:
        r: receptances [batch, L, heads, D].
        k: keys [batch, L, heads, D].
        v: values [batch, L, heads, D].
        w: decays [batch, L, heads, D] before the two exponentials.
        u: [heads, D], the weight of a step for itself, or None where it does not see itself.
        reverse: from the last step to the first.

    Returns:
        [batch, L, heads, D], of the type of r.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    _check(r, k, v, w, u)
    kind = r.dtype
    for tensor in (k, v, w):
        kind = torch.promote_types(kind, tensor.dtype)
    wide = torch.promote_types(kind, torch.float32)
    rows = [t.to(kind if on_cuda(r) else wide) for t in (r, k, v, w)]
    u = None if u is None else u.to(wide)
    if on_cuda(r) and has_kernels(r) and kind in TYPE_CODES and r.shape[3] not in (0, *CUDA_DIMS):
        return _scan_parts(rows, u, reverse).to(r.dtype)
    return _scan_all(rows, u, reverse).to(r.dtype)


def _scan_all(rows: Sequence[Tensor], u: Tensor | None, reverse: bool) -> Tensor:
    """r, k, v and w in the type of the result."""
    inputs = [None if t is None else t.contiguous() for t in (*rows, u)]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    return _scan(*inputs, reverse, keep)[0]


def _scan_parts(rows: Sequence[Tensor], u: Tensor | None, reverse: bool) -> Tensor:
    """The same with heads of any width, from several heads of a width that the kernel for CUDA is compiled for.

    Parts of the state do not read each other: those of the value channels stand side by side in the result, those of
    the key channels add up, in float32. What is missing to a whole part is filled up with zeros, which stay zeros.
    """
    heads, d = rows[0].shape[2:]
    width = min(side for side in CUDA_DIMS if side >= min(d, CUDA_DIMS[-1]))
    parts = -(-d // width)

    def split(tensor: Tensor, axis: int) -> Tensor:
        padded = F.pad(tensor, (0, parts * width - d)).unflatten(-1, (parts, width)).unsqueeze(axis)
        return padded.expand(*tensor.shape[:-1], parts, parts, width).flatten(-4, -2)

    if parts > 1:
        rows = [t.float() for t in rows]
    r, k, v, w = (split(t, axis) for t, axis in zip(rows, (-2, -2, -3, -2), strict=True))
    y = _scan_all((r, k, v, w), None if u is None else split(u, -2), reverse)
    return y.unflatten(2, (heads, parts, parts)).sum(3).flatten(3)[..., :d]


def wkv_reference(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor | None = None, reverse: bool = False) -> Tensor:
    """The definition in PyTorch on any device, step by step. Arguments as in `wkv`."""
    kind, length = r.dtype, r.shape[1]
    r, k, v, w = (t.to(torch.promote_types(kind, torch.float32)) for t in (r, k, v, w))
    decay = torch.exp(-torch.exp(w))
    state, outputs = r.new_zeros(len(r), *r.shape[2:], r.shape[3]), list(v.unbind(1))
    for t in reversed(range(length)) if reverse else range(length):
        update = k[:, t, :, :, None] * v[:, t, :, None, :]
        seen = state if u is None else state + u[:, :, None] * update
        outputs[t] = (r[:, t, :, :, None] * seen).sum(-2)
        state = decay[:, t, :, :, None] * state + update
    return (torch.stack(outputs, 1) if outputs else v).to(kind)


@torch.library.custom_op("pcdet_ext::wkv", mutates_args=())
def _scan(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: MaybeTensor, reverse: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    """The result, and with `keep` the states that the backward pass starts from."""
    if not _has_kernel(r):
        return wkv_reference(r, k, v, w, u, reverse), _checkpoints(r, keep)
    y, states = torch.empty_like(r), _checkpoints(r, keep or on_cuda(r))  # on CUDA the chunks meet there
    between = [states, _kept(states)] if on_cuda(r) else [states if keep else None]
    _launch("forward", (r, k, v, w, u), reverse, [*_series(r, y), *_by_chunk(r, *between)])
    return y, states if keep else _checkpoints(r, False)


@_scan.register_fake
def _(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: MaybeTensor, reverse: bool, keep: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(r), _checkpoints(r, keep)


@torch.library.custom_op("pcdet_ext::wkv_backward", mutates_args=())
def _backward(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: MaybeTensor, reverse: bool, dy: Tensor, states: Tensor
) -> list[Tensor]:
    """Gradients of r, k, v, w, and u where there is one."""
    inputs = (r, k, v, w, u)
    grads = [torch.empty_like(r) for _ in range(4)]
    slices = len(r) * (states.shape[2] if on_cuda(r) else 1)
    du = None if u is None else u.new_empty(slices, *u.shape)
    found = (du, _widened(r), slices * r.shape[2] * r.shape[3])
    between = _by_chunk(r, torch.empty_like(states), _kept(states)) if on_cuda(r) else []
    last = [*_series(r, dy.contiguous()), *_by_chunk(r, states), *_series(r, *grads), found, *between]
    _launch("backward", inputs, reverse, last)
    return grads if du is None else [*grads, du.sum(0)]


@_backward.register_fake
def _(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: MaybeTensor, reverse: bool, dy: Tensor, states: Tensor
) -> list[Tensor]:
    return [torch.empty_like(t) for t in (r, k, v, w, u) if t is not None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.reverse, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, states = ctx.saved_tensors
    if _has_kernel(inputs[0]):
        grads = _backward(*inputs, ctx.reverse, dy, states)
    else:
        grads = reference_gradients(partial(wkv_reference, reverse=ctx.reverse), inputs, dy)
    return (*grads, *([None] * (7 - len(grads))))


_scan.register_autograd(_differentiate, setup_context=_setup)


def _has_kernel(r: Tensor) -> bool:
    """Whether a native kernel covers these sequences."""
    if on_cuda(r):
        covered = r.dtype in TYPE_CODES and r.shape[3] in CUDA_DIMS
    else:
        covered = r.dtype in (torch.float32, torch.float64)
    return covered and has_kernels(r)


def _checkpoints(r: Tensor, keep: bool) -> Tensor:
    """Room for the states at the start of every chunk."""
    if not keep or not _has_kernel(r):
        return r.new_empty(0, dtype=_widened(r))
    batch, length, heads, d = r.shape
    return r.new_empty(batch, heads, -(-length // CHUNK), d, d, dtype=_widened(r))


def _kept(states: Tensor) -> Tensor:
    """Room for the share of every row of the state that is left after a chunk, which CUDA kernels use between them."""
    return states.new_empty(states.shape[:4])


def _widened(r: Tensor) -> torch.dtype:
    """The type of the state."""
    return torch.promote_types(r.dtype, torch.float32)


def _series(r: Tensor, *tensors: Tensor) -> list[NativeArray]:
    """Tensors of the shape and type of r."""
    return [(t, r.dtype, math.prod(r.shape)) for t in tensors]


def _by_chunk(r: Tensor, states: Tensor | None, kept: Tensor | None = None) -> list[NativeArray]:
    """The state [D, D] at the start of every chunk and, on CUDA, the share [D] of its rows that is left after it."""
    batch, length, heads, d = r.shape
    rows = batch * heads * -(-length // CHUNK) * d
    buffers: list[NativeArray] = [(states, _widened(r), rows * d)]
    return buffers if kept is None else [*buffers, (kept, _widened(r), rows)]


def _launch(
    direction: str, inputs: tuple[Tensor, Tensor, Tensor, Tensor, MaybeTensor], reverse: bool, last: list[NativeArray]
) -> None:
    """Call the kernel; inputs: r, k, v, w and u."""
    *rows, u = inputs
    r, name = inputs[0], f"wkv_{direction}"
    task: list[Argument] = [*_series(r, *rows), (u, _widened(r), r.shape[2] * r.shape[3])]
    task += [*r.shape, Int32(reverse), *last]
    if on_cuda(r):
        launch(name, r.device, *task, Int32(TYPE_CODES[r.dtype]))
    else:
        launch(name, r.device, *task, dtype=r.dtype)


def _check(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor | None) -> None:
    if r.ndim != 4 or not r.is_floating_point():
        raise ValueError(f"r must be floating point [batch, L, heads, D], got {r.dtype} {list(r.shape)}")
    for name, tensor in (("k", k), ("v", v), ("w", w)):
        _check_one(name, tensor, r.shape, r.device)
    if u is not None:
        _check_one("u", u, r.shape[2:], r.device)


def _check_one(name: str, tensor: Tensor, shape: torch.Size, device: torch.device) -> None:
    if tensor.shape != shape or tensor.device != device or not tensor.is_floating_point():
        ours = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        raise ValueError(f"{name} must be floating point {list(shape)} on {device} beside r, got {ours}")
