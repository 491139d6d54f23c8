"""The DSVT backbone against loops over windows and sets, and its properties."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.grouping import partitions
from pcdet_ext.grouping.orders import Hilbert, WindowX, WindowY
from pcdet_ext.grouping.partitions import EqualGroups
from pcdet_ext.mixers import MIXERS
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.backbones.dsvt import DSVT, PositionEmbedding
from pcdet_ext.models.backbones.dsvt_pooling import AttentionPool, LinearPool, MaxPool, make_pool
from pcdet_ext.models.detector import build_detector
from pcdet_ext.structures import PointBatch, SparseVoxels, Targets

GRID = (4, 14, 12)
STAGES = {
    "name": "DSVT",
    "channels": [16, 16],
    "num_blocks": [3, 1],
    "group_sizes": [5, 4],
    "windows": [[4, 5, 4], [2, 4, 3]],
    "shifts": [[[0, 0, 0], [2, 2, 3]], [[0, 1, 0], [0, 0, 2]]],
    "num_heads": [4, 2],
    "ffn_channels": [24, 16],
    "hybrid_factor": [1, 2, 1],
    "pool_strides": [[2, 2, 1]],
}

ONE_STAGE = {k: v[:1] for k, v in STAGES.items() if isinstance(v, list) and len(v) == 2} | {"pool_strides": []}


def make_backbone(**changes) -> DSVT:
    torch.manual_seed(0)
    backbone = BACKBONES.build(STAGES | changes, in_channels=16, grid=GRID)
    for module in backbone.modules():  # so that no norm is the identity by chance
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm1d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return backbone.eval()


def random_voxels(seed: int, count: int = 200, frames: int = 2) -> SparseVoxels:
    """Distinct voxels in random order."""
    rng = np.random.default_rng(seed)
    flat = rng.permutation(frames * math.prod(GRID))[:count]
    coords = np.stack(np.unravel_index(flat, (frames, *GRID)), 1).astype(np.int32)
    features = torch.from_numpy(rng.standard_normal((count, 16), np.float32))
    return SparseVoxels(features, torch.from_numpy(coords), GRID, frames)


def naive_backbone(backbone: DSVT, voxels: SparseVoxels, mixed: bool, empty: bool) -> dict[tuple[int, ...], Tensor]:
    """Features of the last stage by coordinates; one set of one window at a time."""
    grid = voxels.grid
    x = {tuple(c): f for c, f in zip(voxels.coords.tolist(), voxels.features, strict=True)}
    counter = 0
    for s in range(2):
        for b in range(STAGES["num_blocks"][s]):
            own, x0, block = counter % 2, x, backbone.stages[s][b]
            for i, layer in enumerate(block.layers):
                x = naive_layer(layer, x, s, grid, own, i if mixed else own, i)
            x = {c: block.norm(x[c] + x0[c]) for c in x}
            counter += 1
        if s == 0:
            x, grid = naive_pool(backbone.pools[0], x, empty), (2, 7, 12)
    return x


def naive_layer(layer, x, s, grid, own, embedded, direction) -> dict[tuple[int, ...], Tensor]:
    window, inside = naive_windows(x, s, grid, own)
    _, place = naive_windows(x, s, grid, embedded)
    size = naive_window(s, embedded)
    position = {
        c: layer.position.mlp(torch.tensor([p[a] - size[a] / 2 for a in (2, 1, 0)])[None])[0] for c, p in place.items()
    }
    attended = {}
    for key in set(window.values()):
        axes = (1, 2, 0) if direction == 0 else (2, 1, 0)
        members = sorted((c for c in x if window[c] == key), key=lambda c: [inside[c][a] for a in axes])
        n, size_ = len(members), STAGES["group_sizes"][s]
        sets = math.ceil(n / size_)
        for j in range(sets):
            chosen = sorted({(j * size_ + k) * n // (sets * size_) for k in range(size_)})
            voxels = [members[r] for r in chosen]
            f, e = (torch.stack([d[c] for c in voxels])[None] for d in (x, position))
            for c, y in zip(voxels, attention(layer.block.mix.module, 16, f + e, f + e, f)[0], strict=True):
                attended[c] = y
    out = {}
    for c, f in x.items():
        mix, feed = layer.block.mix, layer.block.feed
        u = mix.norm(f + attended[c])
        u = feed.norm(u + feed.module.out_proj(nn.functional.gelu(feed.module.in_proj(u))))
        out[c] = layer.norm(u + f)
    return out


def attention(own: nn.Module, channels: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's multi-head attention with the parameters of another module."""
    module = nn.MultiheadAttention(channels, own.num_heads, batch_first=True)
    module.load_state_dict(own.state_dict())
    return module.eval()(query, key, value, need_weights=False)[0]


def naive_window(s: int, kind: int) -> list[int]:
    factor = STAGES["hybrid_factor"] if kind else [1, 1, 1]
    return [w * f for w, f in zip(STAGES["windows"][s], factor, strict=True)]


def naive_windows(x, s, grid, kind):
    """Window of each voxel, and its place there."""
    size, shift = naive_window(s, kind), list(STAGES["shifts"][s][kind])
    if size[0] == grid[0]:
        shift[0] = 0
    shifted = {c: [v + d for v, d in zip(c[1:], shift, strict=True)] for c in x}
    window = {c: (c[0], *(v // w for v, w in zip(p, size, strict=True))) for c, p in shifted.items()}
    return window, {c: [v % w for v, w in zip(p, size, strict=True)] for c, p in shifted.items()}


def naive_pool(pool, x, empty: bool) -> dict[tuple[int, ...], Tensor]:
    stride = STAGES["pool_strides"][0]
    cells: dict[tuple[int, ...], dict[int, Tensor]] = {}
    for c, f in x.items():
        place = 0
        for axis in (2, 1, 0):
            place = place * stride[axis] + c[axis + 1] % stride[axis]
        cells.setdefault((c[0], *(v // d for v, d in zip(c[1:], stride, strict=True))), {})[place] = f
    out = {}
    for cell, slots in cells.items():
        places = list(range(math.prod(stride))) if empty else sorted(slots)
        values = torch.stack([slots.get(p, torch.zeros(16)) for p in places])
        query = values.max(0).values
        mixed = attention(pool.attention, 16, query[None, None], (values + pool.position[places])[None], values[None])
        out[cell] = pool.norm(mixed[0, 0] + query)
    return out


@pytest.mark.parametrize(("mixed", "empty"), list(itertools.product([False, True], repeat=2)))
def test_equals_loops_over_sets(mixed: bool, empty: bool) -> None:
    backbone = make_backbone(mixed_positions=mixed, count_empty=empty)
    voxels = random_voxels(1, 150)
    found = backbone(voxels)
    assert found.grid == backbone.out_grid == (2, 7, 12)
    with torch.no_grad():
        expected = naive_backbone(backbone, voxels, mixed, empty)
    coords = [tuple(c) for c in found.coords.tolist()]
    assert coords == sorted(expected, key=lambda c: (c[0], c[3], c[2], c[1]))
    torch.testing.assert_close(found.features, torch.stack([expected[c] for c in coords]), rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 300))
def test_the_order_of_rows_does_not_matter(seed: int, count: int) -> None:
    backbone, voxels = make_backbone(), random_voxels(seed, count)
    shuffle = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        one = backbone(voxels)
        other = backbone(SparseVoxels(voxels.features[shuffle], voxels.coords[shuffle], GRID, 2))
    assert torch.equal(one.coords, other.coords)
    torch.testing.assert_close(one.features, other.features, rtol=1e-4, atol=1e-4)


def test_rows_keep_their_order_without_pooling() -> None:
    backbone, voxels = make_backbone(**ONE_STAGE), random_voxels(2)
    shuffle = torch.randperm(len(voxels), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one = backbone(voxels)
        other = backbone(SparseVoxels(voxels.features[shuffle], voxels.coords[shuffle], GRID, 2))
    assert torch.equal(one.coords, voxels.coords)
    torch.testing.assert_close(one.features[shuffle], other.features, rtol=1e-4, atol=1e-4)
    assert (backbone.out_channels, backbone.out_grid, backbone.stride) == (16, GRID, 1)


def test_frames_do_not_influence_each_other() -> None:
    backbone, voxels = make_backbone(), random_voxels(3)
    with torch.no_grad():
        both = backbone(voxels)
        for frame in range(2):
            mine = voxels.coords[:, 0] == frame
            coords = voxels.coords[mine] * torch.tensor([0, 1, 1, 1], dtype=torch.int32)
            alone = backbone(SparseVoxels(voxels.features[mine], coords, GRID, 1))
            torch.testing.assert_close(both.features[both.coords[:, 0] == frame], alone.features, rtol=1e-4, atol=1e-4)


def test_blocks_with_the_same_windows_share_their_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    counted = partitions.rotated_sets
    monkeypatch.setattr(partitions, "rotated_sets", lambda *a: calls.append(a[3:]) or counted(*a))
    make_backbone()(random_voxels(4))
    assert len(calls) == 3  # three blocks of the first stage with two kinds of windows, one of the second


@pytest.mark.parametrize("training", [False, True])
def test_no_voxels_at_all(training: bool) -> None:
    backbone = make_backbone().train(training)
    empty = SparseVoxels(torch.zeros(0, 16), torch.zeros(0, 4, dtype=torch.int32), GRID, 2)
    found = backbone(empty)
    assert found.features.shape == (0, 16)
    assert found.grid == (2, 7, 12)


def test_recomputed_activations_give_the_same_gradients() -> None:
    grads = []
    for recompute in (False, True):
        backbone, voxels = make_backbone(recompute=recompute).train(), random_voxels(5)
        backbone(voxels).features.square().sum().backward()
        grads.append([p.grad for p in backbone.parameters()])
    assert all(g is not None for g in grads[0])
    torch.testing.assert_close(*grads)


def test_compiled_backbone_gives_the_same() -> None:
    backbone = make_backbone()
    compiled = torch.compile(backbone, backend="eager", dynamic=True)  # what is traced; the next test is of its code
    with torch.no_grad():
        for count in (150, 90):
            found = [module(random_voxels(count, count)).features for module in (backbone, compiled)]
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_compiled_layer_gives_the_same() -> None:
    backbone = make_backbone()
    layer = backbone.stages[0][0].layers[0]
    compiled = torch.compile(layer, dynamic=True)
    with torch.no_grad():
        for count in (150, 90):
            voxels = random_voxels(count, count)
            arguments = (voxels.features, layer.partition(voxels, layer.order), torch.ones(count, 16))
            torch.testing.assert_close(compiled(*arguments), layer(*arguments), rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close() -> None:
    backbone, voxels = make_backbone(), random_voxels(9)
    exact = backbone(voxels).features
    with torch.autocast("cpu", torch.bfloat16):
        rough = backbone(random_voxels(9)).features
    assert rough.dtype == torch.float32  # the last norm's
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.1)  # features of a norm are of size 1
    assert (rough - exact).square().mean().sqrt() < 0.02
    rough.sum().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.grad is not None)


def test_configured_detector_learns_and_detects(root) -> None:
    settings = config.load(root / "configs" / "kitti" / "dsvt.yaml", ["data.point_cloud_range=[0,-9.6,-3,19.2,9.6,1]"])
    torch.manual_seed(0)
    detector = build_detector(settings)
    points = torch.rand(2000, 4) * torch.tensor([19.0, 19.0, 3.5, 1.0]) - torch.tensor([0.0, 9.5, 2.8, 0.0])
    objects = torch.tensor([[6.0, -2.0, -1.0, 4.0, 1.7, 1.5, 0.3], [14.0, 5.0, -1.0, 3.8, 1.6, 1.5, -2.0]])
    frame = torch.arange(2).repeat_interleave(1000)
    batch = PointBatch(
        points, frame, 2, (Targets(objects, torch.zeros(2).long()), Targets(objects[:1], torch.zeros(1).long()))
    )
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-3)
    history = []
    for _ in range(6):
        loss = detector.loss(batch)["total"]
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0]
    assert len(detector.eval().predict(batch)) == 2


def test_other_orders_partitions_and_mixers_come_from_a_configuration() -> None:
    orders = [{"name": "Hilbert"}, {"name": "WindowX", "path": "snake"}, {"name": "WindowY", "window": [4, 3, 3]}]
    windows = [[None, 5, 4], [None, 4, 3]]
    backbone = make_backbone(
        orders=orders, windows=windows, partition={"name": "EqualGroups"}, mixer={"name": "LinearAttention"}
    )
    found = [(layer.order, layer.partition) for layer in backbone.stages[0][1].layers]
    shift = (0, 2, 3)  # of the second block, none along z, where its windows are as high as the grid
    expected = [Hilbert(), WindowX((4, 10, 4), shift, "snake"), WindowY((4, 3, 3), shift)]
    assert found == [(order, EqualGroups(5)) for order in expected]
    voxels = random_voxels(6)
    loss = backbone(voxels).features.square().sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.grad is not None)


def test_block_settings_replace_the_published_ones_and_errors_name_their_place(tmp_path: Path) -> None:
    backbone = make_backbone(block={"norm": "pre", "layer_scale": 0.1})
    block = backbone.stages[1][0].layers[0].block
    assert (block.mix.placement, block.feed.module.in_proj.out_features) == ("pre", 16)
    assert block.mix.scale.tolist() == pytest.approx([0.1] * 16)
    path = tmp_path / "dsvt.yaml"
    path.write_text("block:\n  norms: pre\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"dsvt.yaml:2: block.norms: MixerBlock has no such key; did you mean"):
        make_backbone(block=config.load(path)["block"])


def test_layers_are_numbered_through_all_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    class Numbered(nn.Module):
        def __init__(self, channels: int, layer_id: int, num_layers: int) -> None:
            super().__init__()
            places.append((layer_id, num_layers))

    monkeypatch.setitem(MIXERS._entries, "Numbered", Numbered)
    BACKBONES.build(STAGES | {"mixer": {"name": "Numbered"}}, in_channels=16, grid=GRID)
    assert places == [(i, 8) for i in range(8)]


def test_gradients_in_double_precision() -> None:
    small = {"num_blocks": [2], "channels": [4], "num_heads": [2], "ffn_channels": [3]}
    torch.manual_seed(0)
    backbone = BACKBONES.build({"name": "DSVT"} | ONE_STAGE | small, in_channels=4, grid=GRID).double().eval()
    voxels = random_voxels(6, 12)
    x = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: backbone(voxels.with_features(x)).features, x)


@pytest.mark.parametrize("kind", ["attention", "linear", "max"])
@pytest.mark.parametrize("count_empty", [False, True])
def test_pools_follow_their_definition(kind: str, count_empty: bool) -> None:
    torch.manual_seed(0)
    pool = make_pool(kind, (16, 16), (2, 1, 2), count_empty, num_heads=4)
    for parameter in pool.parameters():
        nn.init.normal_(parameter)
    voxels = random_voxels(7)
    with torch.no_grad():
        found = pool(voxels)
    for coords, features in zip(found.coords.tolist(), found.features, strict=True):
        b, z, y, x = coords
        places = [(b, 2 * z + dz, y, 2 * x + dx) for dx in range(2) for dz in range(2)]
        held = [(voxels.coords == torch.tensor(p)).all(1).nonzero().flatten().tolist() for p in places]
        slots = torch.stack([voxels.features[h[0]] if h else torch.zeros(16) for h in held])
        filled = torch.tensor([bool(h) for h in held])
        counted = torch.ones(4, dtype=torch.bool) if count_empty else filled
        highest = slots[counted].amax(0)
        if isinstance(pool, MaxPool):
            expected = highest
        elif isinstance(pool, LinearPool):
            expected = pool.norm(pool.linear.weight @ slots.flatten())
        else:
            keys = (slots + pool.position)[counted]
            mixed = attention(pool.attention, 16, highest[None, None], keys[None], slots[counted][None])
            expected = pool.norm(mixed[0, 0] + highest)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert isinstance(pool, AttentionPool) == (kind == "attention")


def test_partial_cells_are_an_option() -> None:
    strides = {"pool_strides": [[2, 4, 1]]}
    with pytest.raises(ConfigError, match=r"a grid of \(4, 14, 12\) cells \(Z, Y, X\) does not divide by \[2, 4, 1\]"):
        make_backbone(**strides)
    backbone = make_backbone(**strides, partial_cells=True)
    assert backbone(random_voxels(8)).grid == backbone.out_grid == (2, 4, 12)


def test_embedding_of_a_place_in_units_of_the_window() -> None:
    embedding = PositionEmbedding(4, (1, 6, 10), normalize=True)
    (seen,) = captured(embedding.mlp[0], lambda: embedding(torch.tensor([[0, 3, 0], [0, 0, 9]])))
    torch.testing.assert_close(seen, torch.tensor([[-3.1415, 0.0], [0.4 * 2 * 3.1415, -3.1415]]))


def captured(module: nn.Module, run) -> list[Tensor]:
    """What a module is given while something runs."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    run()
    hook.remove()
    return seen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_sizes": [5, 0]}, "num_blocks and group_sizes must be at least 1"),
        ({"num_heads": [3, 2]}, "num_heads must be positive and divide channels, got 3 and 16"),
        ({"channels": [32, 32]}, "channels begin with 32, but the voxels have 16"),
        ({"channels": [16, 32]}, r"channels must be the same in all stages with attention pooling, got \[16, 32\]"),
        ({"num_blocks": [1]}, "num_blocks must have one entry per stage, 2 as channels, got 1"),
        ({"num_blocks": [1, 0]}, "num_blocks and group_sizes must be at least 1"),
        ({"windows": [[4, 5, 4], [2, 4]]}, "windows must be three positive numbers"),
        ({"hybrid_factor": [0, 1, 1]}, "hybrid_factor must be three positive numbers"),
        ({"shifts": [[[0, 0, 0], [0, 0, -1]]] * 2}, "shifts must be two times three numbers"),
        ({"pool_strides": []}, "pool_strides must have one entry between two stages, 1, got 0"),
        ({"pool_heads": 5}, "pool_heads must divide the channels, got 5 and 16"),
        ({"pooling": "mean"}, "pooling"),
        ({"activation": "glu"}, "activation"),
        ({"ffn_channels": [24, 0]}, "ffn_channels must be positive, got 0"),
        ({"orders": []}, "orders must name at least one order"),
        ({"orders": [{"name": "WindowZ"}]}, "no order is named 'WindowZ'; did you mean 'Window"),
        ({"mixer": {"name": "Softmax"}}, "no mixer is named 'Softmax'"),
        ({"partition": {"name": "RotatedSet"}}, "no partition is named 'RotatedSet'; did you mean 'RotatedSets'"),
        ({"block": {"norm_kind": "batch"}, "recompute": True}, "recompute cannot be used with batch norms"),
    ],
)
def test_senseless_settings_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make_backbone(**changes)


def test_voxels_of_another_grid_are_refused() -> None:
    voxels = random_voxels(1)
    with pytest.raises(ValueError, match=r"grid of \(4, 16, 12\) cells \(Z, Y, X\), not of \(4, 14, 12\)"):
        make_backbone()(SparseVoxels(voxels.features, voxels.coords, (4, 16, 12), 2))


def test_a_map_needs_one_stride() -> None:
    backbone = make_backbone()
    with pytest.raises(ValueError, match="pool_strides shrink y by 2 and x by 1"):
        _ = backbone.stride
