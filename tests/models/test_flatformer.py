"""FlatFormer against the paper written out voxel by voxel, its properties, and detectors with it."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.grouping.orders import Hilbert, WindowX, WindowY
from pcdet_ext.mixers import MIXERS
from pcdet_ext.mixers.position import sinusoidal_embedding
from pcdet_ext.models.backbones import BACKBONES, FlatFormer
from pcdet_ext.models.bev import BEV_BACKBONES
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.encoders import DynamicPillarVFE
from pcdet_ext.models.heads.center import CenterHead, CenterOutput
from pcdet_ext.models.heads.center_branches import TaskMaps
from pcdet_ext.structures import PointBatch, SparseVoxels, Targets

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GRID = (1, 24, 30)


def voxels(seed: int, counts: list[int], channels: int = 8, dtype: torch.dtype = torch.float32) -> SparseVoxels:
    """So many random cells of each frame, in random order."""
    generator = torch.Generator().manual_seed(seed)
    coords = []
    for frame, count in enumerate(counts):
        cell = torch.randperm(GRID[1] * GRID[2], generator=generator)[:count]
        zero = torch.zeros_like(cell)
        coords.append(torch.stack([zero + frame, zero, cell // GRID[2], cell % GRID[2]], 1))
    shuffled = torch.cat(coords)[torch.randperm(sum(counts), generator=generator)]
    features = torch.randn(sum(counts), channels, generator=generator, dtype=dtype)
    return SparseVoxels(features, shuffled.int(), GRID, len(counts))


def backbone(channels: int = 8, **arguments: object) -> FlatFormer:
    torch.manual_seed(0)
    small = {"num_blocks": 1, "num_heads": 2, "window": (None, 6, 5), "group_size": 10}
    built = FlatFormer(channels, GRID, **(small | arguments))
    for parameter in built.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.3)
    return built.eval()


def key(coords: list[int], axis: str, shifted: bool, window: tuple[int, int]) -> tuple:
    """Sort key: windows in snake order, cells inside them in snake order, which odd rows of windows reverse."""
    wy, wx = window
    _, _, y, x = coords
    if shifted:
        y, x = y + wy // 2, x + wx // 2
    (row, column), (slow, fast) = ((y // wy, x // wx), (x % wx, y % wy))
    if axis == "y":
        (row, column), (slow, fast) = (column, row), (fast, slow)
    turn, inner = (-1) ** row, (-1) ** slow
    return row, turn * column, turn * slow, turn * inner * fast


def written_out(module: FlatFormer, v: SparseVoxels, window: tuple[int, int], size: int) -> Tensor:
    """Frame by frame, group by group, with torch's attention."""
    x, coords = v.features, v.coords.tolist()
    position = sinusoidal_embedding(v.coords[:, [3, 2]], x.shape[1]).to(x.dtype)
    for layers in module.blocks:
        for layer, (axis, shifted) in zip(layers, itertools.product("xy", (False, True)), strict=True):
            mixer, feed = layer.mix.module, layer.feed.module
            attention = nn.MultiheadAttention(x.shape[1], mixer.num_heads, dtype=x.dtype)
            attention.load_state_dict(mixer.state_dict())
            mixed = torch.zeros_like(x)
            for frame in range(v.batch_size):
                mine = [i for i in range(len(x)) if coords[i][0] == frame]
                mine.sort(key=lambda i: key(coords[i], axis, shifted, window))
                for start in range(0, len(mine), size):
                    own = mine[start : start + size]
                    if len(mine) > size:
                        members = own + mine[start - size + len(own) : start]
                    else:
                        members = [mine[slot % len(mine)] for slot in range(size)]
                    q = x[members] + position[members]
                    mixed[own] = attention(q, q, x[members], need_weights=False)[0][: len(own)]
            x = layer.mix.norm(x + mixed)
            x = layer.feed.norm(x + feed.out_proj(F.gelu(feed.in_proj(x))))
    return x


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 45), min_size=1, max_size=3).filter(any),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 12),
)
def test_backbone_is_the_paper_written_out(seed: int, counts: list[int], window: tuple[int, int], size: int) -> None:
    module, v = backbone(window=(None, *window), group_size=size).double(), voxels(seed, counts, dtype=torch.float64)
    torch.testing.assert_close(module(v).features, written_out(module, v, window, size))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 60), min_size=1, max_size=3))
def test_shuffled_voxels_give_shuffled_features_and_nothing_else(seed: int, counts: list[int]) -> None:
    module, v = backbone(), voxels(seed, counts)
    shuffle = torch.randperm(len(v), generator=torch.Generator().manual_seed(seed))
    out = module(v)
    again = module(SparseVoxels(v.features[shuffle], v.coords[shuffle], v.grid, v.batch_size))
    torch.testing.assert_close(again.features, out.features[shuffle], rtol=1e-5, atol=1e-5)
    assert out.coords is v.coords
    assert out.features.shape == v.features.shape


def test_frames_do_not_see_each_other() -> None:
    module, both = backbone(), voxels(1, [33, 4])
    joined = module(both).features
    for frame in range(2):
        mine = both.coords[:, 0] == frame
        coords = both.coords[mine] * torch.tensor([0, 1, 1, 1], dtype=torch.int32)
        alone = module(SparseVoxels(both.features[mine], coords, GRID, 1)).features
        torch.testing.assert_close(joined[mine], alone, rtol=1e-5, atol=1e-5)


def test_masked_padding_is_seen_by_none() -> None:
    v = voxels(2, [7])
    padded, exact = backbone(group_size=10, mask_padding=True), backbone(group_size=7)
    torch.testing.assert_close(padded(v).features, exact(v).features, rtol=1e-5, atol=1e-5)
    repeated = backbone(group_size=10)(v).features
    assert (repeated - exact(v).features).abs().max() > 1e-4  # ten times the tolerance above


@pytest.mark.parametrize(
    "mixer", [{"name": "SoftmaxAttention", "num_heads": 4}, {"name": "LinearAttention", "num_heads": 2}]
)
@pytest.mark.parametrize("order", [{"name": "Hilbert"}, {"name": "WindowX", "window": [1, 4, 4]}])
def test_other_orders_and_mixers_come_from_a_configuration(mixer: dict, order: dict) -> None:
    node = {"name": "FlatFormer", "orders": [order, {"name": "ZOrder"}], "mixer": mixer, "group_size": 6}
    module = BACKBONES.build(node, in_channels=8, grid=GRID)
    v = voxels(3, [20, 5])
    out = module(v).features
    assert out.isfinite().all()
    changed = module(v.with_features(v.features + (v.coords[:, :1] == 0))).features
    assert (changed[v.coords[:, 0] == 1] == out[v.coords[:, 0] == 1]).all()


def test_orders_get_the_window_of_the_backbone_where_they_have_none() -> None:
    orders = [{"name": "WindowX"}, {"name": "WindowY", "window": [1, 2, 3]}, {"name": "Hilbert"}]
    found = backbone(orders=orders).orders
    assert found == [WindowX((None, 6, 5)), WindowY((1, 2, 3)), Hilbert()]


def test_windows_that_cut_the_height_are_refused_where_the_orders_cannot_follow_them() -> None:
    with pytest.raises(ValueError, match=r"window must span the 4 cells of the height.*, got \[2, 6, 5\]"):
        FlatFormer(8, (4, 24, 30), window=(2, 6, 5))
    FlatFormer(8, (4, 24, 30), window=(2, 6, 5), orders=[{"name": "WindowX"}])


def test_layers_are_numbered_through_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    class Numbered(nn.Module):
        def __init__(self, channels: int, layer_id: int, num_layers: int) -> None:
            super().__init__()
            places.append((layer_id, num_layers))

    monkeypatch.setitem(MIXERS._entries, "Numbered", Numbered)
    backbone(num_blocks=2, mixer={"name": "Numbered"})
    assert places == [(i, 8) for i in range(8)]


def test_block_settings_replace_the_published_ones() -> None:
    """With zeroed output weights a pre-norm block is the identity, which one with norms behind is not."""
    settings = {"norm": "pre", "feed_forward": {"name": "SwiGLU"}}
    v = voxels(8, [30, 9])
    for block, same in ((settings, True), (None, False)):
        module = backbone(num_blocks=2, block=block)
        for name, parameter in module.named_parameters():
            if "out_proj" in name:
                nn.init.zeros_(parameter)
        assert torch.equal(module(v).features, v.features) == same


def test_recomputed_layers_give_the_same_gradients() -> None:
    grads = []
    for recompute in (False, True):
        module, v = backbone(num_blocks=2, recompute=recompute).train(), voxels(7, [25, 11])
        module(v).features.square().sum().backward()
        grads.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*grads)


def test_autocast_stays_within_a_hundredth_of_the_features() -> None:
    module, v = backbone(channels=32, num_blocks=2), voxels(4, [120, 60], channels=32)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(v).features
    whole = module(v).features
    assert half.dtype == torch.float32  # norms run in single precision
    assert (half - whole).abs().max() < 0.05 * whole.abs().max()
    assert (half - whole).abs().mean() < 0.01 * whole.abs().mean()


@pytest.mark.slow
def test_compiled_by_inductor_is_the_same() -> None:
    module = backbone(orders=[{"name": "ZOrder"}])
    compiled = torch.compile(copy.deepcopy(module), dynamic=True)
    with torch.no_grad():
        for seed, counts in ((5, [50, 30]), (6, [21, 40])):
            expected = module(voxels(seed, counts)).features
            torch.testing.assert_close(compiled(voxels(seed, counts)).features, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    module, v = backbone(channels=32, num_blocks=2), voxels(4, [120, 60], channels=32)
    on_gpu = SparseVoxels(v.features.cuda(), v.coords.cuda(), v.grid, v.batch_size)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        found = copy.deepcopy(module).cuda()(on_gpu).features.cpu()
    expected = module(v).features
    assert (found - expected).abs().max() < (1e-4 if dtype == torch.float32 else 0.05) * expected.abs().max()


def test_gradients_of_every_parameter_are_finite_and_some_are_not_zero() -> None:
    module, v = backbone(num_blocks=2), voxels(7, [25, 11])
    module(v).features.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 0}, "group_size must be at least 1, got 0"),
        ({"num_blocks": 0}, "num_blocks must be at least 1, got 0"),
        ({"window": (1, 0, 4)}, r"window must be three sizes \(Z, Y, X\) in cells, .*, got \[1, 0, 4\]"),
        ({"window": (13, 13)}, r"window must be three sizes .*, got \[13, 13\]"),
        ({"num_heads": 3}, "num_heads must be positive and divide channels, got 3 and 8 channels"),
        ({"activation": "glu"}, "activation: expected .*'gelu', 'relu', 'silu'.*, got 'glu'"),
        ({"ffn_channels": 0}, "ffn_channels must be positive, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
        ({"orders": []}, "orders must name at least one order"),
        ({"orders": [{"name": "Hilbrt"}]}, "no order is named 'Hilbrt'; did you mean 'Hilbert'"),
        ({"mixer": {"name": "Softmax"}}, "no mixer is named 'Softmax'"),
        ({"partition": {"name": "Window"}}, "no partition is named 'Window'; did you mean 'Windows'"),
        ({"block": {"placement": "pre"}}, "placement: MixerBlock has no such key; known: .*norm_kind"),
        ({"block": {"norm_kind": "batch"}, "recompute": True}, "recompute cannot be used with batch norms"),
    ],
)
def test_bad_settings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone(**arguments)


def test_too_few_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="in_channels must be at least 4, got 2"):
        FlatFormer(2, GRID, num_heads=1)


# Detectors


def batch(detector: nn.Module, points: int = 3000) -> PointBatch:
    """Points everywhere in the range, the columns behind z in [0, 1], and a few objects."""
    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor(detector.encoder.point_cloud_range)
    clouds = []
    for count in (points, points // 2):
        xyz = extent[:3] + torch.rand(count, 3, generator=generator) * (extent[3:] - extent[:3])
        clouds.append(torch.cat([xyz, torch.rand(count, detector.num_point_features - 3, generator=generator)], 1))
    joined = PointBatch.from_points(clouds)
    boxes = torch.tensor([[4.0, 2.0, -1.0, 3.9, 1.6, 1.5, 0.4], [6.0, -5.0, -1.0, 4.2, 1.7, 1.6, 2.0]])
    empty = (torch.zeros(0, 7), torch.zeros(0, dtype=torch.long))
    return replace(joined, targets=(Targets(boxes, torch.zeros(2, dtype=torch.long)), Targets(*empty)))


def small(path: str, *overrides: str) -> nn.Module:
    """A configured detector in a range that is quick to compute."""
    torch.manual_seed(0)
    return build_detector(config.load(CONFIGS / path, list(overrides)))


NEAR = "data.point_cloud_range=[-8.0,-8.0,-2.0,8.0,8.0,4.0]"


@pytest.mark.parametrize(
    "overrides",
    [
        ("kitti/flatformer.yaml",),
        ("waymo/flatformer.yaml", NEAR),
        ("waymo/flatformer_3frames.yaml", NEAR),
    ],
    ids=["kitti", "waymo", "waymo, three frames"],
)
def test_configured_detectors_learn_and_detect(overrides: tuple[str, ...]) -> None:
    detector = small(*overrides)
    frames = batch(detector)
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-3)
    history = []
    for _ in range(3):
        losses = detector.loss(frames)
        optimizer.zero_grad()
        losses["total"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        optimizer.step()
        history.append(losses["total"].item())
    assert history[2] < history[0]
    found = detector.eval().predict(frames)
    assert len(found) == 2
    assert all(d.boxes.isfinite().all() and d.scores.isfinite().all() for d in found)


def test_the_frame_column_reaches_the_detections() -> None:
    detector = small("waymo/flatformer_2frames.yaml", NEAR).eval()
    frames = batch(detector, points=500)
    with torch.no_grad():
        now = detector.bev_map(frames)
        past = detector.bev_map(replace(frames, points=frames.points - torch.tensor([0.0, 0, 0, 0, 1])))
    assert (now - past).abs().max() > 1e-3


# What FlatFormer's detector adds to encoders, maps and heads


def test_clamped_points_count_for_the_cell_at_the_border() -> None:
    points = torch.tensor([[0.5, 0.5, 0.0], [-3.0, 9.0, 0.0], [3.5, 0.5, 7.0], [math.inf, 0.0, 0.0], [math.nan, 0, 0]])
    cloud = PointBatch.from_points([points])
    geometry = {"point_cloud_range": (0, 0, -1, 4, 4, 1), "voxel_size": (1, 1, 2), "num_filters": (4,)}
    found = DynamicPillarVFE(3, **geometry, clamp=True).eval()(cloud)
    assert found.coords.tolist() == [[0, 0, 0, 0], [0, 0, 0, 3], [0, 0, 3, 0]]
    assert found.features.isfinite().all()
    assert DynamicPillarVFE(3, **geometry).eval()(cloud).coords.tolist() == [[0, 0, 0, 0], [0, 0, 0, 3]]


def test_without_its_first_pillar_a_frame_keeps_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    clouds = [torch.rand(n, 3, generator=generator) * 4 for n in (20, 0, 1, 30)]
    geometry = {"point_cloud_range": (0, 0, 0, 4, 4, 4), "voxel_size": (1, 1, 4), "num_filters": (4,)}
    whole = DynamicPillarVFE(3, **geometry).eval()
    fewer = DynamicPillarVFE(3, **geometry, drop_first=True).eval()
    fewer.load_state_dict(whole.state_dict())
    a, b = whole(PointBatch.from_points(clouds)), fewer(PointBatch.from_points(clouds))
    rows = [i for i, frame in enumerate(a.coords[:, 0].tolist()) if i and a.coords[i - 1, 0] == frame]
    assert len(rows) == len(a) - 3
    assert b.coords.equal(a.coords[rows])
    torch.testing.assert_close(b.features, a.features[rows])
    assert len(fewer(PointBatch.from_points([torch.zeros(0, 3)]))) == 0
    with pytest.raises(ValueError, match="drop_first"):
        DynamicPillarVFE(3, **geometry, drop_first=True, x_major=True)


@pytest.mark.parametrize("residual", [False, True])
def test_second_fpn_is_its_convolutions_one_after_the_other(residual: bool) -> None:
    torch.manual_seed(0)
    node = {"name": "SECONDFPN", "layer_nums": [1, 2], "layer_strides": [1, 2], "num_filters": [3, 6]}
    node |= {"upsample_strides": [1, 2], "num_upsample_filters": [2, 4], "residual": residual}
    module = BEV_BACKBONES.build(node, in_channels=3).eval()
    assert (module.out_channels, module.stride) == (6, 1)
    x = torch.randn(2, 3, 8, 6)
    outputs, y = [], x
    for level, deblock in zip(module.blocks, module.deblocks, strict=True):
        for conv, norm, relu in level:
            new = relu(norm(conv(y)))
            y = y + new if residual and y.shape == new.shape else new
        outputs.append(deblock(y))
    torch.testing.assert_close(module(x), torch.cat(outputs, 1))


def center_head(**arguments: object) -> CenterHead:
    geometry = {"point_cloud_range": (0, 0, -2, 16, 8, 2), "voxel_size": (1, 1, 4), "stride": 1, "classes": ["Car"]}
    branches = {"center": 2, "center_z": 2, "dim": 2, "rot": 2, "iou": 2}
    return CenterHead(8, **(geometry | {"branches": branches} | arguments))


def flat_maps(heat: Tensor, iou: Tensor) -> CenterOutput:
    """Boxes of one metre everywhere, in the middle of their cell."""
    zeros = torch.zeros(1, 3, *heat.shape)
    rot = torch.stack([torch.ones_like(heat), torch.zeros_like(heat)])[None]
    maps = TaskMaps(heat.logit()[None, None], zeros[:, :2] + 0.5, zeros[:, :1], zeros, rot, iou=iou[None, None])
    return CenterOutput((maps,))


def test_iou_power_reorders_cells_before_the_best_are_chosen() -> None:
    heat, iou = torch.full((8, 16), 0.05), torch.zeros(8, 16)
    heat[1, 2], iou[1, 2] = 0.9, -0.5  # an overlap of a quarter
    heat[5, 6], iou[5, 6] = 0.6, 1.0
    head = center_head(iou_power=2.0, max_candidates=1)
    (found,) = head.decode(flat_maps(heat, iou))
    torch.testing.assert_close(found.boxes[:, :2], torch.tensor([[6.5, 5.5]]))
    torch.testing.assert_close(found.scores, torch.tensor([0.6]))
    (both,) = center_head(iou_power=2.0, score_threshold=0.05).decode(flat_maps(heat, iou))
    torch.testing.assert_close(both.scores, torch.tensor([0.6, 0.9 * 0.25**2]))


def test_iou_power_per_class_shares_the_score() -> None:
    """score^(1 - p) * IoU^p with the p of the class, in every frame of a batch."""
    names, powers = ("car", "pedestrian", "cyclist"), [0.0, 0.5, 1.0]
    heat, iou = torch.rand(2, 3, 4, 4) * 0.9 + 0.05, torch.rand(2, 1, 4, 4) * 3 - 1.5
    zeros = torch.zeros(2, 3, 4, 4)
    maps = TaskMaps(heat.logit(), zeros[:, :2], zeros[:, :1], zeros, zeros[:, :2], iou=iou)
    settings = {"iou_power": powers, "score_threshold": 0.0, "max_candidates": 48}
    found = center_head(classes=names, tasks=[names], **settings).candidates(CenterOutput((maps,)))[0]
    for frame in range(2):
        expected = torch.stack(
            [heat[frame, c] ** (1 - p) * ((iou[frame, 0] + 1) / 2).clamp(0, 1) ** p for c, p in enumerate(powers)]
        ).flatten(1)
        for box in range(len(found[frame].scores)):
            label, cell = int(found[frame].labels[box]), int(found[frame].cells[box])
            torch.testing.assert_close(found[frame].scores[box], expected[label, cell])
        assert len(found[frame].scores) == int((expected > 0).sum())
    with pytest.raises(ValueError, match="iou_power must have 3 numbers, got 2"):
        center_head(classes=names, tasks=[names], iou_power=[1.0, 2.0])


def test_objects_outside_of_the_map_are_skipped_or_drawn_at_its_border() -> None:
    size = [2.0, 1.0, 1.0, 0.0]
    boxes = torch.tensor([[3.5, 4.5, 0, *size], [-0.5, 2.5, 0, *size], [-1.5, 2.5, 0, *size], [16.0, 2.5, 0, *size]])
    output = flat_maps(torch.full((8, 16), 0.1), torch.zeros(8, 16))
    (skipped,) = center_head(outside="skip", min_radius=1).targets(output, [boxes], [torch.zeros(4).long()])
    assert skipped.mask.tolist() == [[True, True, False, False]]
    assert skipped.cells.tolist() == [[4 * 16 + 3, 2 * 16, 0, 0]]
    torch.testing.assert_close(skipped.codes[0, 1, :2], torch.tensor([-0.5, 0.5]))  # from the corner of cell 0
    assert int((skipped.heatmap == 1).sum()) == 2
    (drawn,) = center_head(min_radius=1).targets(output, [boxes], [torch.zeros(4).long()])
    assert drawn.mask.all()
    assert drawn.cells.tolist() == [[4 * 16 + 3, 2 * 16, 2 * 16, 2 * 16 + 15]]


def test_branches_have_their_own_width_and_norm() -> None:
    head = center_head(shared_channels=6, branch_channels=10, branch_norm_eps=0.5, branch_norm_momentum=0.25)
    assert head.shared_conv[1].eps == 1e-5
    norm = head.heads_list[0].rot[0][1]
    assert (norm.num_features, norm.eps, norm.momentum) == (10, 0.5, 0.25)
    assert head(torch.randn(1, 8, 4, 4)).tasks[0].heatmap.shape == (1, 1, 4, 4)


def test_contradicting_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"iou_rectifier \(0.5\) and iou_power \(2.0\) exclude each other"):
        center_head(iou_power=2.0, iou_rectifier=0.5)
    with pytest.raises(ConfigError, match="iou_power needs the branch 'iou'"):
        small("waymo/flatformer.yaml", "model.head.branches={center: 2, center_z: 2, dim: 2, rot: 2, vel: 2}")
