"""The slots of equal groups, padded frame by frame with voxels that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import has_kernels, launch, on_cuda
from pcdet_ext.ops._operator import integer_operator, shapes_of


@typed
def equal_group_slots(
    order: Tensor, inverse: Tensor, counts: Tensor, size: int, sizes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a sequence of voxels, frame after frame, into groups of one size.

    The free slots of a frame's last group hold the voxels one group earlier (FlatFormer section 3.2, LION section 3.2);
    in a frame of a single group its own voxels, repeated from the start.

    Args:
        order: int64 [N], voxel at each place of the sequence.
        inverse: int64 [N], place of each voxel.
        counts: int64 [B], how many voxels each frame has, N in all.
        size: slots of a group.
        sizes: the same counts as numbers where they are known, so that nobody has to wait for the device.

    Returns:
        The voxel in each slot int64 [S], S a multiple of `size`; the slot of each voxel int64 [N]; and whether a slot
        is not a repetition bool [S].

    Raises:
        ValueError: order and inverse are not int64 of one shape [N], counts not int64 [B], not all on one device, size
            is below 1, or counts that are looked at do not add up to N.
    """
    if order.dtype != torch.int64 or order.ndim != 1 or inverse.dtype != torch.int64 or inverse.shape != order.shape:
        raise ValueError(
            f"order and inverse must be int64 [N], got {order.dtype} {list(order.shape)} and "
            f"{inverse.dtype} {list(inverse.shape)}"
        )
    if counts.dtype != torch.int64 or counts.ndim != 1 or not len(counts):
        raise ValueError(f"counts must be int64 [B], B at least 1, got {counts.dtype} {list(counts.shape)}")
    if len({t.device for t in (order, inverse, counts)}) != 1:
        raise ValueError("order, inverse and counts must be on one device")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if not on_cuda(order) or not has_kernels(order):
        return equal_group_slots_reference(order, inverse, counts, size)
    numbers = counts.tolist() if sizes is None else list(sizes)
    if sum(numbers) != len(order) or min(numbers, default=0) < 0:
        raise ValueError(f"counts must add up to the {len(order)} voxels, got {numbers}")
    return _slots(order.contiguous(), inverse.contiguous(), numbers, size)


@integer_operator("equal_groups")
def _slots(order: Tensor, inverse: Tensor, counts: list[int], size: int) -> tuple[Tensor, Tensor, Tensor]:
    starts, padded = [0, *accumulate(counts)], [0, *accumulate(-(-n // size) * size for n in counts)]
    n, slots, frames, kind = len(order), padded[-1], len(counts), torch.int64
    begin = torch.tensor([starts, padded], device=order.device)
    index, back, valid = order.new_empty(slots), order.new_empty(n), order.new_empty(slots, dtype=torch.bool)
    given = (order, kind, n), (inverse, kind, n), n, (begin[0], kind, frames + 1), (begin[1], kind, frames + 1)
    to = (index, kind, slots), (back, kind, n), (valid, torch.bool, slots)
    launch("equal_groups", order.device, *given, frames, size, slots, *to)
    return index, back, valid


@shapes_of("equal_groups")
def _(order: Tensor, inverse: Tensor, counts: list[int], size: int) -> tuple[Tensor, Tensor, Tensor]:
    slots = sum(-(-n // size) * size for n in counts)
    return order.new_empty(slots), torch.empty_like(order), order.new_empty(slots, dtype=torch.bool)


def equal_group_slots_reference(
    order: Tensor, inverse: Tensor, counts: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition in PyTorch on any device. Arguments as in `equal_group_slots`."""
    padded = (counts + size - 1) // size * size
    frame = torch.repeat_interleave(padded)
    slot = torch.arange(frame.shape[0], device=order.device) - starts_of(padded)[frame]
    count = counts[frame]
    earlier = torch.where(count > size, slot - size, slot % count.clamp(min=1))
    place = torch.where(slot < count, slot, earlier) + starts_of(counts)[frame]
    voxel_frame = torch.repeat_interleave(counts)
    moved = (starts_of(padded) - starts_of(counts))[voxel_frame]
    place_slot = torch.arange(voxel_frame.shape[0], device=order.device) + moved
    return order[place], place_slot[inverse], slot < count


def starts_of(counts: Tensor) -> Tensor:
    """Exclusive running sum: where each frame begins."""
    return counts.cumsum(0) - counts
