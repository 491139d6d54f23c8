"""Octrees against sets of cells."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.grouping.octree import KERNELS, Octree, build_octree, input_features


def random_clouds(seed: int, sizes: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 3, generator=generator) * 2 - 1 for n in sizes]


def cells_of(clouds: list[Tensor], depth: int) -> set[tuple[int, ...]]:
    """(cloud, x, y, z) of the cells with points."""
    found = set()
    for b, cloud in enumerate(clouds):
        cells = ((cloud.double() + 1) * 2 ** (depth - 1)).floor().long().clamp(max=2**depth - 1)
        found |= {(b, *cell) for cell in cells.tolist()}
    return found


def all_nodes(clouds: list[Tensor], depth: int, full_depth: int) -> set[tuple[int, ...]]:
    if depth <= full_depth:
        side = range(2**depth)
        return {(b, x, y, z) for b in range(len(clouds)) for x in side for y in side for z in side}
    offsets = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    return {
        (b, *(2 * p + o for p, o in zip(parent, offset, strict=True)))
        for b, *parent in cells_of(clouds, depth - 1)
        for offset in offsets
    }


def listed(octree: Octree, depth: int, nempty: bool) -> list[tuple[int, ...]]:
    return [(b, x, y, z) for b, z, y, x in octree.coords(depth, nempty).tolist()]


CLOUDS = st.lists(st.integers(0, 12), min_size=1, max_size=3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), CLOUDS, st.integers(1, 4), st.integers(1, 4))
def test_nodes_children_and_neighbours_are_those_of_the_cells(
    seed: int, sizes: list[int], depth: int, full_depth: int
) -> None:
    clouds, full_depth = random_clouds(seed, sizes), min(depth, full_depth)
    octree = build_octree(clouds, depth, full_depth)
    for d, level in enumerate(octree.levels):
        nodes = listed(octree, d, nempty=False)
        assert len(set(nodes)) == len(nodes)
        assert set(nodes) == all_nodes(clouds, d, full_depth)
        assert torch.equal(level.keys, level.keys.sort().values)
        assert level.counts.tolist() == [sum(n[0] == b for n in nodes) for b in range(len(clouds))]
        occupied = listed(octree, d, nempty=True)
        assert set(occupied) == (set(nodes) if d < full_depth else cells_of(clouds, d))
        place = {node: i for i, node in enumerate(nodes)}
        for node, row in zip(nodes, octree.neighbours(d).tolist(), strict=True):
            b, x, y, z = node
            around = [(b, x + i, y + j, z + k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]
            assert row == [place.get(cell, -1) for cell in around]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), CLOUDS)
def test_tables_and_search_agree(seed: int, sizes: list[int]) -> None:
    octree = build_octree(random_clouds(seed, sizes), 4)
    for nempty in (True, False):
        rows = octree.coords(4, nempty)
        assert torch.equal(octree.search(rows, 4, nempty), torch.arange(len(rows)))
        table = octree.table(4, "222", 2, nempty)
        parents = octree.coords(3, nempty=True)
        for column in range(8):  # with stride 2, columns are octants
            child = parents.clone()
            child[:, 1:] = 2 * parents[:, 1:] + torch.tensor([column & 1, column >> 1 & 1, column >> 2 & 1]).int()
            assert torch.equal(table[:, column], octree.search(child, 4, nempty))
    outside = torch.tensor([[0, -1, 0, 0], [0, 0, 16, 0], [len(sizes), 0, 0, 0], [-1, 0, 0, 0]])
    assert octree.search(outside, 4).tolist() == [-1] * 4


def test_a_point_on_the_upper_side_lies_in_the_last_cell_or_wraps() -> None:
    point = [torch.tensor([[1.0, 0.0, -1.0]])]
    assert listed(build_octree(point, 3), 3, True) == [(0, 7, 4, 0)]
    assert listed(build_octree(point, 3, wrap=True), 3, True) == [(0, 0, 4, 0)]


def test_signals_of_leaves_are_means_of_their_points() -> None:
    points = torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [-0.9, 0.4, 0.4]])
    normals, features = torch.eye(3), torch.tensor([[1.0], [3.0], [5.0]])
    octree = build_octree([points], 1, 1, [normals], [features])
    assert octree.point_leaf.tolist() == [1, 1, 0]
    torch.testing.assert_close(octree.features, torch.tensor([[5.0], [2.0]]))
    torch.testing.assert_close(octree.normals[1], torch.tensor([0.5**0.5, 0.5**0.5, 0.0]))
    torch.testing.assert_close(input_features(octree, "fp"), torch.cat([octree.points - 1, octree.features], 1))


def test_kernels_read_the_box_that_their_name_says() -> None:
    for name, columns in KERNELS.items():
        steps = {axis: {c // 3 ** (2 - i) % 3 for c in columns} for i, axis in enumerate("xyz")}
        assert [len(steps[axis]) for axis in "xyz"] == [int(digit) for digit in name]
        assert len(columns) == int(name[0]) * int(name[1]) * int(name[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": [torch.tensor([[0.0, 0.0, 1.1]])]}, r"must lie in \[-1, 1\]"),
        ({"points": [torch.tensor([[0.0, 0.0, float("nan")]])]}, r"must lie in \[-1, 1\]"),
        ({"points": []}, "one tensor per cloud"),
        ({"points": [torch.zeros(1, 3)], "depth": 17}, "depth 17"),
        ({"points": [torch.zeros(1, 3)], "full_depth": 5}, "full_depth 5"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_octree(**({"depth": 4} | arguments))
