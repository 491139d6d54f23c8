"""The different numbers among many: numpy's unique, also by the map of bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.ops.unique_numbers import unique_numbers


def check(found: tuple[torch.Tensor, torch.Tensor], numbers: torch.Tensor) -> None:
    """As numpy finds them; negative numbers stand nowhere."""
    unique, place = found
    kept = numbers[numbers >= 0].numpy()
    expected, inverse = np.unique(kept, return_inverse=True)
    assert unique.tolist() == expected.tolist()
    assert place[numbers >= 0].tolist() == inverse.tolist()
    assert (place[numbers < 0] == -1).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 200), max_size=50))
def test_it_finds_what_numpy_finds(values: list[int]) -> None:
    numbers = torch.tensor(values, dtype=torch.int64)
    check(unique_numbers(numbers, 201), numbers)


@pytest.mark.parametrize("end", [1, 31, 32, 33, 65_536, 65_537, 200_000, (1 << 30) + 1])
def test_the_kernel_finds_what_numpy_finds(accelerator: Accelerator, end: int) -> None:
    numbers = torch.randint(-1, min(end, 150_000), (700,), generator=torch.Generator().manual_seed(end))
    numbers[:2] = torch.tensor([end - 1, 0])  # the borders of the map
    there = numbers.to(accelerator.device)
    with accelerator:
        unique, place = unique_numbers(there, end)
    check((unique.cpu(), place.cpu()), numbers)


@pytest.mark.parametrize(
    ("numbers", "end", "message"),
    [
        (torch.zeros(2, dtype=torch.int32), 4, r"numbers must be int64 \[N\].*got torch.int32 \[2\]"),
        (torch.zeros(2, 2, dtype=torch.int64), 4, r"numbers must be int64 \[N\].*got torch.int64 \[2, 2\]"),
        (torch.zeros(2, dtype=torch.int64), 0, "end must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(numbers: torch.Tensor, end: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unique_numbers(numbers, end)
