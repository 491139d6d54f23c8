"""Depth-wise convolution over a table of neighbours, as octree transformers use it for position encoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import Argument, has_kernels, launch, on_cuda
from pcdet_ext.ops._operator import integer_operator, shapes_of

_NATIVE = (torch.float32, torch.float64)


@typed
def octree_depthwise_conv(features: Tensor, weights: Tensor, neighbours: Tensor) -> Tensor:
    """Depth-wise convolution over a table of neighbours (OctFormer, Wang 2023).

    out[m, c] = Σ_k weights[k, c] · features[neighbours[m, k], c], where a neighbour of -1 counts as 0. Differentiable
    in features and weights; sums run in a fixed order, so results repeat.

    Args:
        features: [N, C], float32 or float64; float16 and bfloat16 are accumulated in float32.
        weights: [K, C].
        neighbours: int64 [M, K], rows of features or -1, no row twice in a column.

    Returns:
        [M, C], of the type of the features.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    if features.ndim != 2 or features.dtype not in (*_NATIVE, torch.float16, torch.bfloat16):
        raise ValueError(f"features must be floating point [N, C], got {features.dtype} {list(features.shape)}")
    if neighbours.dtype != torch.int64 or neighbours.ndim != 2:
        raise ValueError(f"neighbours must be int64 [M, K], got {neighbours.dtype} {list(neighbours.shape)}")
    if weights.shape != (neighbours.shape[1], features.shape[1]):
        wanted = [neighbours.shape[1], features.shape[1]]
        raise ValueError(f"weights must be [K, C], here {wanted}, got {list(weights.shape)}")
    if len({t.device for t in (features, weights, neighbours)}) != 1:
        raise ValueError("features, weights and neighbours must be on one device")
    if len(features) >= 1 << 31 or len(neighbours) >= 1 << 31:
        raise ValueError(f"features and neighbours must have fewer than 2³¹ rows, got {len(features)}")
    wide = features if features.dtype in _NATIVE else features.float()
    out = _convolve(wide.contiguous(), weights.to(wide.dtype).contiguous(), neighbours.contiguous())
    return out.to(features.dtype)


def octree_depthwise_conv_reference(features: Tensor, weights: Tensor, neighbours: Tensor) -> Tensor:
    """The definition in PyTorch on any device. Arguments as in `octree_depthwise_conv`."""
    _check_rows(neighbours, len(features))
    padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
    return (padded[neighbours] * weights).sum(1)


@torch.library.custom_op("pcdet_ext::octree_conv", mutates_args=())
def _convolve(features: Tensor, weights: Tensor, neighbours: Tensor) -> Tensor:
    if not has_kernels(features):
        return octree_depthwise_conv_reference(features, weights, neighbours)
    _check_rows(neighbours, len(features))
    (n, c), (m, k), dtype = features.shape, neighbours.shape, features.dtype
    out = features.new_empty(m, c)
    inputs = (features, dtype, n * c), (weights, dtype, k * c), (neighbours, torch.int64, m * k)
    launch("octree_conv_forward", features.device, *inputs, m, k, c, (out, dtype, m * c), dtype=dtype)
    return out


@_convolve.register_fake
def _(features: Tensor, weights: Tensor, neighbours: Tensor) -> Tensor:
    return features.new_empty(len(neighbours), features.shape[1])


@torch.library.custom_op("pcdet_ext::octree_conv_weights", mutates_args=())
def _weight_grad(grad: Tensor, features: Tensor, neighbours: Tensor) -> Tensor:
    """Gradient [K, C] of the weights for that of the output [M, C]."""
    if not has_kernels(features):
        return _weight_grad_reference(grad, features, neighbours)
    _check_rows(neighbours, len(features))
    (n, c), (m, k), dtype = features.shape, neighbours.shape, features.dtype
    out, grad = features.new_empty(k, c), grad.contiguous()
    inputs = (grad, dtype, m * c), (features, dtype, n * c), (neighbours, torch.int64, m * k)
    if on_cuda(features):
        chunks = max(1, min(m // 64, 4096))
        sizes: tuple[Argument, ...] = m, k, c, chunks, (features.new_empty(chunks, k, c), dtype, chunks * k * c)
    else:
        sizes = m, k, c
    launch("octree_conv_weight_grad", features.device, *inputs, *sizes, (out, dtype, k * c), dtype=dtype)
    return out


@_weight_grad.register_fake
def _(grad: Tensor, features: Tensor, neighbours: Tensor) -> Tensor:
    return features.new_empty(neighbours.shape[1], features.shape[1])


@integer_operator("octree_conv_readers")
def _readers(neighbours: Tensor, rows: int) -> Tensor:
    """The transposed table int64 [N, K]: which output reads a row through a column, or -1."""
    m, k = neighbours.shape
    table = neighbours.new_full(((rows + 1) * k,), -1)  # a last row for the reads of nothing
    place = torch.where(neighbours < 0, rows, neighbours) * k + torch.arange(k, device=neighbours.device)
    table[place.flatten()] = torch.arange(m, device=neighbours.device).repeat_interleave(k)
    table = table.view(-1, k)[:rows]
    if int((table >= 0).sum()) != int((neighbours >= 0).sum()):
        raise ValueError("neighbours must not hold a row twice in a column")
    return table.contiguous()


@shapes_of("octree_conv_readers")
def _(neighbours: Tensor, rows: int) -> Tensor:
    return neighbours.new_empty(rows, neighbours.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, weights, neighbours = ctx.saved_tensors
    needs_features, needs_weights, _ = ctx.needs_input_grad
    grad = grad.contiguous()
    to_features = _convolve(grad, weights, _readers(neighbours, len(features))) if needs_features else None
    return to_features, _weight_grad(grad, features, neighbours) if needs_weights else None, None


def _differentiate_weight_grad(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
    grad, features, neighbours = ctx.saved_tensors
    above = above.contiguous()
    to_grad = _convolve(features, above, neighbours)
    return to_grad, _convolve(grad.contiguous(), above, _readers(neighbours, len(features))), None


_convolve.register_autograd(_differentiate, setup_context=_setup)
_weight_grad.register_autograd(_differentiate_weight_grad, setup_context=_setup)


def _weight_grad_reference(grad: Tensor, features: Tensor, neighbours: Tensor) -> Tensor:
    padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
    return (padded[neighbours] * grad[:, None]).sum(0)


def _check_rows(neighbours: Tensor, rows: int) -> None:
    if not neighbours.numel():
        return
    low, high = (int(bound) for bound in neighbours.aminmax())
    if low < -1 or high >= rows:
        raise ValueError(f"neighbours must be rows of features below {rows}, or -1; got {low} to {high}")
