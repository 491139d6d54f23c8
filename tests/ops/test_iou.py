"""Overlaps against polygons, published values, and what must hold for any two boxes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from boxes_helpers import random_boxes, shapely_overlaps
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.ops import iou_3d, iou_3d_paired, iou_bev, iou_bev_paired, shared_area_bev
from pcdet_ext.ops.boxes import _iou_matrix, _iou_paired
from pcdet_ext.ops.boxes_reference import AREA, BEV, VOLUME, iou_matrix_reference, iou_paired_reference

SEEDS = st.integers(0, 2**32 - 1)
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-9}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
nan, inf = math.nan, math.inf


def box(x=0.0, y=0.0, z=0.0, dx=4.0, dy=2.0, dz=1.5, heading=0.0, dtype=torch.float32) -> torch.Tensor:
    return torch.tensor([[x, y, z, dx, dy, dz, heading]], dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.5, 30), st.sampled_from([torch.float32, torch.float64]))
def test_equals_polygons(seed: int, side: float, dtype: torch.dtype) -> None:
    a, b = random_boxes(seed, 12, side, dtype), random_boxes(seed + 1, 9, side, dtype)
    area, bev, volume = shapely_overlaps(a, b)
    for ours, theirs in ((iou_bev(a, b), bev), (iou_3d(a, b), volume), (shared_area_bev(a, b), area)):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6 if dtype == torch.float32 else 1e-9, atol=1e-9)


def assert_equals_exact_clip(path: Path, dtype: torch.dtype) -> None:
    """Pairs of KITTI labels (h, w, l, x, y, z, ry; camera frame): y points down, ry turns clockwise in (x, z)."""
    pairs = np.load(path, allow_pickle=False)
    a, b = (
        torch.from_numpy(
            np.column_stack([p[:, 3], p[:, 5], p[:, 4] - p[:, 0] / 2, p[:, 2], p[:, 1], p[:, 0], -p[:, 6]])
        )
        for p in (pairs["det"], pairs["gt"])
    )
    tolerance = 3e-5 if dtype == torch.float32 else 1e-9  # rounding the smallest boxes' labels to float32 costs 1.4e-5
    for ours, key in ((iou_bev_paired, "bev_iou_exact_clip"), (iou_3d_paired, "iou_3d_exact_clip")):
        error = (ours(a.to(dtype), b.to(dtype)).double() - torch.from_numpy(pairs[key])).abs()
        assert error.max() <= tolerance, f"{key}: {error.max()} in a pair of kind {pairs['kind'][error.argmax()]}"


@DTYPES
def test_kitti_pairs(root: Path, dtype: torch.dtype) -> None:
    assert_equals_exact_clip(root / "tests/data/iou_pairs.npz", dtype)


@DTYPES
def test_all_kitti_pairs(shared: Path, dtype: torch.dtype) -> None:
    assert_equals_exact_clip(shared / "golden/eval_kitti/iou_pairs.npz", dtype)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(-math.pi, math.pi), st.floats(-5e6, 5e6), st.floats(-5e6, 5e6))
def test_a_common_motion_changes_nothing(seed: int, angle: float, x: float, y: float) -> None:
    """Also far from the origin, such as in map coordinates."""
    a, b = random_boxes(seed, 8, 2.0), random_boxes(seed + 1, 8, 2.0)
    cos, sin = math.cos(angle), math.sin(angle)

    def moved(boxes: torch.Tensor) -> torch.Tensor:
        turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=boxes.dtype)
        place = boxes[:, :2] @ turn + torch.tensor([x, y], dtype=boxes.dtype)
        return torch.cat([place, boxes[:, 2:6], boxes[:, 6:] + angle], 1)

    torch.testing.assert_close(iou_bev(moved(a), moved(b)), iou_bev(a, b), rtol=0, atol=1e-8)
    torch.testing.assert_close(iou_3d(moved(a), moved(b)), iou_3d(a, b), rtol=0, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.5, 20), st.sampled_from([torch.float32, torch.float64]))
def test_symmetric_and_bounded(seed: int, side: float, dtype: torch.dtype) -> None:
    a, b = random_boxes(seed, 20, side, dtype), random_boxes(seed + 1, 20, side, dtype)
    for overlap in (iou_bev, iou_3d):
        there, back = overlap(a, b), overlap(b, a).T
        assert ((there >= 0) & (there <= 1)).all()
        torch.testing.assert_close(there, back, rtol=0, atol=TOLERANCE[dtype])
    smaller = torch.minimum((a[:, 3] * a[:, 4])[:, None], b[:, 3] * b[:, 4])
    assert (shared_area_bev(a, b) <= smaller * (1 + 1e-6)).all()


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0, 1000), st.sampled_from([torch.float32, torch.float64]))
def test_identical_and_flipped_boxes_overlap_entirely(seed: int, side: float, dtype: torch.dtype) -> None:
    a = random_boxes(seed, 10, side, dtype)
    flipped = torch.cat([a[:, :6], a[:, 6:] + math.pi], 1)
    crossed = torch.cat([a[:, :3], a[:, [4, 3, 5]], a[:, 6:] + math.pi / 2], 1)
    for other in (a, flipped, crossed):
        for overlap in (iou_bev_paired, iou_3d_paired):
            rounding = 1e-5 if dtype == torch.float32 else 1e-9  # that of heading + π
            torch.testing.assert_close(overlap(a, other), torch.ones(10, dtype=dtype), rtol=0, atol=rounding)
    assert (iou_bev_paired(a.float(), a.float()) == 1).all()


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.1, 0.9))
def test_a_box_inside_another_shares_its_own_area(seed: int, share: float) -> None:
    outer = random_boxes(seed, 10)
    inner = outer.clone()
    inner[:, 3:6] *= share
    torch.testing.assert_close(iou_bev_paired(outer, inner), torch.full((10,), share**2, dtype=torch.float64))
    torch.testing.assert_close(iou_3d_paired(outer, inner), torch.full((10,), share**3, dtype=torch.float64))


@DTYPES
@pytest.mark.parametrize("heading", [0.0, math.pi / 2, math.pi, -math.pi / 2, 1e-12])
@pytest.mark.parametrize(("x", "y"), [(4.0, 0.0), (0.0, 2.0), (4.0, 2.0), (-4.0, 0.0)])
def test_touching_boxes_share_nothing(x: float, y: float, heading: float, dtype: torch.dtype) -> None:
    size = (4.0, 2.0) if abs(math.cos(heading)) > 0.5 else (2.0, 4.0)
    other = box(x, y, dx=size[0], dy=size[1], heading=heading, dtype=dtype)
    assert iou_bev(box(dtype=dtype), other).item() == pytest.approx(0, abs=1e-7)
    assert iou_bev(box(100, -30, dtype=dtype), other + box(100, -30, 0, 0, 0, 0, 0, dtype)).item() < 1e-6


def test_known_values() -> None:
    square = box(dx=2, dy=2)
    octagon = 8 * (math.sqrt(2) - 1)  # two unit-radius squares turned by 45° share a regular octagon of inradius 1
    turned = box(dx=2, dy=2, heading=math.pi / 4)
    assert shared_area_bev(square, turned).item() == pytest.approx(octagon, rel=1e-6)
    assert iou_bev(square, turned).item() == pytest.approx(octagon / (8 - octagon), rel=1e-6)
    assert iou_bev(box(), box(x=2)).item() == pytest.approx(1 / 3)
    assert iou_3d(box(), box(x=2, z=0.75)).item() == pytest.approx(2 * 0.75 * 2 / (24 - 3))
    assert iou_3d(box(), box(z=1.5)).item() == 0
    assert iou_bev(box(dx=20, dy=0.02), box(dx=20, dy=0.02, heading=math.pi / 2)).item() == pytest.approx(
        0.0004 / (0.8 - 0.0004), rel=1e-5
    )


BROKEN = [
    box(dx=0.0),
    box(dy=-2.0),
    box(dx=0.0, dy=0.0),
    *[box(**{name: value}) for name in ("dx", "dy") for value in (0.0, -0.0, -1.0)],
    *[box(dz=value) for value in (-1e-6, -1.0, -inf)],
    *[box(**{name: value}) for name in ("x", "y", "dx", "dy", "heading") for value in (nan, inf, -inf)],
]


@DTYPES
@pytest.mark.parametrize("broken", BROKEN)
def test_broken_boxes_overlap_nothing(broken: torch.Tensor, dtype: torch.dtype) -> None:
    broken, boxes = broken.to(dtype), torch.cat([box(), broken, box(1, 1)]).to(dtype)
    for overlap in (iou_bev, iou_3d, shared_area_bev):
        assert (overlap(broken, boxes) == 0).all()
        assert (overlap(boxes, broken) == 0).all()
        assert (overlap(broken, broken) == 0).all()
    for overlap in (iou_bev_paired, iou_3d_paired):
        assert overlap(broken.expand(3, 7), boxes).tolist() == [0, 0, 0]
    assert iou_bev(boxes, boxes)[0, 2] > 0
    for kind in (BEV, VOLUME, AREA):
        assert torch.equal(iou_matrix_reference(broken, boxes, kind), torch.zeros(1, 3, dtype=dtype))


@DTYPES
@pytest.mark.parametrize("change", [{"dz": 0.0}, {"dz": -0.0}, {"dz": nan}, {"dz": inf}, {"z": nan}, {"z": -inf}])
def test_without_a_height_there_is_a_footprint_and_no_volume(change: dict[str, float], dtype: torch.dtype) -> None:
    flat, whole = box(**change, dtype=dtype), box(dtype=dtype)
    for a, b in ((whole, flat), (flat, whole), (flat, flat)):
        for kind, expected in ((BEV, 1), (VOLUME, 0)):
            assert iou_matrix_reference(a, b, kind).item() == expected
        assert (iou_bev(a, b).item(), iou_bev_paired(a, b).item()) == (1, 1)
        assert (iou_3d(a, b).item(), iou_3d_paired(a, b).item()) == (0, 0)


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_tiny_and_huge_boxes(size: float) -> None:
    a, b = random_boxes(0, 30, 1.0), random_boxes(1, 30, 1.0)
    scaled = torch.tensor([size] * 6 + [1.0], dtype=torch.float64)
    torch.testing.assert_close(iou_bev(a * scaled, b * scaled), iou_bev(a, b), rtol=1e-7, atol=1e-9)
    car = box(100.0, 50.0, heading=0.3, dtype=torch.float64)
    town = box(dx=5000.0, dy=3000.0, heading=0.2, dtype=torch.float64)
    assert shared_area_bev(town, car).item() == pytest.approx(8.0, rel=1e-9)
    assert shared_area_bev(car, town).item() == pytest.approx(8.0, rel=1e-9)


@DTYPES
def test_native_kernels_equal_the_references(dtype: torch.dtype) -> None:
    a, b = random_boxes(0, 70, 4.0, dtype), random_boxes(1, 600, 4.0, dtype)  # more than a block of columns
    for kind in (BEV, VOLUME, AREA):
        torch.testing.assert_close(
            _iou_matrix(a, b, kind), iou_matrix_reference(a, b, kind), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )
        torch.testing.assert_close(
            _iou_paired(a, b[:70], kind),
            iou_paired_reference(a, b[:70], kind),
            rtol=TOLERANCE[dtype],
            atol=TOLERANCE[dtype],
        )


@DTYPES
def test_paired_is_the_diagonal_and_threads_change_nothing(dtype: torch.dtype) -> None:
    a, b = random_boxes(0, 200, 5.0, dtype), random_boxes(1, 200, 5.0, dtype)
    torch.testing.assert_close(iou_bev_paired(a, b), iou_bev(a, b).diagonal(), rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(iou_3d_paired(a, b), iou_3d(a, b).diagonal(), rtol=0, atol=TOLERANCE[dtype])
    one, threads = iou_bev(a, b), torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert torch.equal(iou_bev(a, b), one)
    finally:
        torch.set_num_threads(threads)


def test_further_columns_and_strides_are_left_aside() -> None:
    a = torch.cat([random_boxes(0, 6, 3.0), torch.full((6, 2), nan)], 1)
    b = torch.cat([random_boxes(1, 12, 3.0), torch.full((12, 2), nan)], 1)[::2]
    assert torch.equal(iou_bev(a, b), iou_bev(a[:, :7].clone(), b[:, :7].clone()))


@DTYPES
def test_empty(dtype: torch.dtype) -> None:
    none, some = torch.zeros(0, 7, dtype=dtype), random_boxes(0, 3, dtype=dtype)
    for overlap in (iou_bev, iou_3d, shared_area_bev):
        assert overlap(none, some).shape == (0, 3)
        assert overlap(some, none).shape == (3, 0)
        assert overlap(none, none).shape == (0, 0)
    for overlap in (iou_bev_paired, iou_3d_paired):
        assert overlap(none, none).shape == (0,)


def test_wrong_arguments_are_named() -> None:
    a = random_boxes(0, 3)
    with pytest.raises(ValueError, match=r"a must be \[N, 7\+\], got \[3, 6\]"):
        iou_bev(a[:, :6], a)
    with pytest.raises(ValueError, match=r"b must be \[N, 7\+\], got \[7\]"):
        iou_3d(a, a[0])
    with pytest.raises(ValueError, match=r"b must be float32 or float64, got torch\.int64"):
        iou_bev(a, a.long())
    with pytest.raises(ValueError, match=r"a and b must agree, got torch.float64 on cpu and torch.float32"):
        iou_bev(a, a.float())
    with pytest.raises(ValueError, match="as many rows, got 3 and 2"):
        iou_bev_paired(a, a[:2])


def test_ops_are_well_registered() -> None:
    a, b = random_boxes(0, 3), random_boxes(1, 4)
    torch.library.opcheck(_iou_matrix, (a, b, BEV))
    torch.library.opcheck(_iou_paired, (a, b[:3], VOLUME))


@DTYPES
@pytest.mark.parametrize("side", [2.0, 50.0])
def test_cuda_equals_cpu(accelerator: Accelerator, side: float, dtype: torch.dtype) -> None:
    a, b = random_boxes(0, 333, side, dtype), random_boxes(1, 65, side, dtype)
    a[3, 0], a[4, 3] = nan, -1
    on_cuda = a.to(accelerator.device), b.to(accelerator.device)
    for overlap in (iou_bev, iou_3d, shared_area_bev):
        expected = overlap(a, b)
        with accelerator:
            torch.testing.assert_close(overlap(*on_cuda).cpu(), expected, rtol=0, atol=TOLERANCE[dtype] * 10)
            assert overlap(on_cuda[0][:0], on_cuda[1]).shape == (0, 65)
    for overlap in (iou_bev_paired, iou_3d_paired):
        expected = overlap(a[:65], b)
        with accelerator:
            ours = overlap(on_cuda[0][:65], on_cuda[1])
        torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=TOLERANCE[dtype])
