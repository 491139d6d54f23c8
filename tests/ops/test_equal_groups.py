"""Slots of equal groups: the rule written out slot by slot."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.ops.equal_groups import equal_group_slots


def sequence(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random order of n voxels and its inverse."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    return order, torch.argsort(order)


def written_out(order: list[int], counts: list[int], size: int) -> tuple[list[int], list[bool]]:
    """Voxel of each slot, and whether it is there for the first time."""
    index, first, start = [], [], 0
    for count in counts:
        frame = order[start : start + count]
        start += count
        for slot in range(-(-count // size) * size):
            earlier = slot - size if count > size else slot % max(count, 1)
            index.append(frame[slot if slot < count else earlier])
            first.append(slot < count)
    return index, first


def check(found: tuple[torch.Tensor, ...], order: torch.Tensor, counts: list[int], size: int) -> None:
    index, back, valid = found
    expected, first = written_out(order.tolist(), counts, size)
    assert index.tolist() == expected
    assert valid.tolist() == first
    assert index[back].tolist() == list(range(len(order)))
    assert valid[back].all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(1, 9))
def test_it_follows_the_rule(counts: list[int], size: int) -> None:
    order, inverse = sequence(sum(counts))
    check(equal_group_slots(order, inverse, torch.tensor(counts), size), order, counts, size)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("counts", [[0], [300], [5, 0, 0, 261], [0, 7, 64, 0], [1] * 9])
def test_the_kernel_follows_the_rule(accelerator: Accelerator, counts: list[int], told: bool) -> None:
    order, inverse = sequence(sum(counts))
    sizes = (counts,) if told else ()
    inputs = [t.to(accelerator.device) for t in (order, inverse, torch.tensor(counts))]
    with accelerator:
        found = equal_group_slots(*inputs, 64, *sizes)
    check(tuple(part.cpu() for part in found), order, counts, 64)


def test_wrong_arguments_are_named(accelerator: Accelerator) -> None:
    order, inverse = sequence(3)
    with pytest.raises(ValueError, match=r"order and inverse must be int64 \[N\], got torch.int32"):
        equal_group_slots(order.int(), inverse, torch.tensor([3]), 2)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        equal_group_slots(order, inverse, torch.tensor([3]), 0)
    inputs = [t.to(accelerator.device) for t in (order, inverse, torch.tensor([2]))]
    with accelerator, pytest.raises(ValueError, match=r"counts must add up to the 3 voxels, got \[2\]"):
        equal_group_slots(*inputs, 2)
