"""Voxelisation against a point-by-point definition, in every implementation, with its gradient and its errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cuda_emulator.emulator import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.ops import dynamic_voxelize, voxelize
from pcdet_ext.ops.voxelize import (
    _dynamic_voxelize,
    _voxelize,
    dynamic_voxelize_reference,
    grid_size,
    voxelize_reference,
)

RANGE, SIZE = [-4.0, -2.0, -1.0, 4.0, 3.0, 2.0], [0.5, 0.25, 0.75]  # 16 × 20 × 4 cells
SEEDS = st.integers(0, 2**32 - 1)
ODD = [math.nan, math.inf, -math.inf, 3e38, -3e38, -0.0]


def random_points(seed: int, count: int, columns: int = 4) -> Tensor:
    """Points on and around the range, on its borders, and some that are no numbers."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-5, 5, (count, columns)).astype(np.float32)
    on_border = rng.random((count, 3)) < 0.1
    borders = np.array([RANGE[:3], RANGE[3:]], np.float32)[rng.integers(0, 2, (count, 3)), np.arange(3)]
    points[:, :3] = np.where(on_border, borders, points[:, :3])
    odd = rng.random((count, 3)) < 0.02
    points[:, :3][odd] = rng.choice(np.array(ODD, np.float32), odd.sum())
    return torch.from_numpy(points)


def cell(point: np.ndarray, pillars: bool = False) -> tuple[int, int, int] | None:
    """(z, y, x) of one point, or None outside; float32: subtract, divide, floor."""
    if not np.isfinite(point[:3]).all():
        return None
    grid, found = grid_size(RANGE, SIZE), []
    for axis in range(3):
        if axis == 2 and pillars:
            found.append(0)
            continue
        with np.errstate(over="ignore"):
            place = np.floor((point[axis] - np.float32(RANGE[axis])) / np.float32(SIZE[axis]))
        if not 0 <= place < grid[axis]:
            return None
        found.append(int(place))
    return tuple(found[::-1])


def hard_voxels_by_hand(points: np.ndarray, max_points: int, max_voxels: int) -> dict[tuple, list[int]]:
    """The points of each voxel, one point at a time (dictionaries keep the order of first appearance)."""
    voxels: dict[tuple, list[int]] = {}
    for i, point in enumerate(points):
        where = cell(point)
        if where is None or (where not in voxels and len(voxels) == max_voxels):
            continue
        held = voxels.setdefault(where, [])
        if len(held) < max_points:
            held.append(i)
    return voxels


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(0, 400), st.integers(1, 6), st.integers(1, 200), st.integers(3, 6))
def test_hard_voxels_equal_the_definition(
    seed: int, count: int, max_points: int, max_voxels: int, columns: int
) -> None:
    points = random_points(seed, count, columns)
    expected = hard_voxels_by_hand(points.numpy(), max_points, max_voxels)
    for voxels, coords, counts in (
        voxelize(points, RANGE, SIZE, max_points, max_voxels),
        voxelize_reference(points, RANGE, SIZE, max_points, max_voxels)[:3],
    ):
        assert voxels.shape == (len(expected), max_points, columns)
        assert [tuple(c) for c in coords.tolist()] == list(expected)
        assert counts.tolist() == [len(rows) for rows in expected.values()]
        for voxel, rows in zip(voxels, expected.values(), strict=True):
            assert torch.equal(voxel[: len(rows)], points[rows])
            assert not voxel[len(rows) :].any()


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(0, 400), st.sampled_from(["zyx", "xyz"]), st.booleans())
def test_dynamic_voxels_equal_the_definition(seed: int, count: int, order: str, pillars: bool) -> None:
    points = random_points(seed, count)
    batch_index = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, count))
    places = [cell(p, pillars) for p in points.numpy()]
    keys = [None if c is None else (b, *c) for b, c in zip(batch_index.tolist(), places, strict=True)]
    expected = sorted({k for k in keys if k}, key=lambda k: k if order == "zyx" else (k[0], k[3], k[2], k[1]))
    numbers = [-1 if k is None else expected.index(k) for k in keys]
    for coords, voxel in (
        dynamic_voxelize(points, batch_index, RANGE, SIZE, order=order, pillars=pillars),
        dynamic_voxelize_reference(points, batch_index, RANGE, SIZE, order == "xyz", pillars),
    ):
        assert coords.dtype == torch.int32
        assert [tuple(c) for c in coords.tolist()] == expected
        assert voxel.tolist() == numbers


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "frames"),
    [
        ((1.0, 1.0, 20.0), 1),  # one bucket
        ((0.05, 0.05, 0.1), 4),  # hundreds of buckets
        ((0.02, 0.02, 0.02), 3),  # over 2^32 cells, buckets
        ((0.005, 0.01, 0.005), 20),  # so many that keys are sorted
    ],
)
def test_any_size_of_grid_and_any_number_of_threads(size: tuple, frames: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(40_000, 4, generator=generator) * 20
    batch_index = torch.randint(frames, (40_000,), generator=generator)
    extent = (-60.0, -60.0, -10.0, 60.0, 60.0, 10.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for order in ("zyx", "xyz"):
            found = dynamic_voxelize(points, batch_index, extent, size, order=order)
            wanted = dynamic_voxelize_reference(points, batch_index, extent, size, order == "xyz")
            assert all(map(torch.equal, found, wanted))
        caps = (3, 9_000)
        found, wanted = voxelize(points, extent, size, *caps), voxelize_reference(points, extent, size, *caps)
        assert all(map(torch.equal, found, wanted[:3]))
    finally:
        torch.set_num_threads(before)


def test_borders_are_half_open() -> None:
    low, high = torch.tensor([[-4.0, -2.0, -1.0]]), torch.tensor([[4.0, 3.0, 2.0]])
    below = high - 1e-5  # nearer ones are rounded up to the border by the division
    points = torch.cat([low, below, high, torch.nextafter(low, -high)])
    _, coords, counts = voxelize(points, RANGE, SIZE, 4, 10)
    assert coords.tolist() == [[0, 0, 0], [3, 19, 15]]
    assert counts.tolist() == [1, 1]


def test_gradients_go_to_the_points_that_were_kept() -> None:
    points = random_points(5, 300).requires_grad_()
    voxels, _, _ = voxelize(points, RANGE, SIZE, 2, 60)
    weights = torch.randn(voxels.shape, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad((voxels * weights).sum(), points)
    expected = torch.zeros_like(grad)
    held = hard_voxels_by_hand(points.detach().numpy(), 2, 60)
    for number, rows in enumerate(held.values()):
        expected[rows] = weights[number, : len(rows)]
    assert torch.equal(grad, expected)
    assert expected.any()


def test_second_derivatives() -> None:
    points = torch.nan_to_num(random_points(6, 100), posinf=9.0, neginf=-9.0).requires_grad_()
    voxels, _, _ = voxelize(points, RANGE, SIZE, 2, 30)
    (first,) = torch.autograd.grad((voxels**3).sum(), points, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), points)
    assert torch.equal(second, torch.where(first > 0, 6 * points, 0.0).detach())
    assert second.any()


def test_gradient_of_nothing_is_zero() -> None:
    points = torch.full((3, 4), 100.0, requires_grad=True)
    (grad,) = torch.autograd.grad(voxelize(points, RANGE, SIZE, 2, 5)[0].sum(), points)
    assert torch.equal(grad, torch.zeros(3, 4))


@pytest.mark.parametrize("points", [torch.zeros(0, 4), torch.full((5, 4), math.nan), torch.full((5, 4), 50.0)])
def test_clouds_without_a_point_inside(points: Tensor) -> None:
    voxels, coords, counts = voxelize(points, RANGE, SIZE, 3, 10)
    assert (voxels.shape, coords.shape, counts.shape) == ((0, 3, 4), (0, 3), (0,))
    coords, voxel = dynamic_voxelize(points, torch.zeros(len(points), dtype=torch.int64), RANGE, SIZE)
    assert coords.shape == (0, 4)
    assert voxel.tolist() == [-1] * len(points)


def test_points_need_not_be_contiguous() -> None:
    wide = random_points(7, 200, 8)
    found = voxelize(wide[:, 1:5], RANGE, SIZE, 3, 100)
    assert all(map(torch.equal, found, voxelize(wide[:, 1:5].clone(), RANGE, SIZE, 3, 100)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(3, 2)}, r"points must be float32 \[N, 3\+\]"),
        ({"points": torch.zeros(3, 4, dtype=torch.float64)}, "points must be float32"),
        ({"point_cloud_range": RANGE[:5]}, "point_cloud_range must be six numbers"),
        ({"point_cloud_range": [0, 0, 0, math.inf, 1, 1]}, "point_cloud_range must be finite"),
        ({"point_cloud_range": [0, 0, 0, -1, 1, 1]}, "holds no voxel"),
        ({"voxel_size": [0.1, 0.1, 0.0]}, "voxel_size must be positive"),
        ({"voxel_size": [0.1, 0.1, math.nan]}, "voxel_size must be positive"),
        ({"voxel_size": [1e-5, 1e-5, 1.0]}, "voxel_size .* is too small"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    arguments = {"points": torch.zeros(3, 4), "point_cloud_range": RANGE, "voxel_size": SIZE} | change
    with pytest.raises(ValueError, match=message):
        voxelize(**arguments, max_points=1, max_voxels=1)
    with pytest.raises(ValueError, match=message):
        dynamic_voxelize(batch_index=torch.zeros(3, dtype=torch.int64), **arguments)


def test_wrong_caps_and_frames_are_named() -> None:
    points, zeros = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    for caps in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="max_points and max_voxels must be positive"):
            voxelize(points, RANGE, SIZE, *caps)
    with pytest.raises(ValueError, match=r"batch_index must be int64 \[3\]"):
        dynamic_voxelize(points, torch.zeros(2, dtype=torch.int64), RANGE, SIZE)
    with pytest.raises(ValueError, match="batch_index must be int64"):
        dynamic_voxelize(points, zeros.int(), RANGE, SIZE)
    with pytest.raises(ValueError, match="batch_index must not be negative, got -2"):
        dynamic_voxelize(points, zeros - 2, RANGE, SIZE)
    for too_high in (1 << 61, (1 << 63) - 1):
        with pytest.raises(ValueError, match=f"batch_index {too_high} is too high"):
            dynamic_voxelize(points, zeros + too_high, RANGE, SIZE)
    with pytest.raises(ValueError, match="order must be 'zyx' or 'xyz', got 'yxz'"):
        dynamic_voxelize(points, zeros, RANGE, SIZE, order="yxz")


def test_ops_are_well_registered() -> None:
    points, batch_index = random_points(1, 50), torch.zeros(50, dtype=torch.int64)
    finite = torch.nan_to_num(points, nan=0.0, posinf=9.0, neginf=-9.0)
    torch.library.opcheck(_voxelize, (finite.requires_grad_(), RANGE, SIZE, 3, 20))
    torch.library.opcheck(_dynamic_voxelize, (points, batch_index, RANGE, SIZE, True, True))


@pytest.mark.parametrize("order", ["zyx", "xyz"])
@pytest.mark.parametrize("pillars", [False, True])
def test_cuda_equals_cpu(accelerator: Accelerator, order: str, pillars: bool) -> None:
    points = random_points(11, 20_000)
    batch_index = torch.arange(20_000) % 3
    dynamic = dynamic_voxelize(points, batch_index, RANGE, SIZE, order=order, pillars=pillars)
    hard = voxelize(points, RANGE, SIZE, 4, 700)
    on_gpu = points.to(accelerator.device).requires_grad_()
    frames = batch_index.to(accelerator.device)
    with accelerator:
        found = dynamic_voxelize(on_gpu.detach(), frames, RANGE, SIZE, order=order, pillars=pillars)
        cut = voxelize(on_gpu, RANGE, SIZE, 4, 700)
        (grad,) = torch.autograd.grad(cut[0].sum(), on_gpu)
    assert all(torch.equal(f.cpu(), w) for f, w in zip(found, dynamic, strict=True))
    assert all(torch.equal(f.cpu(), w) for f, w in zip(cut, hard, strict=True))
    assert int(grad[:, 0].sum()) == int(hard[2].sum())
