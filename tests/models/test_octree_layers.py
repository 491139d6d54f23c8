"""Layers on octrees against dense convolutions and pooling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pcdet_ext.grouping.octree import Octree, build_octree
from pcdet_ext.models.layers.octree import (
    OctreeConv,
    OctreeDeconv,
    OctreeDWConv,
    octree_global_pool,
    octree_interpolate,
    octree_max_pool,
    octree_upsample,
)

DEPTH = 3


@pytest.fixture(params=[True, False], ids=["occupied", "all"])
def nempty(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def octree() -> Octree:
    generator = torch.Generator().manual_seed(0)
    return build_octree([torch.rand(n, 3, generator=generator) * 2 - 1 for n in (40, 25)], DEPTH)


def rows(octree: Octree, depth: int, nempty: bool, channels: int) -> Tensor:
    count = len(octree.coords(depth, nempty))
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(depth))


def dense(features: Tensor, octree: Octree, depth: int, nempty: bool, fill: float = 0.0) -> Tensor:
    """[B, C, X, Y, Z]"""
    b, z, y, x = octree.coords(depth, nempty).long().unbind(1)
    cube = torch.full((octree.batch_size, *(2**depth,) * 3, features.shape[1]), fill)
    cube[b, x, y, z] = features
    return cube.permute(0, 4, 1, 2, 3)


def read(cube: Tensor, octree: Octree, depth: int, nempty: bool) -> Tensor:
    b, z, y, x = octree.coords(depth, nempty).long().unbind(1)
    return cube.permute(0, 2, 3, 4, 1)[b, x, y, z]


@pytest.mark.parametrize("kernel", ["333", "311", "131", "113", "331", "133", "313"])
def test_convolution_is_the_dense_one(octree: Octree, nempty: bool, kernel: str) -> None:
    conv, x = OctreeConv(4, 6, kernel, nempty=nempty, bias=True), rows(octree, DEPTH, nempty, 4)
    extents = [int(digit) for digit in kernel]
    weight = conv.weights.view(*extents, 4, 6).permute(4, 3, 0, 1, 2)
    cube = dense(x, octree, DEPTH, nempty)
    expected = torch.nn.functional.conv3d(cube, weight, conv.bias, padding=[e // 2 for e in extents])
    torch.testing.assert_close(conv(x, octree, DEPTH), read(expected, octree, DEPTH, nempty), atol=1e-5, rtol=1e-5)


def test_depthwise_convolution_is_the_dense_one(octree: Octree, nempty: bool) -> None:
    conv, x = OctreeDWConv(4, nempty=nempty), rows(octree, DEPTH, nempty, 4)
    weight = conv.weights.view(3, 3, 3, 4).permute(3, 0, 1, 2)[:, None]
    expected = torch.nn.functional.conv3d(dense(x, octree, DEPTH, nempty), weight, padding=1, groups=4)
    torch.testing.assert_close(conv(x, octree, DEPTH), read(expected, octree, DEPTH, nempty), atol=1e-5, rtol=1e-5)


def test_strided_convolution_and_its_transpose(octree: Octree, nempty: bool) -> None:
    conv, x = OctreeConv(4, 6, "222", 2, nempty), rows(octree, DEPTH, nempty, 4)
    weight = conv.weights.view(2, 2, 2, 4, 6).permute(4, 3, 0, 1, 2)
    expected = torch.nn.functional.conv3d(dense(x, octree, DEPTH, nempty), weight, stride=2)
    down = conv(x, octree, DEPTH)
    occupied = read(expected, octree, DEPTH - 1, True)
    wanted = occupied if nempty else octree.pad(occupied, DEPTH - 1)
    torch.testing.assert_close(down, wanted, atol=1e-5, rtol=1e-5)
    deconv = OctreeDeconv(6, 4, "222", nempty)
    deconv.weights.data = conv.weights.data
    y = torch.randn_like(down)
    # <conv x, y> = <x, deconv y>
    torch.testing.assert_close((down * y).sum(), (x * deconv(y, octree, DEPTH - 1)).sum(), atol=1e-3, rtol=1e-4)


class Operations(TorchDispatchMode):
    """Names of all operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


LOOKED_UP = ("aten::nonzero", "aten::cat", "pcdet_ext::octree_neighbours")


@pytest.mark.parametrize("kind", ["conv", "halving", "deconv", "depth-wise"])
def test_the_second_convolution_of_a_depth_looks_nothing_up(kind: str) -> None:
    octree = build_octree([torch.rand(50, 3, generator=torch.Generator().manual_seed(0))], DEPTH)
    conv, depth = {
        "conv": (OctreeConv(4, 4), DEPTH),
        "halving": (OctreeConv(4, 4, "222", stride=2), DEPTH),
        "deconv": (OctreeDeconv(4, 4), DEPTH - 1),
        "depth-wise": (OctreeDWConv(4), DEPTH),
    }[kind]
    x, lookups = rows(octree, depth, True, 4), []
    for _ in range(2):
        with Operations() as operations:
            conv(x, octree, depth)
        lookups.append([name for name in operations.names if name in LOOKED_UP])
    assert lookups[0]
    assert not lookups[1]


@pytest.mark.parametrize("stride", [1, 2])
def test_pairs_are_the_entries_of_the_table(octree: Octree, nempty: bool, stride: int) -> None:
    table = octree.table(DEPTH, "333", stride, nempty)
    read = torch.full_like(table, -1)
    for column, (into, out) in enumerate(octree.pairs(DEPTH, "333", stride, nempty)):
        read[out, column] = into
    assert torch.equal(read, table)


def test_pooling_and_upsampling(octree: Octree, nempty: bool) -> None:
    x = rows(octree, DEPTH, nempty, 4)
    cube = torch.nn.functional.max_pool3d(dense(x, octree, DEPTH, nempty, -torch.inf), 2)
    pooled = octree_max_pool(x, octree, DEPTH, nempty)
    occupied = pooled if nempty else octree.depad(pooled, DEPTH - 1)
    torch.testing.assert_close(occupied, read(cube, octree, DEPTH - 1, True))
    frame = octree.coords(DEPTH, nempty)[:, 0]
    means = torch.stack([x[frame == b].mean(0) for b in range(2)])
    torch.testing.assert_close(octree_global_pool(x, octree, DEPTH, nempty), means)
    coarse = rows(octree, 1, nempty, 4)
    up = torch.nn.functional.interpolate(dense(coarse, octree, 1, nempty), scale_factor=4.0)
    torch.testing.assert_close(octree_upsample(coarse, octree, 1, DEPTH, nempty), read(up, octree, DEPTH, nempty))


def test_linear_interpolation_reproduces_planes_where_all_cells_exist() -> None:
    octree = build_octree([torch.rand(3, 3) * 2 - 1], 3, 3)
    centres = (octree.coords(3, nempty=False)[:, 1:].flip(1) + 0.5) / 4 - 1
    plane = centres @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3
    points = torch.rand(50, 3) * 1.7 - 0.85
    frame = torch.zeros(50, dtype=torch.int64)
    found = octree_interpolate(plane, octree, 3, points, frame, nempty=False, linear=True)
    torch.testing.assert_close(found, points @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3, atol=1e-4, rtol=1e-4)


def test_interpolation_takes_the_row_of_the_node_and_zero_where_there_is_none(octree: Octree) -> None:
    x = rows(octree, DEPTH, True, 4)
    cells = octree.coords(DEPTH)
    centres = (cells[:, 1:].flip(1) + 0.5) / 2 ** (DEPTH - 1) - 1
    torch.testing.assert_close(octree_interpolate(x, octree, DEPTH, centres, cells[:, 0].long()), x)
    elsewhere = octree_interpolate(x, octree, DEPTH, centres + 5, cells[:, 0].long())
    assert not elsewhere.any()


@pytest.mark.parametrize(
    ("arguments", "message"), [(("555",), "kernel must be one of"), (("333", 3), "stride must be")]
)
def test_wrong_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OctreeConv(4, 4, *arguments)
