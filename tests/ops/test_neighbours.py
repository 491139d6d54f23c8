"""Neighbour tables against a dictionary of keys."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops.neighbours import gather_neighbours, neighbour_table, neighbour_table_reference

KEYS = st.lists(st.integers(-50, 50), max_size=40, unique=True)


def looked_up(keys: Tensor, shifts: Tensor) -> Tensor:
    rows = {key: row for row, key in enumerate(keys.tolist())}
    table = [[rows.get(key + shift, -1) for shift in shifts.tolist()] for key in keys.tolist()]
    return torch.tensor(table, dtype=torch.int64).view(len(keys), len(shifts))


@settings(max_examples=60, deadline=None)
@given(KEYS, st.lists(st.integers(-30, 30), max_size=9))
def test_tables_hold_the_rows_that_a_dictionary_finds(keys, shifts):
    keys, shifts = torch.tensor(keys, dtype=torch.int64), torch.tensor(shifts, dtype=torch.int64)
    expected = looked_up(keys, shifts)
    assert neighbour_table(keys, shifts).equal(expected)
    assert neighbour_table_reference(*torch.sort(keys), shifts).equal(expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_many_keys(threads):
    """More than one task, and shifts beyond both ends."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randperm(20_000, generator=generator)[:7000]
    shifts = torch.tensor([-30_000, -101, -1, 0, 1, 101, 30_000])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert neighbour_table(keys, shifts).equal(looked_up(keys, shifts))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_tables_on_cuda_hold_the_same_rows(accelerator: Accelerator, count: int) -> None:
    keys = torch.randperm(700, generator=torch.Generator().manual_seed(count))[:count] - 350
    shifts = torch.tensor([-1000, -31, -1, 0, 1, 30, 1000])
    inputs = keys.to(accelerator.device), shifts.to(accelerator.device)
    with accelerator:
        found = neighbour_table(*inputs)
    assert found.cpu().equal(looked_up(keys, shifts))


def test_wrong_arguments_are_named():
    keys = torch.arange(3)
    with pytest.raises(ValueError, match=r"keys must be int64 with one dimension, got torch.int32 \[3\]"):
        neighbour_table(keys.int(), keys)
    with pytest.raises(ValueError, match=r"shifts must be int64 with one dimension, got torch.int64 \[3, 1\]"):
        neighbour_table(keys, keys[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 4, 16])
def test_neighbours_are_gathered(accelerator: Accelerator, dtype: torch.dtype, channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    features = torch.randn(37, channels, generator=generator).to(dtype)
    table = torch.randint(-1, 37, (50, 9), generator=generator, dtype=torch.int32)
    inputs = features.to(accelerator.device), table.to(accelerator.device)
    with accelerator:
        found = gather_neighbours(*inputs).cpu()
    expected = torch.stack([torch.where(row < 0, 0, features[row.long()].t()).t() for row in table.flatten()])
    assert found.shape == (50, 9, channels)
    assert found.equal(expected.view(50, 9, channels))


def test_neighbours_that_cannot_be_gathered_are_named() -> None:
    table = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"features must be \[N, C\] of 16, 32 or 64 bits, got torch.bool \[2, 2\]"):
        gather_neighbours(torch.ones(2, 2, dtype=torch.bool), table)
    with pytest.raises(ValueError, match=r"table must be int32 \[M, K\] on cpu, got torch.int64 \[2, 2\] on cpu"):
        gather_neighbours(torch.ones(2, 2), table.long())
    with pytest.raises(ValueError, match=r"table \[1000000, 27\] makes 10.8 GB of neighbours"):
        gather_neighbours(torch.ones(2, 100), torch.zeros(1, 1, dtype=torch.int32).expand(1_000_000, 27))
