"""Groups, sets, windows and segments against plain loops over the published rules."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.grouping.orders import LSH, ORDERS, Hilbert, Order, Window, WindowX, WindowY, ZOrder, window_index
from pcdet_ext.grouping.partitions import (
    PARTITIONS,
    EqualGroups,
    OctreeWindows,
    Windows,
    equal_groups,
    octree_windows,
    window_segments,
)
from pcdet_ext.ops.rotated_sets import _rotated_sets, rotated_sets, rotated_sets_reference
from pcdet_ext.structures import SparseVoxels

SEEDS = st.integers(0, 2**32 - 1)
GRID = (4, 30, 34)
ALL_ORDERS = [
    ZOrder(),
    ZOrder("x"),
    Hilbert(),
    WindowX((4, 7, 5), (0, 3, 2)),
    WindowY((4, 7, 5)),
    WindowX((4, 13, 13), path="snake"),
    LSH(),
]


def random_voxels(seed: int, frames: int = 3, most: int = 120, grid: tuple[int, int, int] = GRID) -> SparseVoxels:
    """Distinct voxels, frames interleaved, some frames perhaps empty."""
    rng = np.random.default_rng(seed)
    flat = rng.permutation(frames * math.prod(grid))[: rng.integers(0, most)]
    coords = np.stack(np.unravel_index(flat, (frames, *grid)), 1).astype(np.int32)
    coords = coords[coords[:, 0] != rng.integers(0, frames + 1)]
    return SparseVoxels(torch.arange(float(len(coords)))[:, None], torch.from_numpy(coords), grid, frames)


def frame_sequences(voxels: SparseVoxels, order: Order) -> list[list[int]]:
    """Voxels of each frame in the order's sequence, by Python's stable sort of the keys."""
    keys = order.keys(voxels).tolist()
    sequence = sorted(range(len(keys)), key=keys.__getitem__)
    frames = voxels.coords[:, 0].tolist()
    return [[v for v in sequence if frames[v] == b] for b in range(voxels.batch_size)]


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(ALL_ORDERS), st.integers(1, 20), st.booleans())
def test_equal_groups_follow_the_published_rule(seed: int, order: Order, size: int, masked: bool) -> None:
    voxels = random_voxels(seed)
    expected, valid = [], []
    for sequence in frame_sequences(voxels, order):
        slots = list(sequence)
        while sequence and len(slots) % size:
            slots.append(slots[-size] if len(sequence) > size else sequence[len(slots) % len(sequence)])
        expected += slots
        valid += [i < len(sequence) for i in range(len(slots))]
    groups = EqualGroups(size, masked)(voxels, order)
    assert groups.index.shape[1] == size
    assert groups.index.flatten().tolist() == expected
    assert (groups.valid is None) != masked
    if masked:
        assert groups.valid.flatten().tolist() == valid
    assert torch.equal(groups.scatter(groups.gather(voxels.features)), voxels.features)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_octree_windows_follow_the_published_rule(seed: int, size: int, dilation: int, straddle: bool) -> None:
    voxels = random_voxels(seed)
    frames = frame_sequences(voxels, ZOrder())
    pieces = [[v for f in frames for v in f]] if straddle else frames
    batch = voxels.coords[:, 0].tolist()
    windows, owners = [], []
    for piece in pieces:
        block = size * dilation
        slots = piece + [None] * (-len(piece) % block)
        for start in range(0, len(slots), block):
            for j in range(dilation):
                window = slots[start + j : start + block : dilation]
                windows.append(window)
                owners.append([voxels.batch_size if v is None else batch[v] for v in window])
    groups = OctreeWindows(size, dilation, straddle)(voxels, ZOrder())
    assert groups.valid.tolist() == [[v is not None for v in w] for w in windows]
    assert groups.owner.tolist() == owners
    index = torch.where(groups.valid, groups.index, -1).tolist()
    assert index == [[-1 if v is None else v for v in w] for w in windows]
    assert torch.equal(groups.scatter(groups.gather(voxels.features)), voxels.features)
    if not straddle:
        assert all(len(set(o) - {voxels.batch_size}) <= 1 for o in owners)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 12), st.booleans())
def test_rotated_sets_follow_the_paper(seed: int, set_size: int, shifted: bool) -> None:
    voxels = random_voxels(seed, most=300)
    window, shift = (4, 6, 5), ((0, 3, 2) if shifted else (0, 0, 0))
    found = rotated_sets(voxels.coords, GRID, 3, window, shift, set_size)
    place = {}
    for v, (b, z, y, x) in enumerate(voxels.coords.tolist()):
        cell = [(c + s) // w for c, s, w in zip((z, y, x), shift, window, strict=True)]
        rest = [(c + s) % w for c, s, w in zip((z, y, x), shift, window, strict=True)]
        place.setdefault((b, cell[2], cell[1], cell[0]), []).append((rest, v))
        assert found.inside[v].tolist() == rest
    for direction in (0, 1):
        expected = []
        for key in sorted(place):
            by = (lambda i: (i[0][1], i[0][2], i[0][0])) if direction == 0 else (lambda i: (i[0][2], i[0][1], i[0][0]))
            ranked = [v for _, v in sorted(place[key], key=by)]
            sets = math.ceil(len(ranked) / set_size)
            for j in range(sets):
                ranks = [(j * set_size + k) * len(ranked) // (sets * set_size) for k in range(set_size)]
                expected.append([ranked[r] for r in ranks])
        assert found.index[direction].tolist() == expected
        repeats = [[k > 0 and s[k] == s[k - 1] for k in range(set_size)] for s in expected]
        assert found.repeats[direction].tolist() == repeats


def test_rotated_sets_are_the_same_without_the_native_kernel() -> None:
    voxels = random_voxels(5, most=2000)
    arguments = (voxels.coords, list(GRID), 3, [4, 6, 5], [0, 3, 2], [2, 6, 8], 7)
    for native, reference in zip(_rotated_sets(*arguments), rotated_sets_reference(*arguments), strict=True):
        assert torch.equal(native, reference)


@pytest.mark.parametrize(("rows", "window"), [(1, (1, 4, 4)), (300_000, (1, 1, 1)), (5_000, (1, 600, 600))])
def test_rotated_sets_of_extreme_windows(rows: int, window: tuple[int, int, int]) -> None:
    grid = (1, 600, 600)
    flat = torch.randperm(360_000, generator=torch.Generator().manual_seed(0))[:rows]
    coords = torch.stack([torch.zeros_like(flat), torch.zeros_like(flat), flat // 600, flat % 600], 1).int()
    found = rotated_sets(coords, grid, 64, window, (0, 0, 0), 36)
    for direction in found.index:
        assert torch.equal(direction.unique(), torch.arange(rows))
    windows = {1: 1, 300_000: 300_000, 5_000: 1}[rows]
    assert len(found.window.unique()) == windows
    assert found.index.shape[1] == (windows if rows != 5_000 else math.ceil(5_000 / 36))


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_window_segments_gather_each_window(seed: int) -> None:
    voxels = random_voxels(seed)
    window, shift = (4, 6, 5), (0, 3, 2)
    index = window_index(voxels.coords, GRID, window, shift)
    segments = window_segments(index)
    assert torch.equal(segments.scatter(segments.gather(voxels.features)), voxels.features)
    members: dict[tuple, list[int]] = {}
    for v, (b, z, y, x) in enumerate(voxels.coords.tolist()):
        members.setdefault((b, (x + shift[2]) // 5, (y + shift[1]) // 6, (z + shift[0]) // 4), []).append(v)
    bounds = segments.offsets.tolist()
    found = [segments.order[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    assert found == [members[key] for key in sorted(members)]
    along_order = Windows()(voxels, Window(window, shift))  # which keeps the voxels inside windows as they are given
    assert torch.equal(along_order.order, segments.order)
    assert torch.equal(along_order.offsets, segments.offsets)


def test_plans_are_shared_by_equal_orders_and_partitions() -> None:
    voxels = random_voxels(1)
    order = ORDERS.build({"name": "WindowX", "window": [4, 7, 5], "shift": [0, 3, 2]})
    partition = PARTITIONS.build({"name": "EqualGroups", "group_size": 8})
    groups = partition(voxels, order)
    assert EqualGroups(8)(voxels.with_features(voxels.features * 2), WindowX((4, 7, 5), (0, 3, 2))) is groups
    assert EqualGroups(8)(voxels, WindowX((4, 7, 5))) is not groups


@pytest.mark.parametrize("frames", [1, 64])
@pytest.mark.parametrize("order", ALL_ORDERS)
def test_no_voxels_and_empty_frames(order: Order, frames: int) -> None:
    empty = SparseVoxels(torch.zeros(0, 2), torch.zeros(0, 4, dtype=torch.int32), GRID, frames)
    one = SparseVoxels(torch.ones(1, 2), torch.tensor([[frames - 1, 1, 2, 3]], dtype=torch.int32), GRID, frames)
    for voxels, expected in ((empty, 0), (one, 1)):
        for partition in (EqualGroups(5), OctreeWindows(4, 2)):
            groups = partition(voxels, order)
            torch.testing.assert_close(groups.scatter(groups.gather(voxels.features)), voxels.features)
        assert len(equal_groups(order(voxels), 5).index) == expected
    sets = rotated_sets(empty.coords, GRID, frames, (4, 5, 5), (0, 0, 0), 9)
    assert sets.index.shape == (2, 0, 9)


def test_wrong_arguments_are_named() -> None:
    voxels = random_voxels(1)
    ordering = ZOrder()(voxels)
    with pytest.raises(ValueError, match="size must be at least 1"):
        equal_groups(ordering, 0)
    with pytest.raises(ValueError, match="size and dilation"):
        octree_windows(ordering, 4, 0)
    with pytest.raises(ValueError, match="set_size must lie in"):
        rotated_sets(voxels.coords, GRID, 3, (1, 1, 1), (0, 0, 0), 0)
    with pytest.raises(ValueError, match="outside the grid"):
        rotated_sets(voxels.coords, GRID, 1, (1, 1, 1), (0, 0, 0), 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 30), min_size=1, max_size=3))
def test_windows_hold_the_voxels_of_one_window_or_bucket(seed: int, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    cells = [torch.randperm(512, generator=generator)[:count] for count in counts]
    coords = torch.cat([torch.stack([c * 0 + b, c // 64, c // 8 % 8, c % 8], 1) for b, c in enumerate(cells)]).int()
    voxels = SparseVoxels(torch.zeros(len(coords), 1), coords, (8, 8, 8), len(counts))
    window, shift = (8, 3, 2), (0, 1, 1)
    orders = {
        WindowX(window, shift): [(b, (y + 1) // 3, (x + 1) // 2) for b, _, y, x in coords.tolist()],
        LSH(2, 3.0): LSH(2, 3.0).keys(voxels).tolist(),
        Hilbert(): coords[:, 0].tolist(),
    }
    for order, numbers in orders.items():
        segments = Windows()(voxels, order)
        bounds = segments.offsets.tolist()
        found = [segments.order[a:b].tolist() for a, b in itertools.pairwise(bounds)]
        groups = [{numbers[i] for i in rows} for rows in found]
        assert all(len(group) <= 1 for group in groups)
        together = [group for group in groups if group]
        assert len(set().union(*together)) == len(together)
        assert torch.equal(segments.order[segments.inverse], torch.arange(len(coords)))
