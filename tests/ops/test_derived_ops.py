"""Operations that stand on others (flags of all boxes, paired areas, the row of a maximum, a voxel per point)."""

from __future__ import annotations

import math

import pytest
import torch
from boxes_helpers import random_boxes, shapely_overlaps
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.ops import (
    points_in_boxes,
    points_in_each_box,
    segment_argmax,
    segment_reduce,
    shared_area_bev_paired,
    voxel_coordinates,
)

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(0, 12), st.sampled_from([0.0, 0.3]))
def test_each_box_has_its_flags(seed: int, count: int, margin: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(80, 4, generator=generator, dtype=torch.float64) - 0.5) * 12
    boxes = random_boxes(seed, count)
    expected = torch.zeros(count, 80, dtype=torch.bool)
    for i, (x, y, z, dx, dy, dz, heading) in enumerate(boxes.tolist()):
        for j, (px, py, pz, _) in enumerate(points.tolist()):
            along = (px - x) * math.cos(heading) + (py - y) * math.sin(heading)
            across = (py - y) * math.cos(heading) - (px - x) * math.sin(heading)
            flat = abs(along) < dx / 2 + margin and abs(across) < dy / 2 + margin
            expected[i, j] = flat and abs(pz - z) <= dz / 2
    flags = points_in_each_box(points, boxes, margin)
    assert torch.equal(flags, expected)
    first = torch.where(flags.any(0), flags.int().argmax(0), -1) if count else torch.full((80,), -1)
    assert torch.equal(points_in_boxes(points, boxes, margin), first)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_paired_areas_equal_polygons(seed: int) -> None:
    a, b = random_boxes(seed, 20), random_boxes(seed + 1, 20)
    shared, _, _ = shapely_overlaps(a, b)
    assert torch.allclose(shared_area_bev_paired(a, b), shared.diagonal(), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(0, 40), st.integers(1, 6))
def test_the_lowest_row_of_a_maximum(seed: int, rows: int, segments: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(4, (rows, 3), generator=generator).double()  # many ties
    index = torch.randint(-1, segments, (rows,), generator=generator)
    expected = torch.full((segments, 3), -1)
    for segment in range(segments):
        for column in range(3):
            own = [(float(-values[r, column]), r) for r in range(rows) if index[r] == segment]
            expected[segment, column] = min(own)[1] if own else -1
    chosen = segment_argmax(values, index, segments)
    assert torch.equal(chosen, expected)
    highest = segment_reduce(values, index, segments, "max")
    picked = torch.cat([values, values.new_zeros(1, 3)]).gather(0, torch.where(chosen < 0, rows, chosen))
    assert torch.equal(picked, highest)


def test_a_wrong_segment_is_refused() -> None:
    with pytest.raises(ValueError, match="below num_segments 2"):
        segment_argmax(torch.zeros(3, 1), torch.tensor([0, 1, 2]), 2)


def test_a_voxel_per_point() -> None:
    extent, size = [0.0, -2.0, -1.0, 4.0, 2.0, 1.0], [0.5, 1.0, 2.0]
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(300, 4, generator=generator) - 0.25) * 5
    points[0, 0], points[1, 1], points[2] = math.nan, math.inf, torch.tensor([4.0, 0, 0, 0])  # the end is outside
    expected = []
    for x, y, z, _ in points.tolist():
        inside = 0 <= x < 4 and -2 <= y < 2 and -1 <= z < 1
        expected.append([math.floor((z + 1) / 2), math.floor(y + 2), math.floor(x / 0.5)] if inside else [-1] * 3)
    found = voxel_coordinates(points, extent, size)
    assert found.dtype == torch.int32
    assert found.tolist() == expected
    assert 50 < int((found[:, 0] >= 0).sum()) < 250


def test_voxels_of_no_points_and_of_no_grid() -> None:
    assert voxel_coordinates(torch.zeros(0, 3), [0, 0, 0, 1, 1, 1], [1, 1, 1]).shape == (0, 3)
    with pytest.raises(ValueError, match="positive and finite"):
        voxel_coordinates(torch.zeros(1, 3), [0, 0, 0, 1, 1, 1], [1, 0, 1])
