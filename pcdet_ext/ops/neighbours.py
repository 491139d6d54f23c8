"""Which rows of a sparse grid are neighbours of which, and reading them: what sparse convolutions stand on."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import has_kernels, launch, on_cuda


@typed
def neighbour_table(keys: Tensor, shifts: Tensor) -> Tensor:
    """Row int64 [N, K] whose key is keys[i] + shifts[k], or -1 where there is none.

    keys: int64 [N], no two the same, in any order; shifts: int64 [K]; N below 2³¹. On the CPU sorted keys are walked
    along instead of being searched. Raises ValueError naming the argument that is wrong.
    """
    for name, tensor in (("keys", keys), ("shifts", shifts)):
        if tensor.dtype != torch.int64 or tensor.ndim != 1:
            raise ValueError(f"{name} must be int64 with one dimension, got {tensor.dtype} {list(tensor.shape)}")
    if keys.device != shifts.device:
        raise ValueError(f"keys and shifts must be on one device, got {keys.device} and {shifts.device}")
    ascending, order = torch.sort(keys)
    if not has_kernels(keys):
        return neighbour_table_reference(ascending, order, shifts)
    n, k, kind = len(keys), len(shifts), torch.int64
    table = keys.new_empty(n, k)
    sorted_keys = (ascending, kind, n), (order, kind, n), n
    launch("neighbours", keys.device, *sorted_keys, (shifts.contiguous(), kind, k), k, (table, kind, n * k))
    return table


def neighbour_table_reference(ascending: Tensor, order: Tensor, shifts: Tensor) -> Tensor:
    """The definition of `neighbour_table` in PyTorch on any device.

    Args:
        ascending: the keys int64 [N], sorted.
        order: int64 [N], the row of each of these keys before they were sorted.
        shifts: int64 [K].

    Returns:
        int64 [N, K], in the order of the rows before they were sorted.
    """
    if not len(ascending):
        return order.new_empty(0, len(shifts))
    wanted = ascending[:, None] + shifts
    place = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    found = torch.where(ascending[place] == wanted, order[place], -1)
    return torch.empty_like(found).index_copy(0, order, found)


@typed
def gather_neighbours(features: Tensor, table: Tensor) -> Tensor:
    """The features of every neighbour side by side, zeros where there is none. Has no gradient of its own.

    Args:
        features: [N, C] of 16, 32 or 64 bits.
        table: int32 [M, K], rows of `features`, -1 for none.

    Returns:
        The rows [M, K, C].

    Raises:
        ValueError: an argument has the wrong shape or type, or the result would have 4 GB or more.
    """
    if features.ndim != 2 or features.element_size() not in (2, 4, 8):
        raise ValueError(f"features must be [N, C] of 16, 32 or 64 bits, got {features.dtype} {list(features.shape)}")
    if table.ndim != 2 or table.dtype != torch.int32 or table.device != features.device:
        raise ValueError(
            f"table must be int32 [M, K] on {features.device}, got {table.dtype} {list(table.shape)} on {table.device}"
        )
    row_bytes = features.shape[1] * features.element_size()
    if table.numel() * row_bytes >= 1 << 32:
        raise ValueError(f"table {list(table.shape)} makes {table.numel() * row_bytes / 1e9:.1f} GB of neighbours")
    if not on_cuda(features) or not has_kernels(features):
        return gather_neighbours_reference(features, table)
    (n, c), (m, k) = features.shape, table.shape
    out = features.new_empty(m, k, c)
    rows = (features.detach().contiguous().view(torch.uint8), torch.uint8, n * row_bytes)
    to = (out.view(torch.uint8), torch.uint8, m * k * row_bytes)
    launch("gather_neighbours", features.device, rows, (table.contiguous(), torch.int32, m * k), m * k, row_bytes, to)
    return out


def gather_neighbours_reference(features: Tensor, table: Tensor) -> Tensor:
    """The definition in PyTorch on any device; see `gather_neighbours`."""
    return torch.cat([features, features.new_zeros(1, features.shape[1])])[table.long()]
