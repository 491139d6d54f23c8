"""Rotated sets as a plan and as a partition: every voxel in one set, sets even, duplicates masked, plans shared."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.grouping.orders import LSH, Hilbert, Window, WindowX, WindowY
from pcdet_ext.grouping.partitions import PARTITIONS, RotatedSets, even_sets
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


def both_directions() -> tuple[WindowY, WindowX]:
    return WindowY(WINDOW, SHIFT), WindowX(WINDOW, SHIFT)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_sets_share_out_each_window(seed: int, size: int) -> None:
    voxels = random_voxels(seed)
    windows = Window(WINDOW, SHIFT).pieces(voxels).tolist()
    for groups in (RotatedSets(size)(voxels, order) for order in both_directions()):
        check_sets(groups, windows, size)
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
    for order in both_directions():
        a, b = (RotatedSets(7)(v, order) for v in (voxels, shuffled))
        assert torch.equal(a.index, shuffle[b.index])
        assert torch.equal(a.valid, b.valid)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_the_operation_gives_the_sets_of_the_sorted_sequences(seed: int, size: int) -> None:
    voxels = random_voxels(seed)
    partition = PARTITIONS.build({"name": "RotatedSets", "group_size": size})
    for order in both_directions():
        sequence = order(voxels).order
        counts = torch.unique_consecutive(order.pieces(voxels)[sequence], return_counts=True)[1]
        expected = even_sets(sequence, counts, size)
        assert sorted(partition(voxels, order).index.tolist()) == sorted(expected.index.tolist())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_sets_follow_the_pieces_of_any_order(seed: int, size: int) -> None:
    voxels = random_voxels(seed)
    whole = (GRID[0], *WINDOW[1:])
    for order in (Window(WINDOW, SHIFT), WindowX(whole, (0, *SHIFT[1:]), "snake"), LSH(width=4.0)):
        check_sets(RotatedSets(size)(voxels, order), order.pieces(voxels).tolist(), size)


def test_plans_are_shared() -> None:
    voxels = random_voxels(4)
    again = voxels.with_features(voxels.features + 1)
    for order in (Hilbert(), *both_directions()):
        assert RotatedSets(9)(voxels, order) is RotatedSets(9)(again, order)
    assert RotatedSets(9)(voxels, WindowX(list(WINDOW), list(SHIFT))) is RotatedSets(9)(voxels, WindowX(WINDOW, SHIFT))


def test_senseless_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        RotatedSets(0)


@pytest.mark.parametrize(
    ("window", "shift", "message"),
    [
        ((0, 6, 5), SHIFT, r"window must be three sizes \(Z, Y, X\) in cells, positive or None, got \[0, 6, 5\]"),
        ((6, 5), SHIFT, "window must be three sizes"),
        (WINDOW, (0, -1, 0), "shift must be three numbers .* from 0 on"),
        ((None, 6, 5), (1, 0, 0), "shift must be 0 where the window is None"),
    ],
)
def test_senseless_windows_are_refused(window, shift, message) -> None:
    for order in (Window, WindowX, WindowY):
        with pytest.raises(ValueError, match=message):
            order(window, shift)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 30)] * 3),
    st.tuples(*[st.integers(0, 90)] * 3),
)
def test_windows_and_places_in_them(seed: int, window: tuple[int, int, int], shift: tuple[int, int, int]) -> None:
    """Two voxels share a number exactly when they share frame and window, numbers ascend, also with large shifts."""
    voxels, order = random_voxels(seed, most=60), Window(window, shift)
    shifted = voxels.coords[:, 1:] + torch.tensor(shift)
    cell = torch.cat([voxels.coords[:, :1], shifted // torch.tensor(window)], 1)[:, [0, 3, 2, 1]]
    expected = torch.unique(cell, dim=0, return_inverse=True)[1]
    assert torch.equal(torch.unique(order.pieces(voxels), return_inverse=True)[1], expected)
    assert torch.equal(order.place(voxels), shifted % torch.tensor(window))
    assert torch.equal(order(voxels).order, expected.argsort(stable=True))


def test_a_window_without_size_is_the_whole_grid() -> None:
    voxels = random_voxels(5)
    for order in (Window, WindowX, WindowY):
        for window in ((None, 6, 5), (4, None, 5), (None, None, None)):
            sizes = tuple(n or g for n, g in zip(window, GRID, strict=True))
            assert torch.equal(order(window)(voxels).order, order(sizes)(voxels).order)


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
@given(st.integers(0, 2**32 - 1), st.integers(1, 40) | st.just(600), st.sampled_from(WINDOWS))
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


@pytest.mark.parametrize("window", WINDOWS)
def test_cuda_kernel_gives_what_the_reference_gives(accelerator: Accelerator, window: tuple[int, int, int]) -> None:
    with accelerator:
        for seed, size in ((0, 1), (1, 7)):
            check_native(random_voxels(seed, most=2000).coords.to(accelerator.device), window, size)
        check_native(torch.zeros(0, 4, dtype=torch.int32, device=accelerator.device), window, 7)
