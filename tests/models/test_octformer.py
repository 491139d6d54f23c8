"""OctFormer: stages on octrees, the backbone on voxels, and the networks that give classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pcdet_ext.grouping.octree import build_octree, octree_of_voxels
from pcdet_ext.models.backbones import OctFormer
from pcdet_ext.models.backbones.octformer import OctFormerStages
from pcdet_ext.models.heads.octree import OctreeClassificationHead, OctreeSegmentationHead
from pcdet_ext.models.layers.mixer_block import DropPath
from pcdet_ext.models.layers.octree_block import OctreeBlock, OctreeOptions, drop_rates
from pcdet_ext.models.networks.octformer import OctreeClassifier, OctreeSegmenter
from pcdet_ext.models.networks.octree_input import OctreeInput
from pcdet_ext.structures import Groups, SparseVoxels

SMALL = {"channels": (8, 16), "num_blocks": (2, 1), "num_heads": (2, 4), "stem_down": 2}
GRID = (10, 40, 36)


def cloud(number: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(number, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def voxels(counts: tuple[int, ...], seed: int = 0) -> SparseVoxels:
    generator, coords = torch.Generator().manual_seed(seed), []
    for frame, count in enumerate(counts):
        cells = torch.randperm(GRID[0] * GRID[1] * GRID[2], generator=generator)[:count]
        place = [cells // (GRID[1] * GRID[2]), cells // GRID[2] % GRID[1], cells % GRID[2]]
        coords.append(torch.stack([torch.full_like(cells, frame), *place], 1))
    joined = torch.cat(coords).int()
    return SparseVoxels(torch.randn(len(joined), 5, generator=generator), joined, GRID, len(counts))


def backbone(**settings: object) -> OctFormer:
    torch.manual_seed(0)
    return OctFormer(5, GRID, **SMALL, group_size=8, dilation=2, out_channels=12, **settings).eval()


def test_the_octree_of_voxels_has_them_as_leaves() -> None:
    given = voxels((50, 0, 30))
    octree = octree_of_voxels(given)
    assert octree.depth == 6
    assert torch.equal(octree.coords(6)[octree.point_leaf], given.coords)
    assert octree.levels[6].occupied.tolist() == [50, 0, 30]
    assert torch.equal(octree.points[octree.point_leaf], given.coords[:, [3, 2, 1]] + 0.5)
    assert octree_of_voxels(given) is octree


def test_a_grid_beyond_the_deepest_octree_is_refused() -> None:
    wide = SparseVoxels(torch.zeros(1, 1), torch.zeros(1, 4, dtype=torch.int32), (1, 1, 2**16 + 1), 1)
    with pytest.raises(ValueError, match=r"at most 2\^16 cells"):
        octree_of_voxels(wide)


def test_the_backbone_gives_the_cells_that_hold_voxels() -> None:
    given, module = voxels((120, 60)), backbone()
    found = module(given)
    expected = torch.unique(torch.cat([given.coords[:, :1], given.coords[:, 1:] // 4], 1), dim=0)
    assert torch.equal(torch.unique(found.coords, dim=0), expected)
    assert (module.stride, module.strides, module.out_grid) == (4, (4, 4, 4), (3, 10, 9))
    assert found.grid == module.out_grid
    assert found.features.shape == (len(expected), module.out_channels)


def test_the_order_of_voxels_does_not_matter() -> None:
    given, module = voxels((120, 60)), backbone()
    turn = torch.randperm(len(given), generator=torch.Generator().manual_seed(3))
    turned = SparseVoxels(given.features[turn], given.coords[turn], GRID, 2)
    torch.testing.assert_close(module(turned).features, module(given).features)


def test_frames_do_not_change_each_other_unless_windows_straddle() -> None:
    both = voxels((90, 60))
    alone = SparseVoxels(both.features[90:], both.coords[90:] - torch.tensor([1, 0, 0, 0], dtype=torch.int32), GRID, 1)

    def second(module: OctFormer) -> torch.Tensor:
        found = module(both)
        return found.features[found.coords[:, 0] == 1]

    module = backbone()
    torch.testing.assert_close(second(module), module(alone).features)
    published = backbone(straddle=True)
    assert not torch.allclose(second(published), published(alone).features)


@pytest.mark.parametrize("counts", [(0,), (1,), (0, 40), (40, 0, 1)])
def test_empty_frames_and_single_voxels(counts: tuple[int, ...]) -> None:
    module, given = backbone(), voxels(counts)
    found = module(given)
    assert found.features.isfinite().all()
    assert sorted(set(found.coords[:, 0].tolist())) == [i for i, count in enumerate(counts) if count]
    module.train()
    module(given).features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_every_parameter_learns() -> None:
    module = backbone().train()
    module(voxels((200, 100))).features.square().sum().backward()
    assert not [name for name, p in module.named_parameters() if p.grad is None]


def test_blocks_without_output_weights_are_the_identity() -> None:
    block = OctreeBlock(8, 2, OctreeOptions(8, 2))
    for name, parameter in block.named_parameters():
        if "out_proj" in name or name == "position.conv.weights":
            nn.init.zeros_(parameter)
    octree = build_octree([cloud(90)], 4)
    x = torch.randn(len(octree.coords(3)), 8)
    assert torch.equal(block.eval()(x, octree, 3), x)


def test_layer_scale_is_the_factor_of_the_branches() -> None:
    torch.manual_seed(0)
    block = OctreeBlock(8, 2, OctreeOptions(8, 2, layer_scale=0.0)).eval()
    octree = build_octree([cloud(90)], 4)
    x = torch.randn(len(octree.coords(3)), 8)
    expected = x + block.position(x, octree, 3)
    torch.testing.assert_close(block(x, octree, 3), expected)


def test_wide_position_encoding_is_a_convolution_a_linear_layer_and_a_norm() -> None:
    torch.manual_seed(0)
    block = OctreeBlock(8, 2, OctreeOptions(8, 2, norm="layer", position="full")).eval()
    octree = build_octree([cloud(90)], 4)
    x, table = torch.randn(len(octree.coords(3)), 8), octree.table(3)
    rows = torch.cat([x, torch.zeros(1, 8)])[table]
    conv = torch.einsum("nki,kio->no", rows, block.position.conv.weights) + block.position.conv.bias
    expected = torch.nn.functional.layer_norm(block.position.linear(conv), (8,))
    torch.testing.assert_close(block.position(x, octree, 3), expected, atol=1e-5, rtol=1e-5)


def test_grouped_position_encoding_convolves_shares_of_the_channels() -> None:
    torch.manual_seed(0)
    block = OctreeBlock(16, 2, OctreeOptions(8, 2, norm="layer", position="groups")).eval()
    octree = build_octree([cloud(90)], 4)
    x, table = torch.randn(len(octree.coords(3)), 16), octree.table(3)
    rows = torch.cat([x, torch.zeros(1, 16)])[table]
    parts = [
        torch.einsum("nki,kio->no", rows[..., 2 * i : 2 * i + 2], conv.weights)
        for i, conv in enumerate(block.position.conv.convs)
    ]
    expected = torch.nn.functional.layer_norm(torch.cat(parts, 1), (16,))
    torch.testing.assert_close(block.position(x, octree, 3), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="12 channels cannot be shared out among 8 groups"):
        OctreeBlock(12, 2, OctreeOptions(position="groups"))
    with pytest.raises(ValueError, match="position must be depth-wise, full or groups, got 'none'"):
        OctreeOptions(position="none")


def test_stochastic_depth_rises_over_all_blocks_and_drops_whole_clouds() -> None:
    assert drop_rates(0.5, 3) == [0.0, 0.25, 0.5]
    assert drop_rates(0.5, 1) == [0.0]
    stages = OctFormerStages(3, **SMALL, drop_path=0.4)
    assert [b.block.mix.drop_path.rate for blocks in stages.blocks for b in blocks] == [0.0, 0.2, 0.4]
    torch.manual_seed(0)
    owner = torch.tensor([[0, 0, 1, 1], [1, 2, 2, 3]])
    plan = Groups(torch.arange(8).view(2, 4), torch.arange(8), owner=owner)
    draws = torch.stack([DropPath(0.5, "owner").train()(torch.ones(8, 1), plan)[:, 0] for _ in range(64)])
    assert all(torch.equal(draws[:, i], draws[:, j]) for i, j in ((0, 1), (2, 3), (3, 4), (5, 6)))
    assert set(draws.unique().tolist()) == {0.0, 2.0}
    assert len(draws.unique(dim=0)) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": (8, 16, 24)}, "one number per stage"),
        ({"num_blocks": (0, 1)}, "one number per stage"),
        ({"stem_down": 0}, "stem_down must be positive"),
        ({"channels": (6, 16), "num_heads": (2, 4)}, r"divisible by 2\^stem_down = 4"),
        ({"num_heads": (3, 4)}, "num_heads must be positive and divide channels"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\)"),
        ({"norm": "power"}, "norm must be batch or layer, got 'power'"),
        ({"group_size": 0}, "group_size, dilation and mlp_ratio must be positive"),
        (
            {"stem_down": 3, "channels": (8,) * 4, "num_blocks": (1,) * 4, "num_heads": (2,) * 4},
            "too small to be halved 6",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OctFormer(5, GRID, **{**SMALL, **settings})


@pytest.mark.parametrize("nempty", [True, False])
def test_where_all_nodes_hold_points_full_depth_changes_nothing(nempty: bool) -> None:
    """Both stages lie above full_depth in one octree, and none in the other."""
    cells = torch.cartesian_prod(*[torch.arange(8.0)] * 3)
    points = torch.cat([(cells + 0.3) / 4 - 1, cloud(200)])
    torch.manual_seed(0)
    stages = OctFormerStages(3, **SMALL, options=OctreeOptions(8, 2, nempty=nempty)).eval()
    results = []
    for full_depth in (1, 3):
        octree = build_octree([points, points[:600]], 4, full_depth)
        x = octree.points if nempty else octree.pad(octree.points, 4)
        results.append(stages(x, octree))
    assert results[0].keys() == results[1].keys() == {2, 1}
    for depth, x in results[0].items():
        torch.testing.assert_close(x, results[1][depth])


def test_nodes_above_full_depth_have_rows_without_points_too() -> None:
    octree = build_octree([cloud(5), cloud(3, 1)], 4, full_depth=3)
    assert len(octree.windows(2, 8).cells) == 2 * 64
    maps = OctFormerStages(3, **SMALL)(octree.points, octree)
    assert maps[2].shape[0] == 2 * 64
    assert maps[2].isfinite().all()
    with pytest.raises(ValueError, match="depths 0 to 4, not at 5"):
        octree.windows(5, 8)


def segmenter(nempty: bool) -> OctreeSegmenter:
    torch.manual_seed(0)
    options = OctreeOptions(8, 2, nempty=nempty)
    stages = OctFormerStages(3, **SMALL, options=options)
    head = OctreeSegmentationHead((8, 16), 4, 12, up=2, dropout=(0.1, 0.1), options=options)
    return OctreeSegmenter(OctreeInput(5), stages, head)


@pytest.mark.parametrize("nempty", [True, False])
def test_segmentation_of_any_batch(nempty: bool) -> None:
    network = segmenter(nempty)
    clouds = [cloud(40), cloud(0), cloud(1, 2), torch.ones(5, 3)]
    octree = network.source.octree(clouds)
    frame = torch.repeat_interleave(torch.tensor([len(c) for c in clouds]))
    logits = network(octree, torch.cat(clouds), frame)
    assert logits.shape == (46, 4)
    logits.sum().backward()
    assert logits.isfinite().all()
    network.eval()
    at_border = network(octree, torch.cat(clouds), frame)[-5:]
    assert torch.equal(at_border, at_border[:1].expand(5, -1))


@pytest.mark.parametrize("nempty", [True, False])
def test_classification_of_any_batch(nempty: bool) -> None:
    torch.manual_seed(0)
    options = OctreeOptions(8, 2, nempty=nempty)
    stages = OctFormerStages(4, **SMALL, options=options)
    network = OctreeClassifier(OctreeInput(5, features="ND"), stages, OctreeClassificationHead(16, 6, options)).eval()
    clouds = [cloud(40), cloud(30, 1)]
    normals = [torch.nn.functional.normalize(c, dim=1) for c in clouds]
    logits = network(network.source.octree(clouds, normals))
    assert logits.shape == (2, 6)
    alone = network(network.source.octree(clouds[1:], normals[1:]))
    torch.testing.assert_close(logits[1:], alone)


def test_depth_16() -> None:
    octree = build_octree([cloud(30), torch.full((3, 3), 1.0)], 16)
    torch.manual_seed(0)
    stages = OctFormerStages(3, **SMALL, options=OctreeOptions(8, 2)).eval()
    found = stages(octree.points / 2**16, octree)
    assert list(found) == [14, 13]
    assert found[14].shape == (31, 8)
    assert all(x.isfinite().all() for x in found.values())
