"""Encoders against per-voxel loops in NumPy, and on degenerate batches. Golden cases: tests/test_golden.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pcdet_ext.config import ConfigError
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.structures import PointBatch, SparseVoxels

RANGE = (0.0, -4.0, -2.0, 8.0, 4.0, 2.0)
PILLAR, VOXEL = (1.0, 1.0, 4.0), (1.0, 1.0, 1.0)
HARD, DYNAMIC = (
    ("PillarVFE", "MeanVFE"),
    ("DynamicPillarVFE", "DynamicPillarVFESimple2D", "DynamicVoxelVFE", "DynamicMeanVFE"),
)
PILLARS = ("DynamicPillarVFE", "DynamicPillarVFESimple2D")


def cloud(seed: int, number: int = 300) -> Tensor:
    """Points [N, 4], a part of them outside the range."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([-1.0, -5, -3, 0]), torch.tensor([9.0, 5, 3, 1])
    return low + (high - low) * torch.rand(number, 4, generator=generator)


def build(name: str, voxel_size: tuple = VOXEL, **arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    context = {"in_channels": 4, "point_cloud_range": RANGE, "voxel_size": voxel_size}
    return ENCODERS.build({"name": name} | arguments, **context).eval()


def by_voxel(batch: PointBatch, size: tuple, check_z: bool = True) -> dict[tuple, np.ndarray]:
    """Points of each voxel (batch, z, y, x), in their order."""
    found: dict[tuple, list] = {}
    for point, frame in zip(batch.points.numpy(), batch.batch_index.tolist(), strict=True):
        cell = np.floor((point[:3] - np.float32(RANGE[:3])) / np.float32(size)).astype(int)
        top = np.round((np.array(RANGE[3:]) - RANGE[:3]) / size)
        if not check_z:
            cell[2] = 0
        if (cell >= 0).all() and (cell < top).all():
            found.setdefault((frame, *cell[::-1].tolist()), []).append(point)
    return {key: np.array(points) for key, points in found.items()}


def as_dict(voxels: SparseVoxels) -> dict[tuple, np.ndarray]:
    return dict(zip(map(tuple, voxels.coords.tolist()), voxels.features.detach().numpy(), strict=True))


def describe(points: np.ndarray, key: tuple, size: tuple, simple: bool = False) -> np.ndarray:
    """Features of the points of one voxel, as the papers describe them."""
    centre = np.array([key[3], key[2], key[1]]) * size + np.array(size) / 2 + RANGE[:3]
    from_centre, from_mean = points[:, :3] - centre, points[:, :3] - points[:, :3].mean(0)
    parts = [from_centre, points] if simple else [points, from_mean, from_centre]
    return np.concatenate(parts, axis=1)


def expected_features(encoder: torch.nn.Module, rows: np.ndarray) -> np.ndarray:
    """One voxel through the layers in float64; batch norm in evaluation mode."""
    x = rows.astype(np.float64)
    for layer in encoder.pfn_layers:
        norm = layer.norm
        x = x @ layer.linear.weight.detach().double().numpy().T
        scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
        x = np.maximum((x - norm.running_mean.numpy()) * scale + norm.bias.detach().numpy(), 0)
        top = x.max(0)
        x = np.concatenate([x, np.broadcast_to(top, x.shape)], axis=1)
    return top


@pytest.fixture
def batch() -> PointBatch:
    """Three frames, the middle one empty."""
    return PointBatch.from_points([cloud(0), torch.zeros(0, 4), cloud(1, 200)])


@pytest.mark.parametrize("name", [*PILLARS, "DynamicVoxelVFE", "PillarVFE"])
def test_learnt_encoders_equal_a_loop(batch, name):
    size = PILLAR if name in PILLARS else VOXEL
    options = {"max_points": 1000, "max_voxels": 1000} if name == "PillarVFE" else {}
    encoder = build(name, size, num_filters=[8, 6], **options)
    for norm in (m for m in encoder.modules() if isinstance(m, SparseBatchNorm)):
        torch.nn.init.uniform_(norm.running_mean, -1, 1)
        torch.nn.init.uniform_(norm.bias, -1, 1)
    voxels = encoder(batch)
    points = by_voxel(batch, size, check_z=name not in PILLARS)
    found = as_dict(voxels)
    assert found.keys() == points.keys()
    assert voxels.batch_size == 3
    assert voxels.grid == ((1, 8, 8) if name in PILLARS else (4, 8, 8))
    assert encoder.out_channels == 6
    for key, members in points.items():
        rows = describe(members, key, size, simple=name.endswith("Simple2D"))
        np.testing.assert_allclose(found[key], expected_features(encoder, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["MeanVFE", "DynamicMeanVFE"])
def test_means_equal_a_loop(batch, name):
    options = {"max_points": 2, "max_voxels": 1000} if name == "MeanVFE" else {}
    found = as_dict(build(name, **options)(batch))
    points = by_voxel(batch, VOXEL)
    assert found.keys() == points.keys()
    for key, members in points.items():
        members = members[:2] if name == "MeanVFE" else members
        np.testing.assert_allclose(found[key], members.mean(0), rtol=1e-5, atol=1e-5)


def test_padding_counts_on_request_alone(batch):
    small = build("PillarVFE", PILLAR, max_points=40)
    large = build("PillarVFE", PILLAR, max_points=60)
    large.load_state_dict(small.state_dict())
    torch.testing.assert_close(small(batch).features, large(batch).features)
    published = build("PillarVFE", PILLAR, max_points=40, count_padding=True)
    published.load_state_dict(small.state_dict())
    with torch.no_grad():
        for encoder in (small, published):
            encoder.pfn_layers[0].norm.bias.fill_(3.0)  # what a zero row gives
    assert (published(batch).features >= 3).all()
    assert (small(batch).features < 3).any()


@pytest.mark.parametrize("num_filters", [[8], [8, 6], [8, 4, 6]])
def test_counted_padding_equals_a_loop(batch, num_filters):
    encoder = build("PillarVFE", PILLAR, max_points=4, max_voxels=1000, num_filters=num_filters, count_padding=True)
    for norm in (m for m in encoder.modules() if isinstance(m, SparseBatchNorm)):
        torch.nn.init.uniform_(norm.running_mean, -1, 1)
        torch.nn.init.uniform_(norm.bias, -1, 1)
    found, points = as_dict(encoder(batch)), by_voxel(batch, PILLAR)
    assert found.keys() == points.keys()
    assert {len(members) < 4 for members in points.values()} == {True, False}
    for key, members in points.items():
        rows = describe(members[:4], key, PILLAR)
        rows = np.concatenate([rows, np.zeros((4 - len(rows), rows.shape[1]))])
        np.testing.assert_allclose(found[key], expected_features(encoder, rows), rtol=1e-4, atol=1e-5)


def test_training_and_testing_have_their_own_cap(batch):
    encoder = build("PillarVFE", PILLAR, max_voxels=[5, 7])
    assert torch.bincount(encoder(batch).coords[:, 0], minlength=3).tolist() == [7, 0, 7]
    assert torch.bincount(encoder.train()(batch).coords[:, 0], minlength=3).tolist() == [5, 0, 5]
    assert len(build("MeanVFE", max_voxels=4)(batch)) == 8


@pytest.mark.parametrize("name", DYNAMIC)
def test_x_major_rows_ascend_by_x_y_z(batch, name):
    voxels = build(name, x_major=True)(batch)
    rows = voxels.coords[:, [0, 3, 2, 1]].tolist()
    assert rows == sorted(rows)
    plain = as_dict(build(name)(batch))
    for key, features in as_dict(voxels).items():
        np.testing.assert_allclose(features, plain[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PILLARS)
def test_pillars_do_not_look_at_z(name):
    points = torch.tensor([[0.5, 0.5, 100.0, 0.0], [0.5, 0.5, -100.0, 0.0], [0.5, 0.5, float("nan"), 0.0]])
    voxels = build(name, VOXEL)(PointBatch.from_points([points]))
    assert voxels.coords.tolist() == [[0, 0, 4, 0]]
    assert voxels.features.isfinite().all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [*HARD, *DYNAMIC])
@pytest.mark.parametrize("clouds", ["none", "outside", "one point", "one point of two frames"])
def test_degenerate_batches(name, training, clouds):
    one = torch.tensor([[4.5, 0.5, 0.5, 0.2]])
    frames = {
        "none": [torch.zeros(0, 4), torch.zeros(0, 4)],
        "outside": [one + 100, one - 100],
        "one point": [one],
        "one point of two frames": [torch.zeros(0, 4), one],
    }[clouds]
    encoder = build(name, PILLAR).train(training)
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    voxels = encoder(PointBatch.from_points(frames))
    number = 1 if clouds.startswith("one") else 0
    assert voxels.features.shape == (number, encoder.out_channels)
    assert voxels.coords.dtype == torch.int32
    assert voxels.features.isfinite().all()
    if number:
        assert voxels.coords[0].tolist() == [len(frames) - 1, 0, 4, 4]
    assert all(value.isfinite().all() for value in encoder.state_dict().values())
    assert all(value.equal(before[key]) for key, value in encoder.named_buffers())
    loss = voxels.features.sum()
    if loss.requires_grad:
        loss.backward()


@pytest.mark.parametrize("count_padding", [False, True])
def test_gradients_reach_every_parameter(batch, count_padding):
    encoder = build("PillarVFE", PILLAR, num_filters=[8, 8], with_distance=True, count_padding=count_padding).train()
    encoder(batch).features.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_filters": [7, 8]}, "even"),
        ({"num_filters": []}, "at least one layer"),
        ({"max_points": 0}, "max_points"),
        ({"max_voxels": [1, 2, 3]}, "max_voxels"),
        ({"max_voxel": 3}, "did you mean 'max_voxels'"),
        ({"with_distance": 1}, "with_distance"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        build("PillarVFE", PILLAR, **arguments)


def test_range_without_a_voxel_is_refused():
    with pytest.raises(ConfigError, match="point_cloud_range"):
        build("DynamicMeanVFE", (100, 1, 1))


def test_norm_is_accurate_on_many_rows():
    rows = 5 + torch.randn(60000, 8, generator=torch.Generator().manual_seed(0))
    rows[::2] = 0  # as padding is
    norm = SparseBatchNorm(8, momentum=1.0).train()
    result = norm(rows)
    wide = rows.double()
    torch.testing.assert_close(norm.running_var, wide.var(0).float(), rtol=2e-6, atol=0)
    expected = (wide - wide.mean(0)) / torch.sqrt(wide.var(0, correction=0) + norm.eps)
    torch.testing.assert_close(result, expected.float(), rtol=1e-4, atol=1e-5)
