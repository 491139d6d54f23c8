"""The different numbers among many whose range is known, such as the cells of a grid that points lie in."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import has_kernels, launch, on_cuda
from pcdet_ext.ops._operator import integer_operator, shapes_of

_LARGEST_MAP = 1 << 30  # numbers; a bit for each is 128 MB
_TILE = 2048  # words of the map for a block of threads: see ops/unique_numbers/unique_numbers_cuda.cu


@typed
def unique_numbers(numbers: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """The different numbers, and where each number stands among them.

    On CUDA, for ends up to 2³⁰, a map of bits takes the place of sorting. Numbers that are `end` or more are not
    looked for: the caller knows that there are none.

    Args:
        numbers: int64 [N], below `end`; negative ones are left out.
        end: above every number.

    Returns:
        The different numbers int64 [M], ascending, and the place of each number in them int64 [N], -1 for those left
        out.

    Raises:
        ValueError: numbers has another type or shape, or 2³¹ entries or more; end is below 1.
    """
    if numbers.dtype != torch.int64 or numbers.ndim != 1 or len(numbers) >= 1 << 31:
        raise ValueError(f"numbers must be int64 [N], N below 2³¹, got {numbers.dtype} {list(numbers.shape)}")
    if end < 1:
        raise ValueError(f"end must be at least 1, got {end}")
    return _unique_numbers(numbers.contiguous(), end)


@integer_operator("unique_numbers")
def _unique_numbers(numbers: Tensor, end: int) -> tuple[Tensor, Tensor]:
    n, i32, i64 = len(numbers), torch.int32, torch.int64
    if n == 0 or end > _LARGEST_MAP or not on_cuda(numbers) or not has_kernels(numbers):
        return unique_numbers_reference(numbers)
    words = -(-end // 32)
    tiles = -(-words // _TILE)
    bits, before = numbers.new_zeros(words, dtype=i32), numbers.new_empty(words, dtype=i32)
    room = (bits, i32, words), (before, i32, words), (numbers.new_empty(tiles, dtype=i32), i32, tiles)
    count, found, place = numbers.new_zeros(1), torch.empty_like(numbers), torch.empty_like(numbers)
    results = (count, i64, 1), (found, i64, n), (place, i64, n)
    launch("unique_numbers", numbers.device, (numbers, i64, n), n, words, *room, *results)
    return found[: int(count)].clone(), place


@shapes_of("unique_numbers")
def _(numbers: Tensor, end: int) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return numbers.new_empty(count), torch.empty_like(numbers)


def unique_numbers_reference(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The definition in PyTorch on any device; see `unique_numbers`."""
    inside = numbers >= 0
    unique, place = torch.unique(numbers[inside], return_inverse=True)
    places = torch.full_like(numbers, -1)
    places[inside] = place
    return unique, places
