"""VoxelNeXt's and PillarNet's backbones: shapes, merged scales by brute force, rows in the order of spconv."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.backbones.voxelnext import merged_sites
from pcdet_ext.models.bev import BEV_BACKBONES
from pcdet_ext.models.layers.sparse_conv import SparseConv3d
from pcdet_ext.structures import SparseVoxels


def random_voxels(seed: int, grid: tuple[int, int, int], channels: int, share: float = 0.05) -> SparseVoxels:
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(2, *grid, generator=generator) < share).nonzero().int()
    coords = coords[torch.randperm(len(coords), generator=generator)]
    return SparseVoxels(torch.randn(len(coords), channels, generator=generator), coords, grid, 2)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_merged_scales_are_sums_over_columns_and_even_corners(seed: int) -> None:
    scales = [random_voxels(seed + i, (3, 9 - 4 * (i > 0), 12 // 2**i), 2, 0.2) for i in range(3)]
    found = merged_sites(scales, (1, 20, 12))
    expected: dict[tuple[int, int, int], torch.Tensor] = {}
    for i, scale in enumerate(scales):
        for (b, _, y, x), row in zip(scale.coords.tolist(), scale.features, strict=True):
            cell = (b, y * 2**i, x * 2**i)
            expected[cell] = expected.get(cell, torch.zeros(2)) + row
    cells = [(b, y, x) for b, _, y, x in found.coords.tolist()]
    assert cells == sorted(expected)
    for cell, row in zip(cells, found.features, strict=True):
        torch.testing.assert_close(row, expected[cell])


NODES = {
    "voxelnext": ({"name": "VoxelResBackBone8xVoxelNeXt", "channels": [4, 4, 4, 6, 6], "out_channels": 5}, (7, 32, 40)),
    "voxelnext_wide": (
        {"name": "VoxelResBackBone8xVoxelNeXt", "channels": [4, 4, 4, 6, 6], "kernel_sizes": [5, 5, 3, 3]},
        (7, 32, 40),
    ),
    "voxelnext2d": (
        {"name": "VoxelResBackBone8xVoxelNeXt2D", "channels": [3, 4, 4, 6, 6, 6], "out_channels": 5},
        (1, 32, 40),
    ),
    "pillarnet": ({"name": "PillarBackBone8x", "channels": [3, 4, 4, 6]}, (1, 32, 40)),
    "pillarnet_residual": ({"name": "PillarRes18BackBone8x", "channels": [3, 4, 4, 6]}, (1, 32, 40)),
}


@pytest.mark.parametrize("name", NODES)
def test_backbones_end_at_stride_eight_and_learn(name: str) -> None:
    node, grid = NODES[name]
    torch.manual_seed(0)
    backbone = BACKBONES.build(node, in_channels=3, grid=grid)
    voxels = random_voxels(1, grid, 3)
    out = backbone(voxels)
    assert out.grid == backbone.out_grid == (1, 4, 5)
    assert out.features.shape[1] == backbone.out_channels
    assert (out.coords[:, 2:] < torch.tensor([4, 5])).all()
    assert len(out.coords.unique(dim=0)) == len(out)
    out.features.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
    nothing = SparseVoxels(voxels.features[:0], voxels.coords[:0], grid, 2)
    assert len(backbone.eval()(nothing)) == 0


@pytest.mark.skipif(find_spec("spconv") is None, reason="spconv is not installed")
@pytest.mark.parametrize("name", NODES)
def test_both_engines_give_the_same(name: str) -> None:
    node, grid = NODES[name]
    torch.manual_seed(0)
    native, other = (BACKBONES.build(node | {"engine": e}, in_channels=3, grid=grid) for e in ("native", "spconv"))
    other.load_state_dict(native.state_dict())
    voxels = random_voxels(2, grid, 3)
    ours, theirs = (backbone.eval()(voxels).dense() for backbone in (native, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(find_spec("spconv") is None, reason="spconv is not installed")
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), kernel=st.sampled_from([(1, 3, 3), (3, 3, 3), (1, 5, 3)]), stride=st.integers(1, 2))
def test_rows_as_first_seen_are_those_of_spconv(seed: int, kernel: tuple[int, int, int], stride: int) -> None:
    voxels = random_voxels(seed, (4, 7, 9), 2, 0.1)
    padding = tuple(k // 2 for k in kernel)
    ours, theirs = (
        SparseConv3d(2, 3, kernel, stride, padding, engine=engine, first_seen=True) for engine in ("native", "spconv")
    )
    if len(voxels):
        assert ours(voxels).coords.equal(theirs(voxels).coords)


NECK = {"name": "PillarNetNeck", "num_filters": [8, 6], "num_upsample_filters": [3, 5], "layer_nums": [1, 2]}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("factor", [1, 2])
def test_neck_keeps_the_size_or_enlarges_it(residual: bool, factor: int) -> None:
    strides = [factor, 2 * factor]
    neck = BEV_BACKBONES.build(NECK | {"residual": residual, "upsample_strides": strides}, in_channels=6)
    out = neck(torch.randn(2, 6, 4, 10))
    assert out.shape == (2, 8, 4 * factor, 10 * factor)
    assert (neck.out_channels, neck.stride) == (8, 1 / factor)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BACKBONES.build(NODES["pillarnet"][0], in_channels=3, grid=(2, 16, 16)), "one layer in z"),
        (lambda: BACKBONES.build(NODES["pillarnet"][0], in_channels=4, grid=(1, 16, 16)), "4 widths, the pillars' 4"),
        (
            lambda: BACKBONES.build(
                NODES["voxelnext"][0] | {"kernel_sizes": [4, 3, 3, 3]}, in_channels=3, grid=(7, 32, 32)
            ),
            "odd and at least 3, got 4",
        ),
        (
            lambda: BACKBONES.build(
                NODES["voxelnext"][0] | {"channels": [4, 4, 4, 5, 6]}, in_channels=3, grid=(7, 32, 32)
            ),
            "must have one width",
        ),
        (lambda: BEV_BACKBONES.build(NECK, in_channels=6, map_size=(4, 5)), "even in both directions"),
        (lambda: BEV_BACKBONES.build(NECK | {"num_filters": [9, 6]}, in_channels=6), "the joined levels' 8"),
        (lambda: BEV_BACKBONES.build(NECK | {"upsample_strides": [1, 1]}, in_channels=6), "s and 2 s"),
    ],
)
def test_sizes_that_cannot_be_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
