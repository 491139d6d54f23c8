"""Windows of locality-sensitive hashing against the hash itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_partitions import SEEDS, random_voxels

from pcdet_ext.grouping.orders import Hilbert, Order, ZOrder
from pcdet_ext.grouping.partitions import LSHWindows
from pcdet_ext.ops.serialize import serialize


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([ZOrder(), Hilbert()]), st.integers(1, 9), st.sampled_from([0.0, 0.25, 0.5]))
def test_a_set_lies_in_one_window_and_follows_the_order(seed: int, order: Order, size: int, shift: float) -> None:
    voxels = random_voxels(seed)
    groups = LSHWindows(size, projections=2, width=6.0, seed=1, border_shift=shift)(voxels, order)
    keys = serialize(voxels.coords, voxels.grid, "lsh", projections=2, width=6.0, seed=1, border_shift=shift)
    assert groups.index.flatten()[groups.inverse].equal(torch.arange(len(voxels)))
    assert bool((keys[groups.index] == keys[groups.index][:, :1]).all())
    place = order(voxels).inverse[groups.index]
    assert bool((place.diff(dim=1) >= 0).all())
    for key, count in zip(*keys.unique(return_counts=True), strict=True):
        assert int((keys[groups.index[:, 0]] == key).sum()) == -(-int(count) // size)


def test_a_shifted_hash_joins_what_a_border_parts() -> None:
    coords = torch.cartesian_prod(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.arange(64.0)).int()
    plain, shifted = (
        serialize(coords, (1, 1, 64), "lsh", projections=1, width=8.0, border_shift=s) for s in (0.0, 0.5)
    )
    border = plain.diff() != 0
    assert int(border.sum()) >= 3
    assert not bool((border & (shifted.diff() != 0)).any())
    assert abs(int((shifted.diff() != 0).sum()) - int(border.sum())) <= 1  # windows stay as wide as they are


def test_wrong_shifts_are_refused() -> None:
    coords = torch.zeros(1, 4, dtype=torch.int32)
    for shift in (-0.1, 1.0):
        with pytest.raises(ValueError, match="border_shift must be a share of the width"):
            serialize(coords, (1, 1, 1), "lsh", border_shift=shift)
