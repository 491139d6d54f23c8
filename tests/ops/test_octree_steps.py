"""The steps of building octrees: kernels against their references and against sets of cells."""

from __future__ import annotations

import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops.octree import (
    clouds_of_keys,
    grow_reference,
    leaves_reference,
    neighbours_reference,
    octree_grow,
    octree_leaves,
    octree_neighbours,
    octree_parents,
)
from pcdet_ext.ops.serialize import deserialize, octree_parent

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=4)


def random_points(seed: int, sizes: list[int], steps: int = 8) -> Tensor:
    """Points on a raster, so that some coincide and some lie on borders."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-steps, steps + 1, (sum(sizes), 3), generator=generator) / steps


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), SIZES, st.integers(1, 16), st.booleans())
def test_leaves_are_the_cells_of_the_points(seed: int, sizes: list[int], depth: int, wrap: bool) -> None:
    points, side = random_points(seed, sizes), 2**depth
    leaves, point_leaf = octree_leaves(points, torch.tensor(sizes), depth, wrap)
    cells = ((points.double() + 1) * side / 2).floor().long()
    cells = cells % side if wrap else cells.clamp(max=side - 1)
    wanted = torch.cat([torch.repeat_interleave(torch.tensor(sizes))[:, None], cells.flip(1)], 1)
    assert deserialize(leaves, "zorder", depth)[point_leaf].long().equal(wanted)
    assert bool((leaves.diff() > 0).all())
    assert len(leaves) == len(wanted.unique(dim=0))
    assert clouds_of_keys(leaves, len(sizes)).equal(wanted.unique(dim=0)[:, 0].bincount(minlength=len(sizes)))


@pytest.mark.parametrize(("count", "depth"), [(1, 10), (3, 16)])  # keys of 32 bits, and of more
def test_many_points_give_what_the_reference_gives_on_any_number_of_threads(count: int, depth: int) -> None:
    points = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sizes = torch.tensor([20_000, *[0] * (count - 1)])
    expected_leaves, expected_leaf, counts = leaves_reference(points, sizes, depth, False)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            leaves, point_leaf = octree_leaves(points, sizes, depth)
        finally:
            torch.set_num_threads(before)
        assert leaves.equal(expected_leaves[: int(counts[0])])
        assert point_leaf.equal(expected_leaf)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), SIZES, st.integers(2, 6))
def test_nodes_and_tables_equal_the_references(seed: int, sizes: list[int], depth: int) -> None:
    leaves, _ = octree_leaves(random_points(seed, sizes), torch.tensor(sizes), depth)
    above = octree_parents(leaves)
    assert above.equal(torch.unique(octree_parent(leaves)))
    keys, children, rows = octree_grow(above, leaves)
    for ours, theirs in zip((keys, children, rows), grow_reference(above, leaves), strict=True):
        assert ours.equal(theirs)
    assert keys[rows].equal(leaves)
    # any table will do: it need not be that of an octree
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(-1, max(len(keys), 1), (len(keys), 27), generator=generator)
    ours = octree_neighbours(table, children, rows)
    assert ours.equal(neighbours_reference(table, children, rows))
    assert ours.shape == (8 * len(leaves), 27)


POINTS, ONE = torch.zeros(3, 3), torch.tensor([3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((POINTS.double(), ONE, 3), "points must be float32"),
        ((POINTS, ONE.int(), 3), "sizes must be int64"),
        ((POINTS, torch.tensor([2]), 3), "add up to the 3 points"),
        ((POINTS, torch.tensor([4, -1]), 3), "must not be negative"),
        ((POINTS, ONE, 17), "depth must be between 1 and 16"),
        ((POINTS + 1.01, ONE, 3), "3 of 3 do not"),
        ((POINTS * float("nan"), ONE, 3), "3 of 3 do not"),
        ((POINTS[:0], torch.empty(0, dtype=torch.int64), 3), "1 to 32768 clouds"),
    ],
)
def test_wrong_points_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        octree_leaves(*arguments)


TABLE, CHILD, PARENT = torch.full((2, 27), -1), torch.zeros(2, dtype=torch.int32), torch.tensor([1])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TABLE[:, 1:], CHILD, PARENT), r"above must be torch.int64 \[2, 27\]"),
        ((TABLE, CHILD[:1], PARENT), r"children must be torch.int32 \[2\]"),
        ((TABLE, CHILD, PARENT.int()), "parents must be torch.int64"),
        ((TABLE, CHILD, PARENT + 1), "must be nodes below 2"),
        ((TABLE + 3, CHILD, PARENT), "must be nodes below 2"),
        ((TABLE - 1, CHILD, PARENT), "must be nodes below 2"),
    ],
)
def test_wrong_tables_are_named(arguments: tuple, message: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr("pcdet_ext.ops.octree.has_kernels", lambda tensor: False)
    with pytest.raises(ValueError, match=message):
        octree_neighbours(*arguments)


def test_wrong_keys_are_named() -> None:
    with pytest.raises(ValueError, match="here must be int64"):
        octree_grow(torch.zeros(2, dtype=torch.int64), torch.zeros(2))
    with pytest.raises(ValueError, match="keys must be int64 with one dimension"):
        octree_parents(torch.zeros(2, 1, dtype=torch.int64))


def test_tables_on_cuda_equal_those_on_the_cpu(accelerator: Accelerator) -> None:
    points = random_points(0, [300, 200], 64)
    leaves, _ = octree_leaves(points, torch.tensor([300, 200]), 6)
    keys, children, parents = octree_grow(octree_parents(leaves), leaves)
    table = torch.randint(-1, len(keys), (len(keys), 27), generator=torch.Generator().manual_seed(0))
    expected = octree_neighbours(table, children, parents)
    inputs = [t.to(accelerator.device) for t in (table, children, parents)]
    with accelerator:
        assert octree_neighbours(*inputs).cpu().equal(expected)


@pytest.mark.parametrize(("depth", "wrap"), [(3, True), (16, False)])
def test_leaves_and_nodes_on_cuda_equal_those_on_the_cpu(accelerator: Accelerator, depth: int, wrap: bool) -> None:
    sizes = torch.tensor([0, 300, 0, 200, 0])
    points = random_points(1, sizes.tolist(), 32)
    expected = octree_leaves(points, sizes, depth, wrap)
    above = octree_parents(expected[0])
    nodes = octree_grow(above, expected[0])
    there = points.to(accelerator.device)
    with accelerator:
        found = octree_leaves(there, sizes, depth, wrap)
        grown = octree_grow(above.to(accelerator.device), found[0])
        with pytest.raises(ValueError, match="1 of 500 do not"):
            octree_leaves(torch.cat([there[1:], there[:1] * torch.nan]), sizes, depth, wrap)
    for ours, theirs in zip((*found, *grown), (*expected, *nodes), strict=True):
        assert ours.cpu().equal(theirs)
