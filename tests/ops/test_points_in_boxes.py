"""Points in boxes against shapely, and the borders that the definition names."""

from __future__ import annotations

import math

import pytest
import shapely
import torch
from boxes_helpers import polygons, random_boxes
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.ops import points_in_boxes
from pcdet_ext.ops.boxes import _points_in_boxes
from pcdet_ext.ops.boxes_reference import points_in_boxes_reference

SEEDS = st.integers(0, 2**32 - 1)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
nan, inf = math.nan, math.inf


def random_points(seed: int, count: int, side: float = 8.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([2 * side, 2 * side, 4, 1], dtype=dtype)
    return (torch.rand(count, 4, generator=generator, dtype=dtype) - 0.5) * scale


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.01, 0.5]), st.integers(0, 40))
def test_equals_polygons(seed: int, margin: float, count: int) -> None:
    points, boxes = random_points(seed, 300), random_boxes(seed, count)
    wide = boxes.clone()
    wide[:, 3:5] += 2 * margin
    above = shapely.contains_xy(polygons(wide)[None], points[:, 0:1].numpy(), points[:, 1:2].numpy())
    height = (points[:, 2:3] - boxes[:, 2]).abs() <= boxes[:, 5] / 2
    inside = torch.from_numpy(above).reshape(300, count) & height
    expected = [next((j for j in range(count) if row[j]), -1) for row in inside.tolist()]
    assert points_in_boxes(points, boxes, margin).tolist() == expected


@DTYPES
@pytest.mark.parametrize("heading", [0.0, math.pi / 2, math.pi])
def test_top_and_bottom_belong_to_a_box_and_its_sides_do_not(heading: float, dtype: torch.dtype) -> None:
    box = torch.tensor([[0, 0, 0, 4, 4, 2, heading]], dtype=dtype)
    on = torch.tensor([[0, 0, 1], [0, 0, -1], [1.9, -1.9, 1], [0, 0, 1.0001]], dtype=dtype)
    assert points_in_boxes(on, box).tolist() == [0, 0, 0, -1]
    if heading == 0:
        sides = torch.tensor([[2, 0, 0], [-2, 0, 0], [0, 2, 0], [0, -2, 0]], dtype=dtype)
        assert points_in_boxes(sides, box).tolist() == [-1] * 4
        assert points_in_boxes(sides, box, 1e-5).tolist() == [0] * 4


def test_the_margin_does_not_raise_a_box() -> None:
    box = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0]])
    points = torch.tensor([[2.3, 0, 0], [0, 1.3, 0], [0, 0, 0.7]])
    assert points_in_boxes(points, box, 0.5).tolist() == [0, 0, -1]


def test_the_lowest_number_wins() -> None:
    boxes = random_boxes(0, 1).repeat(5, 1)
    boxes[0, 0] += 1000
    assert points_in_boxes(boxes[1:2, :3], boxes).tolist() == [1]


@DTYPES
def test_native_equals_the_reference(dtype: torch.dtype) -> None:
    points, boxes = random_points(0, 5000, 20.0, dtype), random_boxes(0, 150, 20.0, dtype)
    for margin in (0.0, 0.01):
        assert torch.equal(points_in_boxes(points, boxes, margin), points_in_boxes_reference(points, boxes, margin))


@DTYPES
def test_broken_points_and_boxes_meet_nothing(dtype: torch.dtype) -> None:
    box = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0.3]], dtype=dtype)
    point = torch.zeros(1, 3, dtype=dtype)
    for column in range(3):
        for value in (nan, inf, -inf):
            broken = point.clone()
            broken[0, column] = value
            assert points_in_boxes(broken, box).tolist() == [-1]
    changes = [(column, value) for column in range(7) for value in (nan, inf, -inf)]
    changes += [(column, value) for column in (3, 4, 5) for value in (-1e-6, -1.0)]
    for column, value in changes:
        broken = box.clone()
        broken[0, column] = value
        for margin in (0.0, 2.0):  # which would make a positive size of a negative one
            for find in (points_in_boxes, points_in_boxes_reference):
                assert find(point, torch.cat([broken, box]), margin).tolist() == [1]


@DTYPES
def test_boxes_without_extent_hold_what_their_margin_holds(dtype: torch.dtype) -> None:
    points = torch.tensor([[0.0, 0, 0], [0, 0.05, 0], [0, 0, 0.05]], dtype=dtype)
    for find in (points_in_boxes, points_in_boxes_reference):
        assert find(points, torch.zeros(1, 7, dtype=dtype), 0.1).tolist() == [0, 0, -1]
        assert find(points, torch.zeros(1, 7, dtype=dtype), 0.0).tolist() == [-1, -1, -1]
        flat = torch.tensor([[0.0, 0, 0, 1, 1, 0, 0]], dtype=dtype)
        assert find(points, flat, 0.0).tolist() == [0, 0, -1]


@pytest.mark.parametrize("margin", [nan, inf, -inf])
def test_margins_are_finite(margin: float) -> None:
    with pytest.raises(ValueError, match="margin must be finite"):
        points_in_boxes(torch.zeros(1, 3), torch.ones(1, 7), margin)


@DTYPES
def test_empty_inputs_and_further_columns(dtype: torch.dtype) -> None:
    points, boxes = random_points(0, 9, dtype=dtype), random_boxes(0, 4, dtype=dtype)
    assert points_in_boxes(points[:0], boxes).shape == (0,)
    assert points_in_boxes(points, boxes[:0]).tolist() == [-1] * 9
    velocity = torch.cat([boxes, torch.full((4, 2), nan, dtype=dtype)], 1)
    assert torch.equal(points_in_boxes(points, velocity), points_in_boxes(points[:, :3], boxes))


def test_wrong_arguments_are_named() -> None:
    points, boxes = random_points(0, 3), random_boxes(0, 3)
    with pytest.raises(ValueError, match=r"boxes must be \[N, 7\+\], got \[3, 5\]"):
        points_in_boxes(points, boxes[:, :5])
    with pytest.raises(ValueError, match=r"points must be floating point \[P, 3\+\], got torch.float64 \[3, 2\]"):
        points_in_boxes(points[:, :2], boxes)
    with pytest.raises(ValueError, match="points must be floating point"):
        points_in_boxes(points.long(), boxes)


def test_op_is_well_registered() -> None:
    torch.library.opcheck(_points_in_boxes, (random_points(0, 9), random_boxes(0, 4), 0.01))


@DTYPES
@pytest.mark.parametrize("count", [0, 1, 129, 500])  # around the boxes that fit into shared memory
def test_cuda_equals_cpu(accelerator: Accelerator, count: int, dtype: torch.dtype) -> None:
    points, boxes = random_points(1, 2000, 30.0, dtype), random_boxes(1, count, 30.0, dtype)
    expected = points_in_boxes(points, boxes, 0.01)
    points, boxes = points.to(accelerator.device), boxes.to(accelerator.device)
    with accelerator:
        ours = points_in_boxes(points, boxes, 0.01).cpu()
    assert (ours != expected).sum() <= 1  # a point within rounding of a side
