"""Which rows of a sparse grid are neighbours of which: the table that sparse convolutions read."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import has_kernels, launch


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
    """The definition in PyTorch on any device, from sorted keys and the rows they belong to."""
    if not len(ascending):
        return order.new_empty(0, len(shifts))
    wanted = ascending[:, None] + shifts
    place = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    found = torch.where(ascending[place] == wanted, order[place], -1)
    return torch.empty_like(found).index_copy_(0, order, found)
