"""Sparse convolution for inference: sums of products of the rows that each output reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import Int32, has_kernels, kernel_kind, launch
from pcdet_ext.ops._operator import needs_derivatives

LANES = 16  # output channels that the kernel takes together


def takes_sparse_conv(features: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether `sparse_conv` has a kernel for rows [N, C] and the weight [D, K, C].

    There is one, without derivatives (in these or in `others`, on which the result depends too), for float32 on the
    CPU where D is a multiple of 16.
    """
    if needs_derivatives(features, weight, *others):
        return False
    fits = features.dtype == weight.dtype == torch.float32 and len(weight) % LANES == 0
    return fits and kernel_kind(features.device) == "cpu" and has_kernels(features)


def reads_of_pairs(pairs: Sequence[tuple[Tensor, Tensor]], rows: int) -> Tensor:
    """The input row int32 [rows, K] that each output reads through each kernel cell, -1 for none.

    pairs: for each of the K cells (input rows, output rows), int64, each output at most once.
    """
    cells = len(pairs)
    reads = torch.full((rows * cells,), -1, dtype=torch.int32, device=pairs[0][0].device)
    for cell, (into, out) in enumerate(pairs):
        reads[out * cells + cell] = into.int()
    return reads.view(rows, cells)


@typed
def sparse_conv(
    features: Tensor,
    weight: Tensor,
    reads: Tensor,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """out[m] = bias + Σ over k of weight[:, k] @ features[reads[m, k]] + addend[m], without gradients.

    Sums run cell by cell, in the order of k, so results repeat. Autocast has no effect.

    Args:
        features: [N, C].
        weight: [D, K, C], of the same type.
        reads: int32 [M, K], rows of the features, -1 for none.
        bias: [D], or None for zeros.
        addend: [M, D], or None for zeros.
        relu: whether negative sums become 0.

    Returns:
        [M, D].

    Raises:
        ValueError: arguments do not fit each other, or a number in `reads` is neither -1 nor a row of the features.
    """
    _check(features, weight, reads, bias, addend)
    if not takes_sparse_conv(features, weight, bias, addend):
        with torch.autocast(features.device.type, enabled=False):
            return sparse_conv_reference(features, weight, reads, bias, addend, relu)
    bias, addend = (None if t is None else t.contiguous() for t in (bias, addend))
    return _sparse_conv(features.contiguous(), weight.contiguous(), reads.contiguous(), bias, addend, relu)


def sparse_conv_reference(
    features: Tensor,
    weight: Tensor,
    reads: Tensor,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """The definition in PyTorch on any device. Arguments as in `sparse_conv`."""
    _check_rows(reads, len(features))
    none = features.new_zeros(1, features.shape[1])
    gathered = torch.cat([features, none])[reads.long()]  # -1 is the last
    out = torch.einsum("mkc,dkc->md", gathered, weight)
    out = out if bias is None else out + bias
    out = out if addend is None else out + addend
    return torch.relu(out) if relu else out


def _check(features: Tensor, weight: Tensor, reads: Tensor, bias: Tensor | None, addend: Tensor | None) -> None:
    if features.ndim != 2 or weight.ndim != 3 or weight.shape[2] != features.shape[1]:
        raise ValueError(
            "features [N, C] and weight [D, K, C] must have the same C, "
            f"got {list(features.shape)} and {list(weight.shape)}"
        )
    if features.dtype != weight.dtype or not features.is_floating_point():
        raise ValueError(f"features and weight must be of one floating type, got {features.dtype} and {weight.dtype}")
    if reads.dtype != torch.int32 or reads.ndim != 2 or reads.shape[1] != weight.shape[1]:
        raise ValueError(f"reads must be int32 [M, {weight.shape[1]}], got {reads.dtype} {list(reads.shape)}")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(f"bias must be {weight.dtype} [{len(weight)}], got {bias.dtype} {list(bias.shape)}")
    shape = (len(reads), len(weight))
    if addend is not None and (addend.shape != shape or addend.dtype != weight.dtype):
        raise ValueError(f"addend must be {weight.dtype} {list(shape)}, got {addend.dtype} {list(addend.shape)}")
    if len({t.device for t in (features, weight, reads)}) != 1:
        raise ValueError("features, weight and reads must be on one device")


def _check_rows(reads: Tensor, rows: int) -> None:
    """Raises ValueError where a number is neither -1 nor a row."""
    if not reads.numel():
        return
    lowest, highest = (int(found) for found in reads.aminmax())
    if lowest < -1 or highest >= rows:
        wrong = lowest if lowest < -1 else highest
        raise ValueError(f"reads must be rows of the {rows} features, 0 <= row < {rows}, or -1 for none, got {wrong}")


@torch.library.custom_op("pcdet_ext::sparse_conv", mutates_args=())
def _sparse_conv(
    features: Tensor, weight: Tensor, reads: Tensor, bias: Tensor | None, addend: Tensor | None, relu: bool
) -> Tensor:
    _check_rows(reads, len(features))
    (n, depth), (m, cells), channels, f32 = features.shape, reads.shape, len(weight), torch.float32
    out = features.new_empty(m, channels)
    given = (features, f32, n * depth), n, (weight, f32, channels * cells * depth), (bias, f32, channels)
    table = (reads, torch.int32, m * cells), m, cells, depth, channels
    last = (addend, f32, m * channels), Int32(relu), (out, f32, m * channels)
    launch("sparse_conv", features.device, *given, *table, *last)
    return out


@_sparse_conv.register_fake
def _(
    features: Tensor, weight: Tensor, reads: Tensor, bias: Tensor | None, addend: Tensor | None, relu: bool
) -> Tensor:
    return features.new_empty(len(reads), len(weight))
