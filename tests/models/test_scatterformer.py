"""ScatterFormer's backbone and 2-D cascade: windows, pillars, orders of voxels, engines, compilation, precision."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pcdet_ext import config
from pcdet_ext.engine.optimizer import OneCycle, build_optimizer
from pcdet_ext.grouping.orders import WindowX
from pcdet_ext.grouping.partitions import EqualGroups
from pcdet_ext.mixers import MIXERS
from pcdet_ext.models.backbones.scatterformer import (
    CrossWindowInteraction,
    PillarPooling,
    ScatterFormer,
    ScatterFormerStage,
    pillars,
)
from pcdet_ext.models.bev import CascadeDEDBackbone
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.heads.transfusion import TransFusionHead
from pcdet_ext.models.heads.transfusion_decoder import repeated_window
from pcdet_ext.structures import PointBatch, SparseVoxels, Targets

GRID = (8, 20, 24)


def voxels(
    seed: int = 0, number: int = 400, channels: int = 8, grid: tuple = GRID, batch_size: int = 2
) -> SparseVoxels:
    """Distinct cells in any order."""
    generator = torch.Generator().manual_seed(seed)
    depth, height, width = grid
    cells = torch.randperm(batch_size * depth * height * width, generator=generator)[:number]
    line, plane = cells // width, cells // (width * height)
    coords = torch.stack([plane // depth, plane % depth, line % height, cells % width], 1).int()
    return SparseVoxels(torch.randn(len(cells), channels, generator=generator), coords, grid, batch_size)


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with parameters and statistics that no longer hide anything (depth-wise weights start at zero)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean") or tensor.ndim == 4:
                tensor.normal_(0, 0.2, generator=generator)
    return module.eval()


def small(**options: object) -> ScatterFormer:
    torch.manual_seed(0)
    return randomized(ScatterFormer(8, GRID, **{"channels": 32, "window": (None, 6, 6), "num_layers": 2} | options))


def rows_by_cell(found: SparseVoxels) -> Tensor:
    """Features ordered by cell."""
    return found.features[pillars(found)[1].argsort()]


def test_attributes_tell_what_comes_out():
    backbone = small()
    found = backbone(voxels())
    assert found.features.shape[1] == backbone.out_channels == 32
    assert found.grid == backbone.out_grid == (1, 10, 12)
    assert backbone.stride == 2


def test_voxels_may_come_in_any_order():
    backbone, given = small(), voxels()
    shuffle = torch.randperm(len(given), generator=torch.Generator().manual_seed(1))
    moved = SparseVoxels(given.features[shuffle], given.coords[shuffle], GRID, 2)
    one, other = backbone(given), backbone(moved)
    assert one.coords.equal(other.coords)
    torch.testing.assert_close(one.features, other.features, rtol=1e-4, atol=1e-5)


def test_frames_do_not_see_each_other():
    backbone, given = small(), voxels()
    joined = backbone(given)
    for frame in range(2):
        mine = given.coords[:, 0] == frame
        coords = given.coords[mine] - torch.tensor([frame, 0, 0, 0], dtype=torch.int32)
        alone = backbone(SparseVoxels(given.features[mine], coords, GRID, 1))
        torch.testing.assert_close(alone.features, joined.features[joined.coords[:, 0] == frame], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_an_empty_batch_passes(training):
    backbone = small().train(training)
    found = backbone(voxels(number=0))
    assert found.features.shape == (0, 32)
    assert found.grid == (1, 10, 12)


@pytest.mark.skipif(find_spec("spconv") is None, reason="spconv is not installed")
def test_engines_agree():
    ours, theirs = small(engine="native"), small(engine="spconv")
    theirs.load_state_dict(ours.state_dict())
    given = voxels()
    one, other = ours(given), theirs(SparseVoxels(given.features, given.coords, GRID, 2))
    assert one.coords.equal(other.coords)
    torch.testing.assert_close(one.features, other.features, rtol=1e-4, atol=1e-4)


def test_without_interaction_windows_are_on_their_own():
    """With the convolutions at zero a voxel moves no other but those of its window, which spans the height."""
    torch.manual_seed(0)
    block = ScatterFormerStage(8, (None, 4, 4), num_layers=2, num_heads=2).eval()
    given = voxels()
    changed = given.features.clone()
    changed[0] += 1
    difference = (block(given).features - block(given.with_features(changed)).features).abs().sum(1)
    window = torch.cat([given.coords[:, :1], given.coords[:, 2:] // 4], 1)
    same = (window == window[0]).all(1)
    assert difference[0] > 0
    assert difference[~same].max() == 0
    assert same.sum() > 1


def test_windows_need_not_be_square_nor_span_the_height():
    """Attention alone: a voxel moves those of its window, (4, 2, 6) cells."""
    torch.manual_seed(0)
    stage = ScatterFormerStage(8, (4, 2, 6), num_layers=1, num_heads=2).eval()
    given = voxels(number=2000)
    changed = given.features.clone()
    changed[0] += 1
    moved = (stage(given).features - stage(given.with_features(changed)).features).abs().sum(1) > 0
    window = given.coords // torch.tensor([1, 4, 2, 6])
    same = (window == window[0]).all(1)
    assert moved[~same].sum() == 0
    assert moved[same].sum() > 1
    assert stage.interaction[0].along_x.kernel_size == (1, 1, 7)
    assert stage.interaction[0].along_y.kernel_size == (1, 3, 1)


def test_other_orders_partitions_and_mixers_come_from_a_configuration():
    backbone = small(
        order={"name": "WindowX", "path": "snake"},
        partition={"name": "EqualGroups", "group_size": 20},
        mixer={"name": "SoftmaxAttention", "num_heads": 4},
        block={"norm_kind": "layer", "layer_scale": 0.1},
    ).train()
    assert backbone.stages[1].order == WindowX((None, 6, 6), path="snake")
    assert backbone.stages[1].partition == EqualGroups(20)
    backbone(voxels()).features.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_layers_are_numbered_through_both_stages(monkeypatch):
    places = []

    class Numbered(nn.Module):
        def __init__(self, channels: int, layer_id: int, num_layers: int) -> None:
            super().__init__()
            places.append((layer_id, num_layers))

    monkeypatch.setitem(MIXERS._entries, "Numbered", Numbered)
    small(mixer={"name": "Numbered"})
    assert places == [(i, 4) for i in range(4)]


def test_interaction_crosses_windows_along_each_axis():
    layer = randomized(CrossWindowInteraction(8, (None, 4, 4))).double()
    coords = torch.tensor([[0, 1, 5, 5], [0, 1, 5, 7], [0, 1, 3, 5], [0, 2, 6, 6], [0, 1, 7, 7], [1, 1, 5, 6]])
    given = SparseVoxels(torch.ones(6, 8).double(), coords.int(), GRID, 2)
    changed = given.features.clone()
    changed[0] = 2
    moved = (layer(given).features - layer(given.with_features(changed)).features).abs().sum(1) > 0
    assert moved.tolist() == [True, True, True, True, False, False]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 80), st.booleans())
def test_pooling_equals_attention_on_padded_pillars(seed, number, nonnegative):
    torch.manual_seed(seed)
    layer = PillarPooling(8, 4, num_heads=2, nonnegative_query=nonnegative).double()
    given = voxels(seed, number, grid=(4, 4, 5))
    x = given.features.double().requires_grad_()
    coords, pillar = pillars(given)
    padded = x.new_zeros(len(coords), 4, 8).index_put((pillar, given.coords[:, 1].long()), x)
    empty = torch.ones(len(coords), 4, dtype=torch.bool)
    empty[pillar, given.coords[:, 1].long()] = False
    query = padded.masked_fill(empty[..., None], -torch.inf).amax(1)
    query = query.relu() if nonnegative else query
    keys = (padded + layer.position.weight).transpose(0, 1)
    mixed, _ = layer.attention(query[None], keys, padded.transpose(0, 1), key_padding_mask=empty)
    expected = layer.norm(query + mixed[0])
    actual = layer(given.with_features(x)).features
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    probe = torch.randn_like(expected)
    for mine, theirs in zip(
        *(torch.autograd.grad((y * probe).sum(), [x, *layer.parameters()]) for y in (actual, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_pillars_ascend():
    given = voxels()
    coords, pillar = pillars(given)
    order = (coords[:, 0].long() * GRID[1] + coords[:, 2]) * GRID[2] + coords[:, 3]
    assert (order.diff() > 0).all()
    assert coords[pillar][:, [0, 2, 3]].equal(given.coords[:, [0, 2, 3]])


def test_bfloat16_stays_close():
    """Autocast to bfloat16 (8 bits of mantissa) moves outputs of unit variance by a few hundredths."""
    backbone, given = small(), voxels()
    full = backbone(given).features
    with torch.autocast("cpu", torch.bfloat16):
        half = backbone(given).features.float()
    assert (half - full).abs().mean() < 0.03
    assert (half - full).abs().max() < 0.3


def test_bfloat16_trains():
    backbone = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = backbone(voxels()).features.float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(channels=30), "num_heads must be positive and divide channels, got 4 and 30"),
        (lambda: small(channels=36), "channels must be divisible by the 8 heads of the pooling, got 36"),
        (lambda: small(channels=30, num_heads=2), "channels must be divisible by four, got 30"),
        (lambda: small(window=(None, 6, 5)), "window must be even.*got .*5"),
        (lambda: small(window=(8, None, 6)), "window must be even.*got .*None"),
        (lambda: small(window=(None, 0, 6)), r"window must be three sizes .*, got \[None, 0, 6\]"),
        (lambda: small(window=(6, 6)), r"window must be three sizes \(Z, Y, X\)"),
        (lambda: small(num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: small(pool_heads=0), "divisible by the 0 heads"),
        (lambda: small(ffn_channels=0), "ffn_channels must be positive, got 0"),
        (lambda: small(order={"name": "Windows"}), "no order is named 'Windows'; did you mean"),
        (lambda: small(mixer={"name": "Linear"}), "no mixer is named 'Linear'"),
        (lambda: ScatterFormer(8, (1, 20, 24)), "too small for a kernel"),
        (lambda: CascadeDEDBackbone(8, num_sbb=[1, 1]), r"one entry per level, got 4, \[1, 1\] and \[1, 2, 2\]"),
        (lambda: CascadeDEDBackbone(8, down_strides=[1, 0, 2]), "must be positive, got"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_cascade_keeps_the_size():
    cascade = CascadeDEDBackbone(6, num_layers=2, feature_dim=4)
    assert cascade(torch.randn(1, 6, 8, 12)).shape == (1, 4, 8, 12)
    assert (cascade.out_channels, cascade.stride) == (4, 1)
    halving = CascadeDEDBackbone(6, num_layers=1, num_sbb=[0, 1], down_strides=[2, 2], feature_dim=4)
    assert halving(torch.randn(1, 6, 8, 12)).shape == (1, 4, 4, 6)
    assert halving.stride == 2


def test_cascade_refuses_maps_that_do_not_divide():
    with pytest.raises(ValueError, match=r"a map of \(10, 12\) cells does not divide"):
        CascadeDEDBackbone(4, num_layers=1, feature_dim=4)(torch.randn(1, 4, 10, 12))


@pytest.mark.parametrize("radius", [0, 1, 3, 9])
def test_windows_that_repeat_cells_equal_attention_to_gathered_ones(radius):
    """Each query attends to the cells around it, those outside of the map replaced by the nearest inside."""
    torch.manual_seed(0)
    rows, columns = 5, 7
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    cells, queries = torch.randn(1, rows * columns, 8).double(), torch.randn(1, 6, 8).double()
    at = torch.tensor([[0, 6, 16, 17, 28, 34]])
    bias = repeated_window(at, (rows, columns), radius).double().repeat_interleave(2, 0)
    actual = attention(queries, cells, cells, attn_mask=bias, need_weights=False)[0]
    for i, cell in enumerate(at[0].tolist()):
        around = [
            min(max(cell // columns + dy, 0), rows - 1) * columns + min(max(cell % columns + dx, 0), columns - 1)
            for dy in range(-radius, radius + 1)
            for dx in range(-radius, radius + 1)
        ]
        keys = cells[:, around]
        expected = attention(queries[:, i : i + 1], keys, keys, need_weights=False)[0]
        torch.testing.assert_close(actual[:, i : i + 1], expected)


def query_head(**options: object) -> TransFusionHead:
    torch.manual_seed(0)
    small = {"hidden_channels": 16, "num_heads": 2, "ffn_channels": 16, "num_proposals": 5, "window": 2}
    return TransFusionHead(4, ["Car"], [0, -8, -3, 16, 8, 1], [0.5, 0.5, 0.5], 2, **small | options)


def test_the_overlap_of_boxes_can_be_a_loss_of_query_heads():
    bev, boxes = torch.randn(1, 4, 16, 16), [torch.tensor([[8.0, 0, -1, 3.9, 1.6, 1.5, 0.3]])]
    plain, with_overlap = (
        head.loss(head(bev), [Targets(boxes[0], torch.tensor([0]))])
        for head in (query_head(), query_head(box_iou_weight=0.5, window_repeats=True))
    )
    assert "box_iou" not in plain
    assert 0 < with_overlap["box_iou"] < 1  # half of 1 - DIoU, of a single object
    sum(with_overlap.values()).backward()


def test_windows_cannot_wrap_and_repeat():
    with pytest.raises(ValueError, match="window_wraps and window_repeats exclude each other"):
        query_head(window_wraps=True, window_repeats=True)


def test_configuration_for_kitti_trains_a_step(root):
    """A step of the configuration for a first look: finite gradients everywhere, and parameters that move."""
    torch.manual_seed(0)
    detector = build_detector(config.load(root / "configs" / "kitti" / "scatterformer.yaml")).train()
    assert detector.stride == 2
    generator = torch.Generator().manual_seed(0)
    clouds = [
        torch.rand(800, 4, generator=generator) * torch.tensor([40.0, 30, 3, 1]) - torch.tensor([0, 15, 2.5, 0])
    ] * 2
    points = PointBatch.from_points(clouds)
    box = torch.tensor([[20.0, 0, -1, 3.9, 1.6, 1.5, 0.3]])
    batch = PointBatch(
        points.points, points.batch_index, 2, (Targets(box, torch.tensor([0])), Targets(box[:0], torch.zeros(0).long()))
    )
    optimizer = build_optimizer(detector, OneCycle())
    before = [p.detach().clone() for p in detector.parameters()]
    loss = detector.loss(batch)["total"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    optimizer.step()
    assert sum(not old.equal(new) for old, new in zip(before, detector.parameters(), strict=True)) == len(before)
    assert len(detector.eval().predict(batch)) == 2


@pytest.mark.slow
def test_compiled_blocks_give_the_same():
    """A block under torch.compile (inductor), with another number of voxels the second time; rounding apart."""
    torch.manual_seed(0)
    block = randomized(ScatterFormerStage(16, (None, 4, 4), num_layers=1, num_heads=2))
    compiled = torch.compile(block, dynamic=True)
    with torch.no_grad():
        for seed, number in ((0, 300), (1, 217)):
            given = voxels(seed, number, channels=16)
            expected = block(SparseVoxels(given.features, given.coords, GRID, 2)).features
            torch.testing.assert_close(compiled(given).features, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_traced_backbone_gives_the_same_with_gradients():
    """All of torch.compile but the code generation, which takes a minute here."""
    ours, given = small(num_layers=1), voxels()
    compiled = torch.compile(small(num_layers=1), backend="aot_eager")
    results = []
    for backbone in (ours, compiled):
        found = backbone(SparseVoxels(given.features, given.coords, GRID, 2))
        found.features.square().mean().backward()
        results.append([found.features.detach(), *(p.grad for p in backbone.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
