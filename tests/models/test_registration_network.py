"""Descriptors for registration: what they do not depend on, and the loss and matching against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.models.registration import DescribedPoints, RegistrationNetwork, correspondence_loss, mutual_nearest
from pcdet_ext.structures import PointBatch

RANGE = (-8.0, -8.0, -2.0, 8.0, 8.0, 2.0)


def network(**settings: object) -> RegistrationNetwork:
    torch.manual_seed(0)
    layers = ((4.0, 0.0), (4.0, 0.5))
    return RegistrationNetwork(RANGE, channels=8, num_heads=2, group_size=8, layers=layers, **settings).eval()


def cloud(seed: int, count: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, generator=generator) * 2 - 1) * torch.tensor([6.0, 6.0, 1.5])


def test_clouds_of_a_batch_are_described_alone_and_in_any_order() -> None:
    model, clouds = network(), [cloud(1), cloud(2, 90)]
    found = model(PointBatch.from_points(clouds))
    for i, points in enumerate(clouds):
        alone = model(PointBatch.from_points([points.flip(0)]))
        mine = found.of_frame(i)
        torch.testing.assert_close(mine.points, alone.points, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.descriptors, alone.descriptors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.descriptors.norm(dim=1), torch.ones(len(found.frame)))


def test_points_are_the_means_of_voxels_in_range() -> None:
    points = torch.tensor([[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [-0.1, 0.1, 0.1], [99.0, 0.0, 0.0]])
    found = network()(PointBatch.from_points([points]))
    assert sorted(found.points.tolist()) == [
        pytest.approx([-0.1, 0.1, 0.1]),
        pytest.approx([0.2, 0.1, 0.1]),
    ]


def test_without_hash_borders_a_cloud_elsewhere_gets_the_same_descriptors() -> None:
    """Windows wider than the cloud have no borders in it, so only relative positions are left."""
    torch.manual_seed(0)
    model = RegistrationNetwork(RANGE, channels=8, num_heads=2, group_size=512, layers=[(1e6, 0.0)]).eval()
    points = cloud(3, 60) * 0.5
    moved = points + torch.tensor([2.0, -1.5, 0.0])  # whole voxels
    here, there = (model(PointBatch.from_points([p])) for p in (points, moved))
    torch.testing.assert_close(there.descriptors, here.descriptors, atol=1e-3, rtol=1e-3)


def test_an_empty_cloud_and_one_out_of_range_have_no_descriptors() -> None:
    found = network()(PointBatch.from_points([torch.zeros(0, 3), torch.full((5, 3), 50.0), cloud(4)]))
    assert not len(found.of_frame(0).points)
    assert not len(found.of_frame(1).points)
    assert len(found.of_frame(2).points)
    nothing = network()(PointBatch.from_points([torch.zeros(0, 3)]))
    assert nothing.descriptors.shape == (0, 32)


def test_every_parameter_learns() -> None:
    model = network().train()
    found = model(PointBatch.from_points([cloud(5), cloud(5) + 0.01]))
    correspondence_loss(found.of_frame(0), found.of_frame(1), torch.eye(4), 0.5, 1.0).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not still


def test_settings_make_the_same_network_again() -> None:
    model = network(descriptor_size=16)
    again = RegistrationNetwork(**model.settings)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert again.partitions == model.partitions
    with pytest.raises(ValueError, match="layers must be one or more pairs"):
        RegistrationNetwork(layers=[])


def random_points(seed: int, count: int) -> DescribedPoints:
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.randn(count, 4, generator=generator).double()
    points = torch.rand(count, 3, generator=generator).double() * 3
    return DescribedPoints(points, torch.nn.functional.normalize(descriptors, dim=1), torch.zeros(count).long())


def test_the_loss_is_that_of_a_loop() -> None:
    here, there = random_points(1, 20), random_points(2, 25)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # a quarter turn
    pose[0, 3] = 3.0
    moved = [(3 - y, x, z) for x, y, z in here.points.tolist()]
    target = there.points.tolist()
    partner = [min(range(25), key=lambda j: math.dist(p, target[j])) for p in moved]
    back = [min(range(20), key=lambda i: math.dist(moved[i], q)) for q in target]
    pairs = [(i, j) for i, j in enumerate(partner) if back[j] == i and math.dist(moved[i], target[j]) <= 0.6]
    assert len(pairs) > 3
    expected = 0.0
    for i, j in pairs:

        def logit(a: int, b: int) -> float:
            return float(here.descriptors[a] @ there.descriptors[b]) / 0.1

        rows = [logit(i, b) for a, b in pairs if a == i or math.dist(moved[i], target[b]) >= 0.9]
        columns = [logit(a, j) for a, b in pairs if b == j or math.dist(moved[a], target[j]) >= 0.9]
        own = logit(i, j)
        expected += sum(math.log(sum(map(math.exp, others))) - own for others in (rows, columns)) / 2
    loss = correspondence_loss(here, there, pose, 0.6, 0.9, temperature=0.1)
    assert float(loss) == pytest.approx(expected / len(pairs), rel=1e-6)


def test_the_loss_of_clouds_that_do_not_meet_is_zero_with_a_gradient() -> None:
    here, there = random_points(1, 5), random_points(2, 5)
    here.descriptors.requires_grad_()
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = 100.0
    loss = correspondence_loss(here, there, pose, 0.5, 1.0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert here.descriptors.grad is not None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 12), st.integers(0, 12), st.floats(0, 3))
def test_mutual_nearest_is_what_a_loop_finds(seed: int, n: int, m: int, distance: float) -> None:
    a, b = random_points(seed, n).points, random_points(seed + 1, m).points
    rows, partners = mutual_nearest(a, b, distance)
    apart = [[math.dist(p, q) for q in b.tolist()] for p in a.tolist()]
    wanted = [
        (i, j)
        for i in range(n)
        for j in range(m)
        if apart[i][j] == min(apart[i]) == min(row[j] for row in apart) and apart[i][j] <= distance
    ]
    assert list(zip(rows.tolist(), partners.tolist(), strict=True)) == wanted
