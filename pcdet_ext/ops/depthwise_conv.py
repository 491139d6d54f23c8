"""Depth-wise submanifold convolution: each channel of a voxel sums its own neighbours, weighted by their place."""

from __future__ import annotations

import torch
from torch import Tensor


def depthwise_conv(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """y[i] = Σ_k weight[k] * x[table[i, k]], over the neighbours that exist, [N, C].

    x: [N, C]; weight: [K, C], of x's type (float32 or float64); table: int64 [N, K], row of the neighbour at each
    kernel cell, -1 where there is none. The table must be that of a kernel of odd sizes (`submanifold_table`): cells k
    and K - 1 - k are opposite, table[i, k] = j says table[j, K - 1 - k] = i. Differentiable in x and weight.
    Raises ValueError naming the argument that is wrong.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x and weight must be [N, C] and [K, C], got {list(x.shape)} and {list(weight.shape)}")
    if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x and weight must both be float32 or float64, got {x.dtype} and {weight.dtype}")
    if table.dtype != torch.int64 or table.shape != (len(x), len(weight)):
        shape = list(table.shape)
        raise ValueError(f"table must be int64 [{len(x)}, {len(weight)}], got {table.dtype} {shape}")
    if len({t.device for t in (x, weight, table)}) != 1:
        raise ValueError("x, weight and table must be on one device")
    return _depthwise(x.contiguous(), weight.contiguous(), table.contiguous())


def depthwise_conv_reference(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """The definition in PyTorch on any device; see `depthwise_conv`."""
    padded, rows = _padded(x), table.t().where(table.t() >= 0, len(x))
    y = torch.zeros_like(x)
    for k in range(len(weight)):
        y.addcmul_(padded.index_select(0, rows[k]), weight[k])
    return y


def depthwise_weight_gradient_reference(x: Tensor, dy: Tensor, table: Tensor) -> Tensor:
    """Gradient [K, C] of the weight, from that of the output, dy [N, C]."""
    padded, rows = _padded(x), table.t().where(table.t() >= 0, len(x))
    return torch.stack([(padded.index_select(0, row) * dy).sum(0) for row in rows])


def _padded(x: Tensor) -> Tensor:
    """x with a row of zeros behind, for neighbours that do not exist."""
    return torch.cat([x, x.new_zeros(1, x.shape[1])])


@torch.library.custom_op("pcdet_ext::depthwise_conv", mutates_args=())
def _depthwise(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    return depthwise_conv_reference(x, weight, table)


@_depthwise.register_fake
def _(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("pcdet_ext::depthwise_conv_weight_gradient", mutates_args=())
def _weight_gradient(x: Tensor, dy: Tensor, table: Tensor) -> Tensor:
    return depthwise_weight_gradient_reference(x, dy, table)


@_weight_gradient.register_fake
def _(x: Tensor, dy: Tensor, table: Tensor) -> Tensor:
    return x.new_empty(table.shape[1], x.shape[1])


def _setup(ctx: object, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: object, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, table = ctx.saved_tensors
    dy = dy.contiguous()
    # Who reads j at cell k is j's neighbour at the opposite cell: the same sum with the kernel turned around.
    dx = _depthwise(dy, weight.flip(0), table) if ctx.needs_input_grad[0] else None
    return dx, _weight_gradient(x, dy, table) if ctx.needs_input_grad[1] else None, None


_depthwise.register_autograd(_differentiate, setup_context=_setup)
