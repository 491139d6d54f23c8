"""Rotated sets as a plan and as a partition: every voxel in one set, sets even, duplicates masked, plans shared."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.grouping.orders import Hilbert, WindowX, WindowY
from pcdet_ext.grouping.partitions import PARTITIONS, RotatedSets, rotated_set_plan
from pcdet_ext.ops.rotated_sets import _rotated_sets, rotated_sets, rotated_sets_reference
from pcdet_ext.structures import Groups, SparseVoxels

GRID = (4, 26, 23)
WINDOW, SHIFT = (4, 6, 5), (0, 3, 2)


def random_voxels(seed: int, frames: int = 3, most: int = 400) -> SparseVoxels:
    """Distinct voxels in random order, some frames perhaps empty."""
    rng = np.random.default_rng(seed)
    flat = rng.permutation(frames * math.prod(GRID))[: rng.integers(0, most)]
    coords = np.stack(np.unravel_index(flat, (frames, *GRID)), 1).astype(np.int32)
    coords = coords[coords[:, 0] != rng.integers(0, frames + 1)]
    return SparseVoxels(torch.arange(float(len(coords)))[:, None], torch.from_numpy(coords), GRID, frames)


def check_sets(groups: Groups, owner: list[int], size: int) -> None:
    """Sets of one owner's voxels, each in one set, evenly shared, valid once."""
    index, valid = groups.index.tolist(), groups.valid.tolist()
    members = [[v for v, ok in zip(s, o, strict=True) if ok] for s, o in zip(index, valid, strict=True)]
    assert sorted(v for m in members for v in m) == list(range(len(owner)))
    assert [sorted(set(s)) for s in index] == [sorted(m) for m in members]
    populations: dict[int, list[int]] = {}
    for m in members:
        assert len({owner[v] for v in m}) == 1
        populations.setdefault(owner[m[0]], []).append(len(m))
    for key, count in Counter(owner).items():
        assert len(populations[key]) == math.ceil(count / size)
        assert max(populations[key]) - min(populations[key]) <= 1
    assert all(valid_slots[0] for valid_slots in valid)
    assert all(valid[s // size][s % size] for s in groups.inverse.tolist())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_sets_share_out_each_window(seed: int, size: int) -> None:
    voxels = random_voxels(seed)
    plan = rotated_set_plan(voxels, WINDOW, SHIFT, size)
    for groups in (plan.y_major, plan.x_major):
        check_sets(groups, plan.window.tolist(), size)
        assert torch.equal(groups.scatter(groups.gather(voxels.features)), voxels.features)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_orders_without_windows_share_out_each_frame(seed: int, size: int) -> None:
    voxels = random_voxels(seed)
    groups = RotatedSets(size)(voxels, Hilbert())
    check_sets(groups, voxels.coords[:, 0].tolist(), size)
    assert torch.equal(groups.scatter(groups.gather(voxels.features)), voxels.features)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_sets_do_not_depend_on_the_order_of_rows(seed: int) -> None:
    voxels = random_voxels(seed)
    shuffle = torch.randperm(len(voxels), generator=torch.Generator().manual_seed(seed))
    shuffled = SparseVoxels(voxels.features[shuffle], voxels.coords[shuffle], GRID, voxels.batch_size)
    plan, other = (rotated_set_plan(v, WINDOW, SHIFT, 7) for v in (voxels, shuffled))
    for a, b in ((plan.y_major, other.y_major), (plan.x_major, other.x_major)):
        assert torch.equal(a.index, shuffle[b.index])
        assert torch.equal(a.valid, b.valid)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_window_orders_give_the_two_directions(seed: int, size: int) -> None:
    voxels = random_voxels(seed)
    partition = PARTITIONS.build({"name": "RotatedSets", "size": size})
    plan = rotated_set_plan(voxels, WINDOW, SHIFT, size)
    for expected, order in ((plan.y_major, WindowY(WINDOW, SHIFT)), (plan.x_major, WindowX(WINDOW, SHIFT))):
        found = partition(voxels, order)
        assert sorted(found.index.tolist()) == sorted(expected.index.tolist())
        check_sets(found, plan.window.tolist(), size)


def test_plans_are_shared() -> None:
    voxels = random_voxels(4)
    plan = rotated_set_plan(voxels, WINDOW, SHIFT, 9)
    assert rotated_set_plan(voxels.with_features(voxels.features + 1), list(WINDOW), list(SHIFT), 9) is plan
    assert RotatedSets(9)(voxels, Hilbert()) is RotatedSets(9)(voxels, Hilbert())
    assert RotatedSets(9)(voxels, WindowX(WINDOW)) is RotatedSets(9)(voxels, WindowX(WINDOW))


@pytest.mark.parametrize(
    ("window", "shift", "size", "message"),
    [(WINDOW, SHIFT, 0, "size must be at least 1"), ((0, 6, 5), SHIFT, 3, "window"), (WINDOW, (0, -1, 0), 3, "shift")],
)
def test_senseless_sets_are_refused(window, shift, size, message) -> None:
    with pytest.raises(ValueError, match=message):
        rotated_set_plan(random_voxels(0), window, shift, size)
    if size < 1:
        with pytest.raises(ValueError, match=message):
            RotatedSets(size)(random_voxels(0), Hilbert())


def arguments(coords: torch.Tensor, window: tuple[int, int, int], size: int) -> tuple:
    count = [max(-(-(g + s) // w), -(-g // w) + 1) for g, w, s in zip(GRID, window, SHIFT, strict=True)]
    return coords, list(GRID), 3, list(window), list(SHIFT), count, size


def check_native(coords: torch.Tensor, window: tuple[int, int, int], size: int) -> None:
    """The kernel of the device, with one thread and with two, gives what the reference gives."""
    expected = rotated_sets_reference(*arguments(coords.cpu(), window, size))
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            for native, reference in zip(_rotated_sets(*arguments(coords, window, size)), expected, strict=True):
                assert native.dtype == reference.dtype
                assert torch.equal(native.cpu(), reference)
    finally:
        torch.set_num_threads(threads)


# Small windows, more of them than voxels, and windows whose bit map is taken as mostly empty.
WINDOWS = [WINDOW, (1, 1, 1), (4, 26, 23)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from(WINDOWS))
def test_native_kernels_give_what_the_reference_gives(seed: int, size: int, window: tuple[int, int, int]) -> None:
    check_native(random_voxels(seed, most=2000).coords, window, size)


def test_rows_that_repeat_a_cell_keep_their_order() -> None:
    coords = random_voxels(3).coords
    check_native(torch.cat([coords, coords[:50], coords[:20]]), WINDOW, 7)


@pytest.mark.parametrize("row", [[3, 0, 0, 0], [-1, 0, 0, 0], [0, 4, 0, 0], [0, 0, -1, 0], [0, 0, 0, 23]])
def test_rows_outside_the_grid_are_refused(row) -> None:
    coords = torch.cat([random_voxels(3).coords, torch.tensor([row], dtype=torch.int32)])
    with pytest.raises(ValueError, match="1 rows are outside the grid"):
        rotated_sets(coords, GRID, 3, WINDOW, SHIFT, 7)


@pytest.mark.gpu
@pytest.mark.parametrize("window", WINDOWS)
def test_cuda_kernel_gives_what_the_reference_gives(window) -> None:
    for seed, size in ((0, 1), (1, 7), (2, 36)):
        check_native(random_voxels(seed, most=2000).coords.cuda(), window, size)
    check_native(torch.zeros(0, 4, dtype=torch.int32, device="cuda"), window, 7)
