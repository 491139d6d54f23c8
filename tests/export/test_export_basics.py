"""Operations written with basic operators give what the kernels give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.export import basics, boxes, voxels
from pcdet_ext.ops import dynamic_voxelize, iou_bev_paired, nms, segment_reduce, voxelize

RANGE, SIZE = (0.0, -4.0, -2.0, 8.0, 4.0, 2.0), (0.5, 0.25, 1.0)


def some_boxes(count: int, seed: int) -> Tensor:
    """Boxes [count, 7] that overlap often; some the same, some quarter turns, some of no size or not finite."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(count, 7, generator=generator) * torch.tensor([6, 6, 1, 4, 2, 2, 7.0])
    if count > 8:
        found[1] = found[0]
        found[2, 6] = found[0, 6] + torch.pi / 2
        found[2, :6] = found[0, [0, 1, 2, 4, 3, 5]]
        found[3, 3] = 0
        found[4, 0] = torch.nan
    return found


@given(st.integers(0, 40), st.integers(0, 10**6), st.sampled_from(["rotated", "axis_aligned", "circle"]))
@settings(max_examples=40, deadline=None)
def test_nms(count: int, seed: int, kind: str) -> None:
    found = some_boxes(count, seed)
    scores = torch.randint(0, 20, (count,), generator=torch.Generator().manual_seed(seed)) / 20
    limits = (None, None) if seed % 2 else (30, 5)
    for threshold in (0.0, 0.1, 0.7):
        expected = nms(found, scores, threshold, kind, *limits)
        torch.testing.assert_close(boxes.nms(found, scores, threshold, kind, *limits), expected)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_overlap(seed: int) -> None:
    a, b = some_boxes(60, seed).double().chunk(2)
    torch.testing.assert_close(boxes.overlap(a, b), iou_bev_paired(a, b), rtol=0, atol=1e-9)
    torch.testing.assert_close(boxes.overlap(a, a), iou_bev_paired(a, a), rtol=0, atol=1e-9)


def test_published_overlap_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="published"):
        boxes.nms(some_boxes(3, 0), torch.rand(3), 0.1, published=True)


@given(st.integers(0, 60), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_voxels(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 4, generator=generator) * torch.tensor([9, 9, 5, 1.0]) - torch.tensor([0.5, 4.5, 2.5, 0])
    points[:, :2] = (points[:, :2] / 2).round() * 2 if seed % 2 else points[:, :2]
    for caps in ((5, 100), (2, 3)):
        for mine, expected in zip(
            voxels.voxelize(points, RANGE, SIZE, *caps), voxelize(points, RANGE, SIZE, *caps), strict=True
        ):
            torch.testing.assert_close(mine, expected, check_dtype=False)
    frame = torch.zeros(count, dtype=torch.int64)
    for options in (("zyx", False), ("xyz", False), ("zyx", True)):
        expected = dynamic_voxelize(points, frame, RANGE, SIZE, *options)
        for mine, known in zip(voxels.dynamic_voxelize(points, frame, RANGE, SIZE, *options), expected, strict=True):
            torch.testing.assert_close(mine, known)


@given(st.lists(st.integers(-1, 6), max_size=30), st.sampled_from(["sum", "mean", "max", "min"]))
@settings(max_examples=30, deadline=None)
def test_segments(index: list[int], reduce: str) -> None:
    values, places = torch.randn(len(index), 3), torch.tensor(index, dtype=torch.int64)
    torch.testing.assert_close(
        basics.segment_reduce(values, places, 7, reduce),
        segment_reduce(values, places, 7, reduce),  # type: ignore[arg-type]
    )


@given(st.lists(st.integers(0, 9), max_size=20))
@settings(max_examples=30, deadline=None)
def test_unique_and_repeats(numbers: list[int]) -> None:
    values = torch.tensor(numbers, dtype=torch.int64)
    for mine, expected in zip(
        basics.unique(values), torch.unique(values, return_inverse=True, return_counts=True), strict=True
    ):
        torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(basics.repeat_each(values + 1), torch.repeat_interleave(values + 1))
