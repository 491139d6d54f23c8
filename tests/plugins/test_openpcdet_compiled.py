"""What OpenPCDet compiles, as this library answers it, against polygons and loops; needs no OpenPCDet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.plugins import scatter
from pcdet_ext.plugins.openpcdet import compiled
from pcdet_ext.plugins.rotate_iou import rotate_iou_gpu_eval

SEEDS = st.integers(0, 2**32 - 1)


def random_boxes(seed: int, count: int) -> Tensor:
    rng = np.random.default_rng(seed)
    low, high = [-8, -8, -1, 0.5, 0.3, 0.5, -7], [8, 8, 1, 6, 2.5, 3, 7]
    return torch.from_numpy(rng.uniform(low, high, (count, 7)).astype(np.float32))


def polygon(x: float, y: float, dx: float, dy: float, heading: float) -> shapely.Polygon:
    cos, sin = math.cos(heading), math.sin(heading)
    corners = [(dx / 2 * a, dy / 2 * b) for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    return shapely.Polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in corners])


def shared_areas(a: Tensor, b: Tensor) -> Tensor:
    """[N, M] by shapely, box by box."""
    first, second = ([polygon(x, y, dx, dy, h) for x, y, _, dx, dy, _, h in t.tolist()] for t in (a, b))
    return torch.tensor([[p.intersection(q).area for q in second] for p in first]).reshape(len(a), len(b))


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    shared = shared_areas(a, b)
    return shared / ((a[:, 3] * a[:, 4])[:, None] + b[:, 3] * b[:, 4] - shared)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_overlaps_fill_their_last_argument(seed: int) -> None:
    a, b = random_boxes(seed, 12), random_boxes(seed + 1, 9)
    shared, iou = shared_areas(a, b), overlaps(a, b)
    for fill, expected in (
        (compiled.boxes_iou_bev_cpu, iou),
        (compiled.boxes_iou_bev_gpu, iou),
        (compiled.boxes_overlap_bev_gpu, shared),
    ):
        out = torch.full((12, 9), -1.0)
        assert fill(a, b, out) == 1
        assert torch.allclose(out, expected.float(), atol=1e-4)
    pairs = a[:9], b
    for fill, matrix in (
        (compiled.boxes_aligned_overlap_bev_gpu, shared),
        (compiled.paired_boxes_overlap_bev_gpu, shared),
        (compiled.boxes_aligned_iou_bev_cpu, iou),
    ):
        out = torch.full((9, 1), -1.0)
        assert fill(*pairs, out) == 1
        assert torch.allclose(out[:, 0], matrix[:9].diagonal().float(), atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(0, 30), st.sampled_from([0.05, 0.3]))
def test_suppression_keeps_the_given_order(seed: int, count: int, threshold: float) -> None:
    boxes = random_boxes(seed, count)
    upright = boxes.clone()
    upright[:, 6] = 0
    for suppress, compared in ((compiled.nms_gpu, boxes), (compiled.nms_normal_gpu, upright)):
        iou, expected = overlaps(compared, compared), []
        for i in range(count):
            if all(iou[j, i] <= threshold for j in expected):
                expected.append(i)
        keep = torch.full((count,), -7, dtype=torch.int64)
        kept = suppress(boxes, keep, threshold)
        assert keep[:kept].tolist() == expected
        assert (keep[kept:] == -7).all()


def holds(box: list[float], point: list[float], margin: float) -> bool:
    x, y, z, dx, dy, dz, heading = box
    along = (point[0] - x) * math.cos(heading) + (point[1] - y) * math.sin(heading)
    across = (point[1] - y) * math.cos(heading) - (point[0] - x) * math.sin(heading)
    return abs(point[2] - z) <= dz / 2 and abs(along) < dx / 2 + margin and abs(across) < dy / 2 + margin


def test_points_in_boxes_in_both_forms() -> None:
    boxes = random_boxes(3, 6).view(2, 3, 7)
    noise = torch.rand(2, 400, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    points = boxes[:, torch.arange(400) % 3, :3] + noise * torch.tensor([4, 4, 3])
    first = torch.full((2, 400), -1, dtype=torch.int32)
    assert compiled.points_in_boxes_gpu(boxes, points, first) == 1
    for b in range(2):
        inside = [[holds(box, p, 1e-5) for p in points[b].tolist()] for box in boxes[b].tolist()]
        assert first[b].tolist() == [next((i for i in range(3) if inside[i][j]), -1) for j in range(400)]
        flags = torch.zeros(3, 400, dtype=torch.int32)
        assert compiled.points_in_boxes_cpu(boxes[b], points[b], flags) == 1
        assert flags.tolist() == [[int(holds(box, p, 1e-2)) for p in points[b].tolist()] for box in boxes[b].tolist()]
        assert 20 < int(flags.sum()) < 1150


@given(st.lists(st.integers(0, 6), max_size=40))
def test_places_inside_of_groups(groups: list[int]) -> None:
    given_groups, out = torch.tensor(groups, dtype=torch.int64), torch.full((len(groups),), -1, dtype=torch.int64)
    compiled.ingroup_indices(given_groups, out)
    assert out.tolist() == [groups[:i].count(group) for i, group in enumerate(groups)]


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([-1, 0, 1, 2]))
def test_overlaps_of_the_kitti_evaluation(seed: int, criterion: int) -> None:
    a, b = (random_boxes(seed + i, 8).double().numpy()[:, [0, 1, 3, 4, 6]] for i in range(2))
    found = rotate_iou_gpu_eval(a, b, criterion)
    for i, (x, z, length, width, angle) in enumerate(a):
        for j, query in enumerate(b):
            shared = polygon(x, z, length, width, -angle).intersection(
                polygon(query[0], query[1], query[2], query[3], -query[4])  # clockwise
            )
            area, query_area = length * width, query[2] * query[3]
            size = {-1: area + query_area - shared.area, 0: query_area, 1: area, 2: 1.0}[criterion]
            assert found[i, j] == pytest.approx(shared.area / size, abs=1e-6)


def test_the_kitti_evaluation_without_boxes() -> None:
    assert rotate_iou_gpu_eval(np.zeros((0, 5)), np.ones((3, 5))).shape == (0, 3)


def test_hard_voxels_in_place_of_spconv() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -1, -1, 0], [5, 5, 3, 1], (500, 4)).astype(np.float32)
    generator = compiled.Point2VoxelCPU3d(
        [1, 1, 2], [0, 0, 0, 4, 4, 2], 4, max_num_voxels=12, max_num_points_per_voxel=6
    )
    voxels, coords, counts = (t.numpy() for t in generator.point_to_voxel(torch.from_numpy(points)))
    expected: dict[tuple[int, ...], list[np.ndarray]] = {}
    for point in points:
        cell = tuple(np.floor(point[:3] / [1, 1, 2]).astype(int)[::-1])
        inside = all(0 <= c < n for c, n in zip(cell, (1, 4, 4), strict=True))
        if inside and (cell in expected or len(expected) < 12):
            expected.setdefault(cell, []).append(point)
    assert coords.dtype == np.int32
    assert [tuple(c) for c in coords] == list(expected)
    for voxel, count, own in zip(voxels, counts, expected.values(), strict=True):
        assert count == min(len(own), 6)
        assert np.array_equal(voxel[:count], own[:6])
        assert not voxel[count:].any()
    with pytest.raises(ValueError, match="4 columns"):
        generator.point_to_voxel(torch.zeros(3, 5))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 30))
def test_scatter_reductions(seed: int, rows: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randint(5, (rows, 2), generator=rng).double()
    index = torch.randint(4, (rows,), generator=rng)
    own = [values[index == s] for s in range(5)]
    mean = torch.stack([r.mean(0) if len(r) else torch.zeros(2, dtype=r.dtype) for r in own])
    assert torch.allclose(scatter.scatter_mean(values, index, dim=0, dim_size=5), mean)
    assert torch.allclose(scatter.scatter_sum(values, index, dim=0, dim_size=5), torch.stack([r.sum(0) for r in own]))
    for reduce, sign in ((scatter.scatter_max, 1), (scatter.scatter_min, -1)):
        best, chosen = reduce(values, index, dim=0, dim_size=5)
        for s, r in enumerate(own):
            if len(r):
                assert torch.equal(best[s], sign * (sign * r).amax(0))
                assert torch.equal(values[chosen[s], [0, 1]], best[s])
                assert (index[chosen[s]] == s).all()
            else:
                assert chosen[s].tolist() == [rows, rows]


def test_scatter_names_what_it_does_not_offer() -> None:
    values, index = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match=r"torch_scatter\.scatter is offered for .* dim=1"):
        scatter.scatter_mean(values, index, dim=1)
    with pytest.raises(NotImplementedError, match="reduce='mul' is not offered"):
        scatter.scatter(values, index, dim=0, reduce="mul")


def test_scatter_passes_gradients() -> None:
    values = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 1, 1, 0, 2, 1])
    for reduce in (scatter.scatter_mean, scatter.scatter_sum):
        assert torch.autograd.gradcheck(lambda v, reduce=reduce: reduce(v, index, dim=0), values)
    assert torch.autograd.gradcheck(lambda v: scatter.scatter_max(v, index, dim=0)[0], values)
