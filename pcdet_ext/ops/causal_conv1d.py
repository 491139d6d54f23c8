"""Causal depth-wise convolution along time, with the activation behind it (before Mamba's scan, Gu & Dao, 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import TYPE_CODES, Argument, Int32, NativeArray, has_kernels, int64_array, launch, on_cuda
from pcdet_ext.ops._reference import reference_gradients

ACTIVATIONS = (None, "silu")
CUDA_WIDTHS = (2, 3, 4)  # widths of the filter that the CUDA kernel is compiled for
_CUDA_CHUNK = 32  # steps of a sequence that share a gradient of the weights there
MaybeTensor = Tensor | None


@typed
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """Causal depth-wise convolution along time: y_t = bias + Σ_k weight_k x_{t−K+1+k}, zeros before the first step.

    float16 and bfloat16 are summed in float32, with weight and bias in float32. Differentiable; sums run in a fixed
    order, so results repeat.

    Args:
        x: [batch, dim, L] of any strides, which the result has too, so that transposed views of [batch, L, dim] cost no
            copy.
        weight: [dim, K].
        bias: [dim], or None.
        activation: "silu", which is applied to the result, or None.
        reverse: look at later steps instead of earlier ones, as if x and the result were flipped.

    Returns:
        [batch, dim, L], of the type of x.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    _check(x, weight, bias, activation)
    kind = x.dtype
    wide = torch.promote_types(kind, torch.float32)
    weight = weight.to(wide).contiguous()
    bias = None if bias is None else bias.to(wide).contiguous()
    x = x if on_cuda(x) else x.to(wide)
    return _convolve(x, weight, bias, activation == "silu", reverse).to(kind)


def causal_conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """The definition in PyTorch on any device. Arguments as in `causal_conv1d`."""
    kind, before = x.dtype, weight.shape[1] - 1
    x = x.to(torch.promote_types(kind, torch.float32))
    padded = F.pad(x, (0, before) if reverse else (before, 0))
    weight = weight.flip(1) if reverse else weight
    y = torch.zeros_like(x) if bias is None else bias[:, None].expand(x.shape)
    for k in range(weight.shape[1]):
        y = y + weight[:, k, None] * padded[:, :, k : k + x.shape[2]]
    return (F.silu(y) if activation == "silu" else y).to(kind)


@torch.library.custom_op("pcdet_ext::causal_conv1d", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: MaybeTensor, silu: bool, reverse: bool) -> Tensor:
    y = torch.empty_like(x)
    if not _has_kernel(x, weight):
        return y.copy_(causal_conv1d_reference(x, weight, bias, "silu" if silu else None, reverse))
    _launch("forward", (x, weight, bias), (y,), silu, reverse)
    return y


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: MaybeTensor, silu: bool, reverse: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("pcdet_ext::causal_conv1d_backward", mutates_args=())
def _backward(x: Tensor, weight: Tensor, bias: MaybeTensor, silu: bool, reverse: bool, dy: Tensor) -> list[Tensor]:
    """Gradients of x, weight, and bias where there is one."""
    dx = torch.empty_like(x)
    slices = len(x) * (-(-x.shape[2] // _CUDA_CHUNK) if on_cuda(x) else 1)
    dweight, dbias = weight.new_empty(slices, *weight.shape), weight.new_empty(slices, len(weight))
    wide, size = weight.dtype, slices * len(weight)
    sums = (dweight, wide, size * weight.shape[1]), (dbias, wide, size)
    _launch("backward", (x, weight, bias), (dy, dx), silu, reverse, sums)
    return [dx, dweight.sum(0), *([] if bias is None else [dbias.sum(0)])]


@_backward.register_fake
def _(x: Tensor, weight: Tensor, bias: MaybeTensor, silu: bool, reverse: bool, dy: Tensor) -> list[Tensor]:
    return [torch.empty_like(t) for t in (x, weight, bias) if t is not None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    if _has_kernel(*inputs[:2]):
        grads = _backward(*inputs, ctx.silu, ctx.reverse, dy)
    else:
        flags = {"activation": "silu" if ctx.silu else None, "reverse": ctx.reverse}
        grads = reference_gradients(partial(causal_conv1d_reference, **flags), inputs, dy)
    return (*grads, *([None] * (5 - len(grads))))


_convolve.register_autograd(_differentiate, setup_context=_setup)


def _has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether a native kernel covers these sequences."""
    if on_cuda(x):
        covered = x.dtype in TYPE_CODES and weight.shape[1] in CUDA_WIDTHS
    else:
        covered = x.dtype in (torch.float32, torch.float64)
    return covered and has_kernels(x)


def _launch(
    direction: str,
    inputs: tuple[Tensor, Tensor, MaybeTensor],
    series: Sequence[Tensor],
    silu: bool,
    reverse: bool,
    last: Sequence[NativeArray] = (),
) -> None:
    """Call the kernel; series: further tensors of the shape of x, whose strides it takes."""
    x, weight, bias = inputs
    name, (dim, width), wide = f"causal_conv1d_{direction}", weight.shape, torch.promote_types(x.dtype, torch.float32)
    x_, *others = ((t, x.dtype, x.shape) for t in (x, *series))
    task: list[Argument] = [x_, (weight, wide, dim * width), (bias, wide, dim)]
    task += [int64_array([s for t in (x, *series) for s in t.stride()]), *x.shape, width, Int32(silu), Int32(reverse)]
    task += [*others, *last]
    if on_cuda(x):
        launch(name, x.device, *task, Int32(TYPE_CODES[x.dtype]))
    else:
        launch(name, x.device, *task, dtype=x.dtype)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"x must be floating point [batch, dim, L], got {x.dtype} {list(x.shape)}")
    if weight.ndim != 2 or len(weight) != x.shape[1] or weight.shape[1] < 1 or weight.device != x.device:
        raise ValueError(f"weight must be [{x.shape[1]}, K] on {x.device}, got {list(weight.shape)} on {weight.device}")
    if bias is not None and (bias.shape != x.shape[1:2] or bias.device != x.device):
        raise ValueError(f"bias must be [{x.shape[1]}] on {x.device}, got {list(bias.shape)} on {bias.device}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'silu', got {activation!r}")
