"""LION's backbone and its parts: merging and voxel generation against plain loops, and what the whole must keep."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.mixers import rwkv
from pcdet_ext.models.backbones import BACKBONES, LION
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.layers.mixer_block import MixerBlock
from pcdet_ext.models.layers.position import GridPosition
from pcdet_ext.models.layers.voxel_merging import VoxelMerging
from pcdet_ext.structures import PointBatch, SparseVoxels, Targets

GRID = (16, 12, 8)
MIXERS = ("RetNet", "XLSTM", "TTT", "Mamba")
SMALL = {
    "windows": [[8, 5, 5], [4, 5, 5]],
    "group_sizes": [16, 8],
    "scales": [[[2, 2, 2], [2, 2, 2]]] * 2,
    "out_group_size": 8,
}


def scene(
    seed: int,
    counts: tuple[int, ...],
    channels: int = 8,
    grid: tuple[int, int, int] = GRID,
    dtype: torch.dtype = torch.float64,
) -> SparseVoxels:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for frame, count in enumerate(counts):
        cells = torch.randperm(grid[0] * grid[1] * grid[2], generator=generator)[:count]
        z, y, x = cells // (grid[1] * grid[2]), cells // grid[2] % grid[1], cells % grid[2]
        rows.append(torch.stack([torch.full_like(z, frame), z, y, x], 1))
    coords = torch.cat(rows).int()
    features = torch.randn(len(coords), channels, generator=generator, dtype=dtype)
    return SparseVoxels(features, coords, grid, len(counts))


def build(mixer: str = "RetNet", grid: tuple[int, int, int] = GRID, **arguments: object) -> LION:
    torch.manual_seed(0)
    node = {"name": "LION", "mixer": {"name": mixer}, **SMALL, **arguments}
    return BACKBONES.build(node, in_channels=8, grid=grid).double().eval()


def cells(voxels: SparseVoxels) -> dict[tuple[int, ...], torch.Tensor]:
    return dict(zip(map(tuple, voxels.coords.tolist()), voxels.features, strict=True))


def assert_same_cells(a: SparseVoxels, b: SparseVoxels) -> None:
    first, second = cells(a), cells(b)
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-8, atol=1e-8)


def merged_by_hand(merging: VoxelMerging, voxels: SparseVoxels) -> tuple[dict, dict]:
    """Sums of described features by coarse cell, and which coarse cell each voxel and each new one falls into."""
    conv, norm, _ = merging.describe
    described = F.gelu(norm(conv(voxels).features))
    sums: dict = defaultdict(lambda: torch.zeros(voxels.features.shape[1], dtype=torch.float64))
    falls: dict = {}
    rows = voxels.coords.tolist()

    def coarse(b: int, z: int, y: int, x: int) -> tuple[int, int, int, int]:
        sz, sy, sx = merging.scale
        return b, z // sz, y // sy, x // sx

    for i, row in enumerate(rows):
        falls[i] = coarse(*row)
        sums[falls[i]] = sums[falls[i]] + described[i]
    number = len(rows)
    for frame in range(voxels.batch_size):
        mine = [i for i, row in enumerate(rows) if row[0] == frame]
        mine.sort(key=lambda i: -described[i].mean().item())
        chosen = mine[: int(len(mine) * merging.generation)]
        for dx, dy in ((-1, 1), (1, 1), (-1, -1), (1, -1)):
            for i in chosen:
                b, z, y, x = rows[i]
                y, x = min(max(y + dy, 0), voxels.grid[1] - 1), min(max(x + dx, 0), voxels.grid[2] - 1)
                falls[number] = coarse(b, z, y, x)
                sums[falls[number]]  # a new voxel makes its cell exist
                number += 1
    return {cell: merging.norm(value) for cell, value in sums.items()}, falls


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
    st.sampled_from([(2, 1, 1), (2, 2, 2), (1, 4, 2)]),
    st.sampled_from([0.0, 0.2, 1.0]),
)
def test_merging_equals_a_loop(seed: int, counts: list[int], scale: tuple[int, int, int], generation: float) -> None:
    torch.manual_seed(seed)
    voxels = scene(seed, tuple(counts), channels=4)
    merging = VoxelMerging(4, scale, generation).double()
    torch.nn.init.normal_(merging.norm.bias)
    merged, parent = merging(voxels)
    features, falls = merged_by_hand(merging, voxels)
    ordered = sorted(features, key=lambda c: (c[0], c[3], c[2], c[1]))  # ascending by batch, x, y, z
    assert merged.coords.tolist() == [list(c) for c in ordered]
    assert merged.grid == tuple(n // s for n, s in zip(GRID, scale, strict=True))
    assert [ordered[row] for row in parent.tolist()] == [falls[i] for i in range(len(falls))]
    for cell, value in zip(ordered, merged.features, strict=True):
        torch.testing.assert_close(value, features[cell])


def test_grids_that_do_not_divide_are_refused_unless_the_published_numbering_is_wanted() -> None:
    voxels = scene(0, (20,), 4, (5, 4, 4))
    with pytest.raises(ValueError, match=r"\(5, 4, 4\) cells \(Z, Y, X\) does not divide by the scale \(2, 1, 1\)"):
        VoxelMerging(4, (2, 1, 1)).double()(voxels)
    merged, _ = VoxelMerging(4, (2, 1, 1), floor_keys=True).double()(voxels)
    assert merged.grid == (3, 4, 4)
    with pytest.raises(ConfigError, match="does not divide"):
        build(grid=(12, 12, 8))


def test_rwkv_layers_are_numbered_through_all_stages_and_only_the_first_norms_its_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = []
    monkeypatch.setattr(rwkv.Place, "of", lambda *place: places.append(place) or rwkv.Place(0.5, 0.5))
    sparse = {"bev_windows": [[2, 5, 5]], "bev_group_sizes": [8], "grid": (32, 12, 8)}
    blocks = [m for m in build("RWKV", **sparse).modules() if isinstance(m, MixerBlock)]
    # Two stages of four layers, the layer after them and one in the plane, each in x and y; the time mix and the
    # channel mix of a block ask for its place one after the other.
    assert places[::2] == places[1::2] == [(i, 20) for i in range(20)]
    assert [block.input_norm is not None for block in blocks] == [True] + [False] * 19


@pytest.mark.parametrize("mixer", MIXERS)
def test_output_cells_and_finite_gradients(mixer: str) -> None:
    backbone = build(mixer).train()
    voxels = scene(1, (60, 40))
    voxels.features.requires_grad_()
    out = backbone(voxels)
    assert out.grid == backbone.out_grid == (4, 12, 8)
    assert (backbone.out_channels, backbone.stride) == (8, 1)
    assert bool((out.coords[:, 1:] < torch.tensor(out.grid)).all())
    assert len(out.coords.unique(dim=0)) == len(out)
    occupied = {(b, z // 4, y, x) for b, z, y, x in voxels.coords.tolist()}
    assert occupied < set(cells(out))  # and generated ones beside them
    (out.features * torch.randn_like(out.features)).sum().backward()
    assert bool(voxels.features.grad.isfinite().all())
    missing = [name for name, p in backbone.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert not missing


def test_repeated_voxels_are_summed_and_normed_first() -> None:
    backbone, voxels = build(merge_repeated=True, describe_input=True), scene(3, (40, 30))
    share = torch.rand(70, 1, dtype=torch.float64)
    parts = torch.cat([voxels.features * share, voxels.features * (1 - share)])
    mixed = torch.randperm(140, generator=torch.Generator().manual_seed(0))
    repeated = SparseVoxels(parts[mixed], voxels.coords.repeat(2, 1)[mixed], GRID, 2)
    expected, found = cells(backbone(voxels)), cells(backbone(repeated))
    assert expected.keys() == found.keys()
    for cell, feature in expected.items():
        torch.testing.assert_close(found[cell], feature)
    merged, _ = backbone.inputs[0](repeated)
    norm = backbone.inputs[0].norm
    for cell, feature in cells(voxels).items():
        torch.testing.assert_close(cells(merged)[cell], F.layer_norm(feature, (8,), norm.weight, norm.bias))
    assert backbone.inputs[0].describe is None
    assert backbone.inputs[1].describe is not None


def test_the_last_stages_may_be_wider() -> None:
    backbone = build(widths=[8, 12])
    out = backbone(scene(3, (40, 30)))
    assert out.features.shape[1] == backbone.out_channels == 12
    assert build(described=False)(scene(3, (40, 30))).features.isfinite().all()
    with pytest.raises(ValueError, match="8 channels become 12 in a description only"):
        build(widths=[8, 12], described=False)
    with pytest.raises(ValueError, match="widths must be 2 numbers, the first 8"):
        build(widths=[12, 12])


@pytest.mark.parametrize("mixer", MIXERS)
def test_frames_of_a_batch_do_not_influence_each_other(mixer: str) -> None:
    backbone = build(mixer)
    both = scene(2, (50, 33))
    joined = cells(backbone(both))
    for frame in range(2):
        mine = both.coords[:, 0] == frame
        alone = SparseVoxels(
            both.features[mine], both.coords[mine] - torch.tensor([frame, 0, 0, 0], dtype=torch.int32), GRID, 1
        )
        for (_, *cell), value in cells(backbone(alone)).items():
            torch.testing.assert_close(joined.pop((frame, *cell)), value, rtol=1e-7, atol=1e-8)
    assert not joined


def test_the_order_of_voxels_does_not_matter() -> None:
    backbone, voxels = build(), scene(3, (50, 33))
    shuffled = torch.randperm(len(voxels), generator=torch.Generator().manual_seed(0))
    other = SparseVoxels(voxels.features[shuffled], voxels.coords[shuffled], GRID, 2)
    assert_same_cells(backbone(voxels), backbone(other))


def test_empty_frames_and_batches_pass() -> None:
    backbone = build()
    full = scene(4, (30,))
    later = SparseVoxels(full.features, full.coords + torch.tensor([1, 0, 0, 0], dtype=torch.int32), GRID, 3)
    expected = {(1, *cell): value for (_, *cell), value in cells(backbone(full)).items()}
    for cell, value in cells(backbone(later)).items():
        torch.testing.assert_close(value, expected[cell], rtol=1e-8, atol=1e-8)
    assert len(backbone(scene(4, (0, 0)))) == 0


def test_recomputed_activations_give_the_same_gradients() -> None:
    voxels, found = scene(5, (40,)), []
    for recompute in (False, True):
        backbone = build("TTT", recompute=recompute)
        backbone(voxels).features.square().sum().backward()
        found.append([p.grad for p in backbone.parameters()])
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(kept, again)


def test_any_order_goes_with_any_mixer() -> None:
    for order in ({"name": "Hilbert"}, {"name": "ZOrder"}, {"name": "LSH", "width": 3.0}):
        out = build("TTT", orders=[order, "y"])(scene(6, (40,)))
        assert bool(out.features.isfinite().all())


def test_sparse_form_mixes_in_the_plane() -> None:
    backbone = build(bev_windows=[[1, 5, 5], [1, 7, 7]], bev_group_sizes=[8, 16], grid=(8, 12, 8))
    assert backbone.out_grid == (1, 12, 8)
    *scales, out = backbone.scales(scene(7, (30, 20), grid=(8, 12, 8)))
    assert [v.grid[0] for v in (*scales, out)] == [4, 2, 1]
    assert len(backbone.bev_layers) == 2


def test_more_generation_more_voxels() -> None:
    voxels = scene(8, (50,))
    sizes = [len(build(generation=share)(voxels)) for share in (0.0, 0.2, 0.8)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_positions_span_the_grid() -> None:
    coords = torch.tensor([[0, 0, 0, 0], [0, 15, 11, 7]], dtype=torch.int32)
    embedding = GridPosition(3).eval()
    head = embedding.mlp
    with torch.no_grad():
        for layer in (head[0], head[3]):
            layer.weight.copy_(torch.eye(3))
            layer.bias.zero_()
    out = embedding(SparseVoxels(torch.zeros(2, 3), coords, GRID, 1))
    half_step = torch.tensor([3 / 4, 5 / 6, 7 / 8]) * 3.1415  # x, y, z of the last cell
    torch.testing.assert_close(out, torch.stack([torch.zeros(3), half_step]), rtol=1e-4, atol=1e-4)


def test_works_under_autocast() -> None:
    backbone = build("XLSTM").float().train()
    voxels = scene(9, (60, 40), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = backbone(voxels)
    out.features.float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in backbone.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"windows": [[8, 5, 5]]}, "one entry per stage"),
        ({"scales": [[], [[2, 2, 2]]]}, "at least one entry in every stage"),
        ({"group_sizes": [16, 0]}, "group sizes must be at least 1, got 0"),
        ({"windows": [[8, 5, 5], [0, 5, 5]]}, "a window must be three numbers"),
        ({"orders": ["x", "z"]}, "got 'z'"),
        ({"generation": 1.5}, r"generation must be in \[0, 1\]"),
        ({"bev_windows": [[1, 5, 5]]}, "equally many entries"),
        ({"mixer": "Transformer"}, "no mixer is named 'Transformer'"),
        ({"scales": [[[2, 2]], [[2, 2, 2]]]}, "scale must be three numbers"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**arguments)


@pytest.mark.parametrize("mixer", ["mamba", "retnet", "rwkv", "xlstm", "ttt"])
def test_small_configuration_trains(root: Path, mixer: str) -> None:
    torch.manual_seed(0)
    detector = build_detector(config.load(root / "configs" / "kitti" / f"lion_{mixer}.yaml")).train()
    points = torch.rand(2, 300, 4) * torch.tensor([20, 10, 2, 1]) + torch.tensor([0, -5, -2, 0])
    cars = torch.tensor([[10.0, 0, -1, 3.9, 1.6, 1.5, 0.3]])
    frames = PointBatch.from_points(list(points))
    batch = replace(frames, targets=(Targets(cars, torch.zeros(1, dtype=torch.int64)),) * 2)
    before = detector.loss(batch)["total"]
    before.backward()
    assert [n for n, p in detector.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())] == []
    torch.optim.AdamW(detector.parameters(), lr=1e-3).step()
    assert detector.loss(batch)["total"] < before
