"""HOTFormer and HOTFormerLoc: relay tokens against loops that follow the published rules slot by slot."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pcdet_ext.data.normalize import CloudNormalization
from pcdet_ext.grouping.octree import Octree, build_octree
from pcdet_ext.models.backbones import HOTFormer
from pcdet_ext.models.backbones.hotformer import HierarchicalStage, HOTFormerStages, RelayOptions
from pcdet_ext.models.layers.octree_block import OctreeOptions
from pcdet_ext.models.layers.relay_tokens import RelayBlock, RelayWindows, tokens_of_clouds, window_statistics
from pcdet_ext.models.networks.hotformerloc import HOTFormerLoc, token_rows
from pcdet_ext.models.networks.octree_input import OctreeInput
from pcdet_ext.models.pooling import PyramidAttentionPooling, TokenAttentionPooling
from pcdet_ext.structures import PointBatch, SparseVoxels

SIZE, DILATION, CHANNELS = 8, 2, 8
PUBLISHED = OctreeOptions(SIZE, DILATION, 2.0, "layer", straddle=True)
SMALL = {"channels": (8, 16), "num_blocks": (1, 2), "num_heads": (2, 4), "num_levels": 2, "stem_down": 1}


def cloud(number: int, seed: int = 0) -> Tensor:
    points = torch.rand(number, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    points[:, 2] *= 0.1
    return points


def octree(counts: tuple[int, ...] = (60, 2, 45), depth: int = 5) -> Octree:
    return build_octree([cloud(count, i) for i, count in enumerate(counts)], depth)


class Slots:
    """The published windows of a depth, one slot after the other: row or None, cloud (B for padding), cell x, y, z."""

    def __init__(self, tree: Octree, depth: int) -> None:
        cells = tree.coords(depth).tolist()
        self.batch_size = tree.batch_size
        rows: list[int | None] = list(range(len(cells)))
        rows += [None] * (-len(rows) % (SIZE * DILATION))
        self.rows = [rows[i : i + SIZE] for i in range(0, len(rows), SIZE)]
        self.cloud = [[self.batch_size if r is None else cells[r][0] for r in window] for window in self.rows]
        self.cell = [[(0, 0, 0) if r is None else tuple(cells[r][:0:-1]) for r in window] for window in self.rows]
        self.owner = [min(window) for window in self.cloud]

    def own(self, window: int) -> list[int]:
        """Rows of the window's owner."""
        pairs = zip(self.rows[window], self.cloud[window], strict=True)
        return [row for row, frame in pairs if row is not None and frame == self.owner[window]]


def test_windows_and_their_owners() -> None:
    tree = octree()
    slots, level = Slots(tree, 4), RelayWindows.of(tree, 4, PUBLISHED)
    assert level.owner.tolist() == slots.owner
    assert 1 not in slots.owner  # the tiny cloud lies in a window of the one before it
    assert tree.batch_size in slots.owner  # and some windows are padding alone
    for window, own in enumerate(level.own):
        assert level.windows.index[window][own].tolist() == slots.own(window)


@pytest.mark.parametrize("statistics", ["pos", "var", "cov"])
def test_statistics_of_windows(statistics: str) -> None:
    tree = octree((60, 2, 45, 1))
    slots, level = Slots(tree, 4), RelayWindows.of(tree, 4, PUBLISHED)
    found = window_statistics(level, 4, statistics)
    cells = tree.coords(4).flip(1)[:, :3].double() / 8 - 1
    for window, values in enumerate(found.double()):
        own = cells[slots.own(window)]
        expected = own.mean(0) if len(own) else torch.zeros(3, dtype=torch.float64)
        spread = torch.cov(own.T) if len(own) > 1 else torch.zeros(3, 3, dtype=torch.float64)
        if statistics == "var":
            expected = torch.cat([expected, spread.diagonal()])
        if statistics == "cov":
            expected = torch.cat([expected, spread[[0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]])
        torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-5)


def test_means_of_windows() -> None:
    tree = octree()
    slots, level = Slots(tree, 4), RelayWindows.of(tree, 4, PUBLISHED)
    x = torch.randn(len(tree.coords(4)), 3)
    expected = [x[own].mean(0) if (own := slots.own(w)) else torch.zeros(3) for w in range(len(slots.rows))]
    torch.testing.assert_close(level.mean(x), torch.stack(expected))


def attend(mixer: nn.Module, tokens: list[Tensor], ids: list[int], cells: list) -> list[Tensor]:
    """Softmax attention with a mask of -1000 between different ids and biases of relative cells, pair by pair."""
    size = len(tokens[0]) // mixer.num_heads
    qkv = [mixer.in_proj_weight @ t + mixer.in_proj_bias for t in tokens]
    out = []
    for i in range(len(tokens)):
        heads = []
        for head in range(mixer.num_heads):
            part = slice(head * size, (head + 1) * size)
            logits = []
            for j in range(len(tokens)):
                logit = qkv[i][:CHANNELS][part] @ qkv[j][CHANNELS : 2 * CHANNELS][part] / math.sqrt(size)
                logit = logit - (0 if ids[i] == ids[j] else 1000)
                if mixer.relative_bias is not None and cells[i] is not None and cells[j] is not None:
                    for axis in range(3):
                        away = max(-mixer.bound, min(mixer.bound, cells[i][axis] - cells[j][axis]))
                        logit = logit + mixer.relative_bias[axis * (2 * mixer.bound + 1) + mixer.bound + away, head]
                logits.append(logit)
            weights = torch.stack(logits).softmax(0)
            heads.append(sum(w * t[2 * CHANNELS :][part] for w, t in zip(weights, qkv, strict=True)))
        out.append(mixer.out_proj(torch.cat(heads)))
    return out


def through(
    block: nn.Module, tokens: list[Tensor], ids: list[int], cells: list[tuple[int, ...] | None]
) -> list[Tensor]:
    """A pre-norm block on one window's tokens."""
    mixed = attend(block.mix.module, [block.mix.norm(t) for t in tokens], ids, cells)
    tokens = [t + m * (1 if block.mix.scale is None else block.mix.scale) for t, m in zip(tokens, mixed, strict=True)]
    scale = 1 if block.feed.scale is None else block.feed.scale
    return [t + scale * block.feed.module(block.feed.norm(t), None) for t in tokens]


@pytest.mark.parametrize("propagate", [False, True])
def test_a_block_is_attention_of_each_window_with_its_token(propagate: bool) -> None:
    torch.manual_seed(0)
    tree = octree()
    slots, level = Slots(tree, 4), RelayWindows.of(tree, 4, PUBLISHED)
    options = OctreeOptions(SIZE, DILATION, 2.0, "layer", straddle=True, layer_scale=0.7)
    block = RelayBlock(CHANNELS, 2, options, propagate=propagate, propagate_scale=0.3 if propagate else None).double()
    nn.init.normal_(block.block.mix.module.relative_bias)
    x = torch.randn(len(tree.coords(4)), CHANNELS, dtype=torch.float64)
    tokens = torch.randn(len(level.owner), CHANNELS, dtype=torch.float64)
    found, found_tokens = block(x, tokens, tree, 4, level, level.with_tokens())
    positioned = x + block.position(x, tree, 4)
    for window, rows in enumerate(slots.rows):
        locals_ = [x.new_zeros(CHANNELS) if r is None else positioned[r] for r in rows]
        ids = [slots.owner[window], *slots.cloud[window]]
        token, *nodes = through(block.block, [tokens[window], *locals_], ids, [None, *slots.cell[window]])
        torch.testing.assert_close(found_tokens[window], token)
        for row, frame, node in zip(rows, slots.cloud[window], nodes, strict=True):
            if row is not None:
                share = 0.3 * token if propagate and frame == slots.owner[window] else 0
                torch.testing.assert_close(found[row], node + share)


def test_tokens_of_all_depths_of_a_cloud_are_one_group() -> None:
    tree = octree()
    levels = [RelayWindows.of(tree, depth, PUBLISHED) for depth in (4, 3)]
    plan = tokens_of_clouds(levels)
    owners = [(i, w, owner) for i, level in enumerate(levels) for w, owner in enumerate(level.owner.tolist())]
    number = {pair[:2]: n for n, pair in enumerate(owners)}
    for frame in range(tree.batch_size):
        last = frame == tree.batch_size - 1
        mine = [(i, w, o) for i, w, o in owners if o == frame or (last and o == tree.batch_size)]
        valid = plan.valid[frame]
        assert plan.index[frame][valid].tolist() == [number[i, w] for i, w, _ in mine]
        assert plan.owner[frame][valid].tolist() == [o for _, _, o in mine]
    assert plan.index.flatten()[plan.inverse].tolist() == list(range(len(owners)))


def test_clouds_do_not_change_each_other_unless_windows_straddle() -> None:
    torch.manual_seed(0)
    alone, both = build_octree([cloud(45, 1)], 5), build_octree([cloud(60), cloud(45, 1)], 5)

    def second(straddle: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        options = OctreeOptions(SIZE, DILATION, norm="layer", straddle=straddle)
        stages = HOTFormerStages(3, **SMALL, options=options).eval()
        batch, single = (stages.hierarchical(tree.points / 16 - 1, tree) for tree in (both, alone))
        return batch.nodes[3][both.frame(3) == 1], single.nodes[3]

    torch.testing.assert_close(*second(straddle=False))
    batch, single = second(straddle=True)
    assert not torch.allclose(batch, single)


def test_no_window_is_padding_alone_unless_windows_straddle() -> None:
    tree = octree((60, 0, 2))
    level = RelayWindows.of(tree, 4, OctreeOptions(SIZE, DILATION, norm="layer"))
    assert set(level.owner.tolist()) == {0, 2}


@pytest.mark.parametrize("relay", [RelayOptions(), RelayOptions(None), None])
@pytest.mark.parametrize("channels", [(8,), (8, 16)])
def test_every_parameter_learns(channels: tuple[int, ...], relay: RelayOptions | None) -> None:
    torch.manual_seed(0)
    stage = HierarchicalStage(channels, (2,), 2, [0.0, 0.1], OctreeOptions(SIZE, norm="layer"), relay)
    tree = octree((60, 0, 45))
    found = stage(torch.randn(len(tree.coords(4)), 8), tree, 4)
    assert list(found.nodes) == [4, 3]
    assert list(found.tokens) == ([] if relay is None else [4, 3])
    sum(x.square().sum() for x in [*found.nodes.values(), *found.tokens.values()]).backward()
    assert not [name for name, p in stage.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_recomputing_changes_nothing() -> None:
    tree = octree((60, 45))
    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        stages = HOTFormerStages(3, **SMALL, options=OctreeOptions(SIZE, norm="layer"), recompute=recompute)
        found = stages(tree.points / 16 - 1, tree)
        sum(x.square().sum() for x in found.values()).backward()
        grads.append([p.grad for p in stages.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    with pytest.raises(ValueError, match="recompute cannot be used with batch norms"):
        HOTFormerStages(3, **SMALL, options=OctreeOptions(SIZE), recompute=True)


@pytest.mark.parametrize("counts", [(0,), (1,), (0, 40), (40, 0, 1)])
def test_the_backbone_takes_any_batch(counts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    grid, generator, coords = (4, 30, 28), torch.Generator().manual_seed(0), []
    for frame, count in enumerate(counts):
        cells = torch.randperm(math.prod(grid), generator=generator)[:count]
        place = [cells // (30 * 28), cells // 28 % 30, cells % 28]
        coords.append(torch.stack([torch.full_like(cells, frame), *place], 1))
    joined = torch.cat(coords).int()
    module = HOTFormer(5, grid, **SMALL, group_size=SIZE, out_channels=12)
    given = SparseVoxels(torch.randn(len(joined), 5), joined, grid, len(counts))
    found = module(given)
    expected = torch.unique(torch.cat([joined[:, :1], joined[:, 1:] // 4], 1), dim=0)
    assert torch.equal(torch.unique(found.coords, dim=0), expected)
    assert (module.strides, found.grid, module.out_grid) == ((4, 4, 4), (1, 8, 7), (1, 8, 7))
    found.features.sum().backward()
    assert found.features.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_levels": 3, "channels": (8, 16, 16)}, "channels of the 3 levels must be one number or one per level"),
        ({"num_blocks": (1,)}, "one number for each of the 1 stages and then"),
        ({"num_heads": (2,)}, "one number for each of the 1 stages and then"),
        (
            {"options": OctreeOptions(norm="layer"), "relay": RelayOptions("mean")},
            "statistics must be one of pos, var, cov",
        ),
        ({"channels": (8, 12), "num_heads": None}, "num_heads must be positive"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HOTFormerStages(3, **{**SMALL, **settings})


def network(cylindrical: bool = False, pooling: nn.Module | None = None, **settings: object) -> HOTFormerLoc:
    torch.manual_seed(0)
    stages = HOTFormerStages(3, **SMALL, options=OctreeOptions(SIZE, norm="layer"), **settings)
    pooling = pooling or PyramidAttentionPooling(stages.channels, [8, 8], 12)
    return HOTFormerLoc(OctreeInput(5), stages, pooling, CloudNormalization(cylindrical=cylindrical)).eval()


@pytest.mark.parametrize("cylindrical", [False, True])
def test_descriptors_have_length_one_and_do_not_depend_on_the_batch(cylindrical: bool) -> None:
    clouds = [torch.rand(n, 4, generator=torch.Generator().manual_seed(n)) * 30 for n in (80, 50)]
    model = network(cylindrical)
    found = model(PointBatch.from_points(clouds))
    assert found.shape == (2, 12)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(model(PointBatch.from_points(clouds[1:])), found[1:])
    torch.testing.assert_close(model(PointBatch.from_points([clouds[1] + 7])), found[1:], atol=1e-4, rtol=1e-3)


def test_pooling_of_relay_tokens_leaves_out_windows_of_padding() -> None:
    stages = HOTFormerStages(3, **SMALL, options=PUBLISHED)
    tree = octree()
    levels = token_rows(stages.hierarchical(tree.points / 16 - 1, tree))
    assert all(int(level.batch_index.max()) < tree.batch_size for level in levels)
    pooling = TokenAttentionPooling([16, 16], 8, 12)
    assert network(pooling=pooling)(PointBatch.from_points([cloud(50)])).shape == (1, 12)
    with pytest.raises(ValueError, match="pools relay tokens, which these stages do not have"):
        network(pooling=pooling, relay=None)


def test_a_cloud_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the cloud's 0 points"):
        network()(PointBatch.from_points([cloud(40), torch.zeros(0, 3)]))


def test_one_point_and_equal_points_have_a_descriptor() -> None:
    found = network()(PointBatch.from_points([torch.ones(1, 3), torch.ones(9, 3)]))
    assert found.isfinite().all()
    torch.testing.assert_close(found[0], found[1])
