"""The encoder of octree leaves, against the octree of the published networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pcdet_ext.grouping.octree import octree_of_voxels
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.networks.octree_input import OctreeInput
from pcdet_ext.structures import PointBatch

SUNRGBD = {"point_cloud_range": (-20.48,) * 3 + (20.48,) * 3, "voxel_size": (0.01,) * 3}


def encoder(**options: Any) -> Any:
    settings = {"in_channels": 6, **SUNRGBD} | options
    return ENCODERS.build({"name": "OctreeVFE"}, **settings)


def rooms() -> PointBatch:
    """Points with colours of three rooms, whose rows are mixed; the second room is empty. Some points lie outside."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(4000, 6, generator=generator)
    points[:, :3] = (points[:, :3] - 0.5) * 6
    points[:40, :3] *= 20
    points[40] = torch.tensor([20.2752, 0, 0, 1, 1, 1])  # exactly at 0.99 of half the side
    points[41] = torch.tensor([float("nan"), 0, 0, 1, 1, 1])
    frame = torch.randint(0, 2, (len(points),), generator=generator) * 2
    return PointBatch(points, frame, 3)


def test_leaves_are_those_of_the_published_rule() -> None:
    """Points times 1 / 20.48, those outside of (-0.99, 0.99) left out, depth 12, full to depth 2."""
    given, found = rooms(), encoder().forward(rooms())
    clouds, colours = [], []
    for number in range(3):
        cloud = given.points[given.batch_index == number]
        scaled = cloud[:, :3] * (1 / 20.48)
        inside = ((scaled > -0.99) & (scaled < 0.99)).all(1)
        clouds.append(scaled[inside])
        colours.append(cloud[inside, 3:])
    assert 3900 < sum(map(len, clouds)) < 3990
    octree = OctreeInput(12, 2, "F").octree(clouds, features=colours)
    assert torch.equal(found.coords, octree.coords(12))
    torch.testing.assert_close(found.features, octree.features)
    assert (found.grid, found.batch_size) == ((4096,) * 3, 3)
    own = octree_of_voxels(found)
    assert (own.depth, own.full_depth) == (12, 2)
    for ours, theirs in zip(own.levels, octree.levels, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.children, theirs.children)
    assert torch.equal(own.point_leaf, torch.arange(len(found)))


def test_every_point_knows_its_voxel() -> None:
    given, layer = rooms(), encoder()
    assert layer(given).point_index is None
    layer.keep_point_index = True
    found = layer(given)
    index = found.point_index
    inside = (given.points[:, :3].abs() < 0.99 * 20.48).all(1)
    assert torch.equal(index >= 0, inside)
    cells = found.coords[index[inside]]
    assert torch.equal(cells[:, 0].long(), given.batch_index[inside])
    corners = cells[:, [3, 2, 1]] * 0.01 - 20.48
    beyond = given.points[inside, :3] - corners
    assert float(beyond.min()) > -1e-4
    assert float(beyond.max()) < 0.01 + 1e-4


def test_letters_choose_the_features() -> None:
    given = rooms()
    plain, all_of_them = encoder(features="F")(given).features, encoder(features="fpl")
    features = all_of_them(given).features
    assert all_of_them.out_channels == features.shape[1] == 9
    torch.testing.assert_close(features[:, 6:], plain)
    voxels = all_of_them(given)
    middle = voxels.coords[:, [3, 2, 1]] + 0.5
    torch.testing.assert_close((features[:, 3:6] + 1) * 2048, middle + features[:, :3], rtol=1e-6, atol=1e-3)


def test_a_cube_anywhere_is_an_octree() -> None:
    layer = encoder(point_cloud_range=(0.0, -1.6, 2.0, 3.2, 1.6, 5.2), voxel_size=(0.1,) * 3, in_channels=4)
    found = layer(PointBatch(torch.tensor([[0.25, 0.05, 3.55, 9.0]]), torch.zeros(1, dtype=torch.int64), 1))
    assert found.coords.tolist() == [[0, 15, 16, 2]]
    assert found.features.tolist() == [[9.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_size": (0.02, 0.01, 0.01)}, r"cube of 2\^depth equal voxels .*has 2048, 4096 and 4096"),
        ({"point_cloud_range": (-15.0,) * 3 + (15.0,) * 3}, "this one has 3000, 3000 and 3000"),
        ({"features": "FN"}, "features must be letters of LPF, got 'FN'"),
        ({"features": ""}, "features must be letters of LPF, got ''"),
        ({"in_channels": 3}, "features 'F' need columns behind x, y and z, the points have 3 columns"),
        ({"margin": 0.0}, "margin must be above 0 and below 1, got 0.0"),
        ({"full_depth": 13}, "full_depth must lie between 1 and the depth 12 of the leaves, got 13"),
    ],
)
def test_what_makes_no_octree_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(**options)
