"""Octrees as tokens: there and back again, against a definition by sets, and damaged sequences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops import OctreeTokens, octree_from_tokens, octree_tokens, serialize
from pcdet_ext.ops.octree_tokens import (
    _check,
    _decode,
    _encode,
    check_reference,
    decode_reference,
    encode_reference,
)

SIZES = st.lists(st.integers(0, 25), min_size=1, max_size=4)
DEPTHS = st.sampled_from([1, 2, 3, 5, 10, 16])


def random_cells(seed: int, sizes: list[int], depth: int) -> Tensor:
    """Cells near some corners of the grid, with duplicates, in any order."""
    generator = torch.Generator().manual_seed(seed)
    near = torch.randint(min(4, 2**depth), (sum(sizes), 3), generator=generator)
    far = torch.randint(2, (sum(sizes), 3), generator=generator) * (2**depth - min(4, 2**depth))
    batch = torch.repeat_interleave(torch.tensor(sizes))
    coords = torch.cat([batch[:, None], near + far], 1).int()
    return coords[torch.randperm(len(coords), generator=generator)]


def in_order(coords: Tensor, depth: int) -> Tensor:
    """Distinct cells in z-order."""
    coords = coords.unique(dim=0)
    return coords[serialize(coords, (2**depth,) * 3, "zorder").argsort()]


def by_sets(coords: Tensor, batch_size: int, depth: int) -> list[int]:
    """Occupancy from sets of cells, node by node."""
    cells = {tuple(row) for row in coords.tolist()}
    tokens, nodes = [], [(b, 0, 0, 0) for b in range(batch_size)]
    for d in range(1, depth + 1):
        occupied = {(b, *(c >> (depth - d) for c in (z, y, x))) for b, z, y, x in cells}
        children = []
        for b, z, y, x in nodes:
            found = [
                (o, (b, 2 * z + (o & 1), 2 * y + (o >> 1 & 1), 2 * x + (o >> 2)))
                for o in range(8)
                if (b, 2 * z + (o & 1), 2 * y + (o >> 1 & 1), 2 * x + (o >> 2)) in occupied
            ]
            tokens.append(sum(1 << o for o, _ in found))
            children += [child for _, child in found]
        nodes = children
    return tokens


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1000), SIZES, DEPTHS, st.booleans())
def test_cells_come_back_exactly(seed: int, sizes: list[int], depth: int, anisotropic: bool) -> None:
    coords = random_cells(seed, sizes, depth)
    tokens = octree_tokens(coords, len(sizes), depth, anisotropic)
    assert octree_from_tokens(tokens).equal(in_order(coords, depth))
    if not anisotropic:
        assert tokens.occupancy.tolist() == by_sets(coords, len(sizes), depth)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), SIZES, DEPTHS)
def test_kernels_equal_the_references(seed: int, sizes: list[int], depth: int) -> None:
    coords = random_cells(seed, sizes, depth)
    keys = serialize(coords, (2**depth,) * 3, "zorder").unique()
    tokens, counts = _encode(keys, depth, len(sizes))
    expected = encode_reference(keys, depth, len(sizes))
    assert counts.equal(expected[1])
    tokens = tokens[: int(counts.sum())]
    assert tokens.equal(expected[0])
    assert _decode(tokens, depth, len(sizes), len(keys)).equal(decode_reference(tokens, depth, len(sizes), len(keys)))
    assert _check(tokens, depth, len(sizes)).equal(check_reference(tokens, depth, len(sizes)))


@pytest.mark.parametrize("depth", [1, 2, 5, 16])
@pytest.mark.parametrize("anisotropic", [False, True])
def test_cuda_equals_cpu(accelerator: Accelerator, depth: int, anisotropic: bool) -> None:
    sizes = [0, 40, 0, 70, 3, 0]
    coords = random_cells(depth, sizes, depth)
    expected = octree_tokens(coords, len(sizes), depth, anisotropic)
    there = coords.to(accelerator.device)
    with accelerator:
        found = octree_tokens(there, len(sizes), depth, anisotropic)
        again = octree_from_tokens(found)
        nothing = octree_from_tokens(octree_tokens(there[:0], 2, depth, anisotropic))
        with pytest.raises(ValueError, match="damaged tokens"):
            octree_from_tokens(replace(found, cells=found.cells + 1))
    assert found.occupancy.cpu().equal(expected.occupancy)
    assert again.cpu().equal(in_order(coords, depth))
    assert nothing.shape == (0, 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=30), st.integers(1, 4), st.integers(1, 3))
def test_any_sequence_is_decoded_or_refused_alike(values: list[int], depth: int, batch_size: int) -> None:
    tokens = torch.tensor(values, dtype=torch.uint8)
    report = _check(tokens, depth, batch_size)
    assert report.equal(check_reference(tokens, depth, batch_size))
    cells, fault = report[:2].tolist()
    sequence = OctreeTokens(tokens, depth, batch_size, cells)
    if fault:
        with pytest.raises(ValueError, match="damaged tokens"):
            octree_from_tokens(sequence)
    else:
        again = octree_tokens(octree_from_tokens(sequence), batch_size, depth)
        assert again.occupancy.equal(tokens)


def box(low: tuple[int, int, int], high: tuple[int, int, int]) -> Tensor:
    """All cells (0, z, y, x) from low to below high, corners as (x, y, z)."""
    x, y, z = (torch.arange(a, b) for a, b in zip(low, high, strict=True))
    return torch.cartesian_prod(torch.zeros(1, dtype=torch.int64), z, y, x).int()


@pytest.mark.parametrize(
    ("cells", "splits", "occupancy"),
    [
        (box((0, 0, 0), (8, 8, 8)), [0], [1]),  # full
        (box((0, 0, 2), (8, 8, 3)), [1, 1, 1], [1, 2, 1]),  # a floor: only z is split
        (box((4, 0, 0), (8, 8, 8)), [4, 0], [1 << 4, 1]),  # the half with large x
        (box((5, 0, 3), (6, 8, 4)), [5, 5, 5], [1 << 4, 1 << 1, 1 << 5]),  # a rod along y
    ],
)
def test_only_the_axes_that_need_it_are_split(cells: Tensor, splits: list[int], occupancy: list[int]) -> None:
    tokens = octree_tokens(cells, 1, 3, anisotropic=True)
    assert tokens.splits.tolist() == splits
    assert tokens.occupancy.tolist() == occupancy
    assert octree_from_tokens(tokens).equal(in_order(cells, 3))


@pytest.mark.parametrize("anisotropic", [False, True])
def test_empty_clouds_are_roots_without_children(anisotropic: bool) -> None:
    none = torch.empty(0, 4, dtype=torch.int32)
    tokens = octree_tokens(none, 3, 5, anisotropic)
    assert tokens.occupancy.tolist() == [0, 0, 0]
    assert octree_from_tokens(tokens).equal(none)


FLOOR = octree_tokens(box((0, 0, 2), (8, 8, 3)), 1, 3, anisotropic=True)
PLAIN = octree_tokens(torch.tensor([[0, 3, 2, 1], [1, 0, 0, 7]], dtype=torch.int32), 2, 3)


def changed(values: Tensor, place: int, value: int) -> Tensor:
    values = values.clone()
    values[place] = value
    return values


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (replace(PLAIN, occupancy=PLAIN.occupancy[:-1]), "ends after 5 tokens, inside of depth 2"),
        (replace(PLAIN, occupancy=PLAIN.occupancy[:1]), "ends after 1 tokens, inside of depth 0"),
        (replace(PLAIN, occupancy=torch.cat([PLAIN.occupancy, PLAIN.occupancy])), "6 tokens are left over"),
        (replace(PLAIN, occupancy=changed(PLAIN.occupancy, 3, 0)), "token 3 at depth 1 has no children"),
        (replace(PLAIN, cells=1), "stand for 2 cells, but say 1"),
        (replace(PLAIN, occupancy=changed(PLAIN.occupancy, 5, 255)), "stand for 9 cells, but say 2"),
        (replace(PLAIN, occupancy=PLAIN.occupancy.int()), "occupancy must be uint8"),
        (replace(PLAIN, splits=PLAIN.occupancy[:2]), "splits must be uint8"),
        (replace(PLAIN, depth=17), "depth must be between 1 and 16"),
        (replace(PLAIN, batch_size=0), "batch_size must be between 1 and 32768"),
        (replace(FLOOR, splits=changed(FLOOR.splits, 1, 3)), "token 1 at depth 1 splits axes that a node above"),
        (replace(FLOOR, splits=changed(FLOOR.splits, 0, 8)), "token 0 at depth 0 splits axes"),
        (replace(FLOOR, occupancy=changed(FLOOR.occupancy, 0, 1 << 4)), "token 0 at depth 0 has children along axes"),
        (replace(FLOOR, occupancy=changed(FLOOR.occupancy, 2, 0)), "token 2 at depth 2 has no children"),
        (replace(FLOOR, occupancy=changed(FLOOR.occupancy, 0, 0)), "token 0 at depth 0 has no children"),
        (replace(FLOOR, occupancy=FLOOR.occupancy[:2], splits=FLOOR.splits[:2]), "ends after 2 tokens"),
        (replace(FLOOR, splits=changed(FLOOR.splits, 1, 0), cells=64), "has children along axes|left over"),
        (replace(FLOOR, cells=63), "stand for 64 cells, but say 63"),
        (
            OctreeTokens(torch.ones(1, dtype=torch.uint8), 16, 1, 5, torch.zeros(1, dtype=torch.uint8)),
            "stand for 281474976710656 cells, but say 5",  # refused before they are made
        ),
    ],
)
def test_damaged_sequences_are_refused(tokens: OctreeTokens, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        octree_from_tokens(tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coords": torch.zeros(1, 3, dtype=torch.int32)}, "coords must be int32"),
        ({"coords": torch.tensor([[0, 8, 0, 0]], dtype=torch.int32)}, "outside the grid"),
        ({"coords": torch.tensor([[2, 0, 0, 0]], dtype=torch.int32)}, "batch index 2, batch_size is 2"),
        ({"depth": 0}, "depth must be between"),
        ({"batch_size": 40_000}, "batch_size must be between"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    arguments = {"coords": torch.zeros(1, 4, dtype=torch.int32), "batch_size": 2, "depth": 3}
    with pytest.raises(ValueError, match=message):
        octree_tokens(**(arguments | change))
