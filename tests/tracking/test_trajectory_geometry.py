"""Geometry of TrajectoryFormer: what undoes what, overlaps, and the choice of points, by independent means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.ops.boxes import iou_3d as exact_iou_3d
from pcdet_ext.tracking import trajectory_geometry as geometry
from pcdet_ext.tracking.trajectory_losses import corrected, targets
from pcdet_ext.tracking.trajectory_points import point_features, sampled_points


def boxes(seed: int, count: int, spread: float = 4.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    columns = [
        rng.uniform(-spread, spread, (count, 2)),
        rng.uniform(-1, 1, (count, 1)),
        rng.uniform(0.5, 5, (count, 3)),
    ]
    return torch.from_numpy(np.concatenate([*columns, rng.uniform(-4, 4, (count, 1))], 1)).float()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_local_coordinates_and_poses_are_undone(seed: int) -> None:
    own, other = boxes(seed, 6).double(), boxes(seed + 1, 6).double()
    torch.testing.assert_close(geometry.from_local(geometry.to_local(own, other), other), own)
    turn, velocity = own[0, 6], other[:, :2]
    pose = torch.eye(4, dtype=torch.float64)
    pose[:2, :2] = torch.tensor([[turn.cos(), -turn.sin()], [turn.sin(), turn.cos()]])
    pose[:3, 3] = torch.tensor([900.0, -40.0, 3.0])
    moved, speed = geometry.to_global(own, velocity, pose)
    assert moved.dtype == torch.float32
    back, back_speed = geometry.to_vehicle(moved.double(), speed.double(), pose)
    torch.testing.assert_close(back, own, atol=1e-4, rtol=0)
    torch.testing.assert_close(back_speed, velocity, atol=1e-5, rtol=0)


def test_empty_boxes_and_origins_at_zero_give_zeros() -> None:
    own = boxes(0, 3)
    own[1, 3:6] = 0
    origin = boxes(1, 3)
    origin[2, :2] = torch.tensor([2.0, -2.0])
    local = geometry.to_local(own, origin)
    assert bool(local[0].any())
    assert not bool(local[1:].any())
    assert not bool(geometry.velocity_to_local(torch.ones(3, 2), own, origin)[1:].any())


def test_overlaps_are_those_of_exact_polygons_but_for_the_margin() -> None:
    first, second = boxes(2, 40), boxes(3, 30)
    found, exact = geometry.iou_3d(first, second, published=True), exact_iou_3d(first, second)
    assert float((found - exact).abs().max()) < 0.02
    assert float((found > 0.05).sum()) > 20
    torch.testing.assert_close(geometry.iou_3d(first, second), exact)


def test_only_the_published_overlap_sees_boxes_that_are_5_mm_apart() -> None:
    first = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0]])
    second = torch.tensor([[0.0, 2.005, 0, 4, 2, 1, 0]])
    assert float(geometry.iou_3d(first, second)) == 0
    assert float(geometry.iou_3d(first, second, published=True)) > 0


def test_points_of_a_box_are_those_of_a_loop_in_their_order() -> None:
    own = boxes(4, 5, spread=3.0)
    rng = np.random.default_rng(5)
    cloud = np.concatenate(
        [rng.uniform(-9, 9, (300, 3)), rng.uniform(0, 1, (300, 2)), rng.uniform(0, 1.3, (300, 1))], 1
    )
    points = torch.from_numpy(cloud).float()
    found = sampled_points(points, own, 300)
    for box, rows in zip(own, found, strict=True):
        radius = 1.2 * 0.5 * math.hypot(float(box[3]), float(box[4]))
        near = [p for p in points if p[5] < 1 and math.hypot(float(p[0] - box[0]), float(p[1] - box[1])) <= radius]
        assert 1 < len(near) < 300
        assert torch.equal(rows[: len(near)], torch.stack(near))
        assert bool((rows[len(near) :] == near[0]).all())


def _old_permutation(count: int) -> list[int]:
    """Fisher and Yates from the end, with 32-bit draws that are masked and rejected."""
    bits = np.random.MT19937()
    state = bits.state
    state["state"]["key"], state["state"]["pos"] = _seeded(0), 624
    bits.state = state
    found = list(range(count))
    for i in range(count - 1, 0, -1):
        mask = (1 << i.bit_length()) - 1
        j = int(bits.random_raw()) & mask
        while j > i:
            j = int(bits.random_raw()) & mask
        found[i], found[j] = found[j], found[i]
    return found


def _seeded(seed: int) -> np.ndarray:
    """Knuth's initialisation of the Mersenne twister (Matsumoto and Nishimura 2002)."""
    key = [seed]
    for i in range(1, 624):
        key.append((1812433253 * (key[-1] ^ (key[-1] >> 30)) + i) & 0xFFFFFFFF)
    return np.array(key, np.uint32)


def test_of_too_many_points_the_published_choice_is_taken() -> None:
    points = torch.zeros(50, 6)
    points[:, 3] = torch.arange(50)
    box = torch.tensor([[0.0, 0.0, 0.0, 4.0, 2.0, 1.0, 0.0]])
    assert sampled_points(points, box, 12)[0, :, 3].tolist() == _old_permutation(50)[:12]


def test_a_box_without_points_gets_its_centre() -> None:
    own = boxes(6, 2)
    for cloud in (torch.zeros(0, 6), torch.full((3, 6), 90.0)):
        found = sampled_points(cloud, own, 4)
        assert torch.equal(found[..., :3], own[:, None, :3].expand(-1, 4, -1))
        assert not bool(found[..., 3:].any())
        assert bool(point_features(found, own).isfinite().all())


def test_a_hypothesis_with_its_codes_is_the_annotated_box() -> None:
    own, true = boxes(7, 8), boxes(7, 8)
    true[:, :3] += 0.05
    true[:, 6] += torch.linspace(-3, 3, 8)
    wanted = targets(own[None, :, None], [true])
    fixed = corrected(own, wanted.codes)
    torch.testing.assert_close(fixed[:, :6], wanted.boxes[:, :6], atol=1e-4, rtol=0)
    turn = (fixed[:, 6] - wanted.boxes[:, 6]) % math.pi
    assert float(torch.minimum(turn, math.pi - turn).max()) < 1e-4


@pytest.mark.parametrize(("overlap", "quality"), [(0.2, 0.0), (0.5, 0.5), (0.8, 1.0)])
def test_the_quality_of_a_hypothesis_grows_with_its_overlap(overlap: float, quality: float) -> None:
    true = torch.tensor([[0.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.0]])
    own = true.clone()
    own[0, 2] += 1.5 * (1 - overlap) / (1 + overlap)  # of two equal boxes, one above the other
    wanted = targets(torch.stack([true, own], 1)[None].view(1, 1, 2, 7), [true])
    assert float(wanted.quality[1]) == pytest.approx(quality, abs=0.02)
    assert bool(wanted.real.all())
    assert bool(wanted.corrected[1]) == (overlap > 0.5 + 0.01) or overlap == 0.5


def test_without_annotations_nothing_is_real() -> None:
    wanted = targets(boxes(8, 6).view(1, 3, 2, 7), [torch.zeros(0, 7)])
    assert not bool(wanted.real.any())
    assert not bool(wanted.corrected.any())
    assert not bool(wanted.quality.any())
