"""What mmcv compiles, as this library answers it, against polygons and loops; needs no mmcv."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.plugins.mmdet3d import compiled

SEEDS = st.integers(0, 2**32 - 1)
RANGE, SIZE = torch.tensor([0.0, 0, 0, 4, 4, 2]), torch.tensor([1.0, 1, 2])


def rectangles(seed: int, count: int) -> Tensor:
    """(x, y, w, h, angle) [N, 5]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform([-5, -5, 0.5, 0.5, -7], [5, 5, 6, 3, 7], (count, 5)).astype(np.float32))


def polygon(row: list[float]) -> shapely.Polygon:
    x, y, w, h, angle = row
    cos, sin = math.cos(angle), math.sin(angle)
    corners = [(w / 2 * a, h / 2 * b) for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    return shapely.Polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in corners])


def shared_areas(a: Tensor, b: Tensor) -> Tensor:
    first, second = [polygon(r) for r in a.tolist()], [polygon(r) for r in b.tolist()]
    return torch.tensor([[p.intersection(q).area for q in second] for p in first]).reshape(len(a), len(b))


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    shared = shared_areas(a, b)
    return shared / ((a[:, 2] * a[:, 3])[:, None] + b[:, 2] * b[:, 3] - shared)


def kept_greedily(iou: Tensor, order: list[int], threshold: float, labels: list[int] | None = None) -> list[int]:
    kept: list[int] = []
    for i in order:
        rivals = [j for j in kept if labels is None or labels[i] == labels[j]]
        if all(iou[j, i] <= threshold for j in rivals):
            kept.append(i)
    return kept


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_overlaps_of_turned_rectangles(seed: int) -> None:
    a, b = rectangles(seed, 9), rectangles(seed + 1, 9)
    shared, iou = shared_areas(a, b), overlaps(a, b)
    foreground = shared / (a[:, 2] * a[:, 3])[:, None]
    for mode, expected in ((0, iou), (1, foreground)):
        flat, paired = torch.zeros(81), torch.zeros(9)
        compiled.box_iou_rotated(a, b, flat, mode_flag=mode, aligned=False)
        compiled.box_iou_rotated(a, b, paired, mode_flag=mode, aligned=True)
        assert torch.allclose(flat.view(9, 9), expected.float(), atol=1e-4)
        assert torch.allclose(paired, expected.diagonal().float(), atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 25))
def test_suppression_of_turned_rectangles(seed: int, count: int) -> None:
    dets = rectangles(seed, count)
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % 3
    order = scores.argsort(descending=True)
    iou, none = overlaps(dets, dets), torch.zeros(0)
    found = compiled.nms_rotated(dets, scores, order, dets[order], none, 0.2, 0)
    assert found.tolist() == kept_greedily(iou, order.tolist(), 0.2)
    with_labels = torch.cat([dets, labels[:, None]], 1)
    found = compiled.nms_rotated(with_labels, scores, order, with_labels[order], labels, 0.2, 1)
    assert found.tolist() == kept_greedily(iou, order.tolist(), 0.2, labels.tolist())


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([0, 1]))
def test_suppression_of_upright_rectangles(seed: int, offset: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 20, (15, 2))
    corners = torch.from_numpy(np.concatenate([low, low + rng.uniform(1, 10, (15, 2))], 1)).float()
    scores = torch.from_numpy(rng.uniform(0, 1, 15)).float()
    boxes = [shapely.box(x1, y1, x2 + offset, y2 + offset) for x1, y1, x2, y2 in corners.tolist()]
    iou = torch.tensor([[p.intersection(q).area / p.union(q).area for q in boxes] for p in boxes])
    found = compiled.CONTENT["nms"](corners, scores, iou_threshold=0.3, offset=offset)
    assert found.tolist() == kept_greedily(iou, scores.argsort(descending=True).tolist(), 0.3)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_three_dimensional_suppression_keeps_the_given_order(seed: int) -> None:
    flat = rectangles(seed, 14)
    x, y, w, h, angle = flat.unbind(1)
    boxes = torch.stack([x, y, torch.zeros(14), w, h, torch.ones(14), angle], 1)
    area = torch.zeros(14, 14)
    compiled.iou3d_boxes_overlap_bev_forward(boxes, boxes, area)
    assert torch.allclose(area, shared_areas(flat, flat).float(), atol=1e-4)
    upright = torch.cat([flat[:, :4], torch.zeros(14, 1)], 1)
    for suppress, compared in (
        (compiled.iou3d_nms3d_forward, flat),
        (compiled.iou3d_nms3d_normal_forward, upright),
    ):
        keep, count = torch.zeros(14, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        suppress(boxes, keep, count, nms_overlap_thresh=0.1)
        assert keep[:count].tolist() == kept_greedily(overlaps(compared, compared), list(range(14)), 0.1)


def test_points_in_boxes_stand_on_their_bottom() -> None:
    boxes = torch.tensor([[[0, 0, 1.0, 4, 2, 2, 0.5], [1, 1, 0, 3, 3, 1.5, -1]]])
    noise = torch.rand(1, 300, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    points = noise * torch.tensor([8, 8, 8.0]) + torch.tensor([0, 0, 1.0])

    def holds(box: list[float], point: list[float]) -> bool:
        x, y, z, dx, dy, dz, yaw = box
        along = (point[0] - x) * math.cos(yaw) + (point[1] - y) * math.sin(yaw)
        across = (point[1] - y) * math.cos(yaw) - (point[0] - x) * math.sin(yaw)
        return z <= point[2] <= z + dz and abs(along) < dx / 2 and abs(across) < dy / 2

    flags = torch.tensor([[holds(box, p) for p in points[0].tolist()] for box in boxes[0].tolist()]).int()
    assert flags.sum(1).min() > 3
    cpu = torch.zeros(2, 300, dtype=torch.int32)
    compiled.points_in_boxes_cpu_forward(boxes[0], points[0], cpu)
    assert torch.equal(cpu, flags)
    assert torch.equal(compiled.points_in_boxes_all(points, boxes)[0], flags.T)
    first = torch.where(flags.any(0), flags.argmax(0), -1).int()
    assert torch.equal(compiled.points_in_boxes_part(points, boxes)[0], first)


def test_voxels_hard_and_dynamic() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(300, 5, generator=generator) * 6 - 1
    coors = torch.zeros(300, 3, dtype=torch.int32)
    compiled.dynamic_voxelize_forward(points, SIZE, RANGE, coors, NDim=3)
    expected, cells = [], {}
    for point in points.tolist():
        cell = [math.floor(point[2] / 2), math.floor(point[1]), math.floor(point[0])]
        inside = all(0 <= c < n for c, n in zip(cell, (1, 4, 4), strict=True))
        expected.append(cell if inside else [-1] * 3)
        if inside and (tuple(cell) in cells or len(cells) < 10):
            cells.setdefault(tuple(cell), []).append(point)
    assert coors.tolist() == expected
    voxels, found, counts = torch.zeros(10, 4, 5), torch.zeros(10, 3, dtype=torch.int32), torch.zeros(10).int()
    number = torch.zeros((), dtype=torch.int64)
    compiled.hard_voxelize_forward(
        points, SIZE, RANGE, voxels, found, counts, number, max_points=4, max_voxels=10, NDim=3, deterministic=True
    )
    assert [tuple(c) for c in found[: int(number)].tolist()] == list(cells)
    for voxel, count, own in zip(voxels, counts.tolist(), cells.values(), strict=False):
        assert count == min(4, len(own))
        assert torch.equal(voxel[:count], torch.tensor(own[:4])[:count])
        assert not voxel[count:].any()


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(0, 40), st.sampled_from(["max", "mean", "sum"]))
def test_points_to_voxels_and_back(seed: int, count: int, reduce: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    feats = torch.randint(4, (count, 3), generator=generator).float()  # many ties
    coors = torch.randint(-1, 3, (count, 3), generator=generator, dtype=torch.int32)
    reduced, voxels, place, counts = compiled.dynamic_point_to_voxel_forward(feats, coors, reduce)
    inside = [i for i in range(count) if min(coors[i].tolist()) >= 0]
    expected = sorted({tuple(coors[i].tolist()) for i in inside})
    assert [tuple(v) for v in voxels.tolist()] == expected
    grad, weight = torch.zeros(count, 3), torch.rand(len(expected), 3, generator=generator)
    compiled.dynamic_point_to_voxel_backward(grad, weight, feats, reduced, place, counts, reduce)
    by_hand = torch.zeros(count, 3)
    for v, voxel in enumerate(expected):
        rows = [i for i in inside if tuple(coors[i].tolist()) == voxel]
        assert int(counts[v]) == len(rows)
        assert all(int(place[i]) == v for i in rows)
        own = feats[rows]
        values = {"max": own.amax(0), "mean": own.mean(0), "sum": own.sum(0)}[reduce]
        assert torch.allclose(reduced[v], values)
        for column in range(3):
            if reduce == "max":
                by_hand[rows[int(own[:, column].argmax())], column] += weight[v, column]
            else:
                by_hand[rows, column] += weight[v, column] / (len(rows) if reduce == "mean" else 1)
    assert torch.allclose(grad, by_hand)
    assert all(int(place[i]) == -1 for i in range(count) if i not in inside)


def test_other_reductions_and_dimensions_are_named() -> None:
    with pytest.raises(NotImplementedError, match="'min' is not offered"):
        compiled.dynamic_point_to_voxel_forward(torch.zeros(1, 1), torch.zeros(1, 3).int(), "min")
    with pytest.raises(NotImplementedError, match="NDim must be 3, got 2"):
        compiled.dynamic_voxelize_forward(torch.zeros(1, 3), SIZE, RANGE, torch.zeros(1, 3).int(), NDim=2)
