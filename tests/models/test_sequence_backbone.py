"""Any order with any partition and any mixer: what configurations put together trains, and does not depend on rows."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.mixers import MIXERS, rwkv
from pcdet_ext.models.backbones import SequenceBackbone
from pcdet_ext.models.detector import build_detector
from pcdet_ext.structures import PointBatch, SparseVoxels, Targets

GRID = (4, 16, 16)
ORDERS = [
    {"name": "ZOrder"},
    {"name": "Hilbert"},
    {"name": "WindowX", "window": [4, 4, 4], "path": "snake"},
    {"name": "WindowY", "window": [2, 5, 3], "shift": [1, 2, 1]},
    {"name": "LSH", "projections": 2, "width": 3.0},
]
PARTITIONS = [
    {"name": "EqualGroups", "group_size": 7},
    {"name": "EqualGroups", "group_size": 7, "masked": True},
    {"name": "OctreeWindows", "group_size": 4, "dilation": 2},
    {"name": "RotatedSets", "group_size": 5},
    {"name": "LSHWindows", "group_size": 6, "width": 4.0, "border_shift": 0.5},
    {"name": "Windows"},
]
CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "mixed").glob("*.yaml"))


def random_voxels(seed: int, counts: tuple[int, ...] = (40, 3), channels: int = 16) -> SparseVoxels:
    generator = torch.Generator().manual_seed(seed)
    coords = []
    for b, count in enumerate(counts):
        cells = torch.randperm(GRID[0] * GRID[1] * GRID[2], generator=generator)[:count]
        coords.append(torch.stack([cells * 0 + b, cells // 256, cells // 16 % 16, cells % 16], 1))
    features = torch.randn(sum(counts), channels, generator=generator)
    return SparseVoxels(features, torch.cat(coords).int(), GRID, len(counts))


@pytest.mark.parametrize("mixer", MIXERS.names())
def test_every_combination_mixes_and_has_finite_gradients(mixer: str) -> None:
    voxels = random_voxels(0)
    for order, partition in itertools.product(ORDERS, PARTITIONS):
        torch.manual_seed(0)
        layers = [{"order": order, "partition": partition, "mixer": {"name": mixer}}]
        if partition["name"] == "Windows" and mixer != "LinearAttention":
            with pytest.raises(ValueError, match=f"{mixer} takes Groups, but Windows gives Segments"):
                SequenceBackbone(16, GRID, layers)
            continue
        backbone = SequenceBackbone(16, GRID, layers)
        out = backbone(voxels)
        assert out.features.shape == (43, 16)
        assert torch.equal(out.coords, voxels.coords)
        out.features.square().sum().backward()
        reached = [p.grad for p in backbone.parameters() if p.grad is not None]
        assert len(reached) >= 8
        assert all(torch.isfinite(g).all() for g in reached)
        assert not torch.equal(out.features, voxels.features)


@pytest.mark.parametrize("order", ORDERS[:4], ids=lambda node: node["name"])
@pytest.mark.parametrize("mixer", ["SoftmaxAttention", "LinearAttention", "Mamba"])
def test_shuffled_voxels_give_shuffled_results(order: dict, mixer: str) -> None:
    layers = [{"order": order, "partition": PARTITIONS[0], "mixer": {"name": mixer}}]
    backbone, voxels = SequenceBackbone(16, GRID, layers, channels=8).eval(), random_voxels(1)
    shuffle = torch.randperm(len(voxels))
    moved = SparseVoxels(voxels.features[shuffle], voxels.coords[shuffle], GRID, 2)
    torch.testing.assert_close(backbone(moved).features, backbone(voxels).features[shuffle], atol=1e-5, rtol=1e-5)


def test_frames_do_not_see_each_other() -> None:
    layers = [{"order": ORDERS[1], "partition": PARTITIONS[1], "mixer": {"name": "SoftmaxAttention"}}]
    backbone, voxels = SequenceBackbone(16, GRID, layers).eval(), random_voxels(2)
    first = SparseVoxels(voxels.features[:40], voxels.coords[:40], GRID, 1)
    torch.testing.assert_close(backbone(first).features, backbone(voxels).features[:40], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_mixed_configurations_train_a_step(path: Path) -> None:
    torch.manual_seed(0)
    detector = build_detector(config.load(path))
    points = torch.rand(600, 4) * torch.tensor([40.0, 30.0, 2.0, 1.0]) - torch.tensor([0.0, 15.0, 2.0, 0.0])
    box = torch.tensor([[10.0, 0.0, -1.0, 3.9, 1.6, 1.5, 0.3]])
    batch = PointBatch(
        points, torch.zeros(600, dtype=torch.int64), 1, (Targets(box, torch.zeros(1, dtype=torch.int64)),)
    )
    loss = detector.loss(batch)["total"]
    loss.backward()
    assert torch.isfinite(loss)
    grads = [p.grad for p in detector.backbone.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
    assert sum(float(g.abs().sum()) for g in grads) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "at least one"),
        ({"num_blocks": 0}, "at least one"),
        ({"ffn_channels": 0}, "ffn_channels"),
        ({"layers": [{"order": {"name": "Hilbert"}}]}, "a layer needs 'partition'"),
        (
            {
                "layers": [
                    {"order": {"name": "Hilbert"}, "partition": PARTITIONS[0], "mixer": {"name": "RetNet"}, "a": 1}
                ]
            },
            "unknown key 'a'",
        ),
        ({"layers": [{"order": {"name": "Hilber"}, "partition": PARTITIONS[0], "mixer": {}}]}, "Hilbert"),
    ],
)
def test_wrong_configurations_are_refused(change: dict, message: str) -> None:
    layers = [{"order": ORDERS[0], "partition": PARTITIONS[0], "mixer": {"name": "SoftmaxAttention"}}]
    with pytest.raises((ValueError, ConfigError), match=message):
        SequenceBackbone(**({"in_channels": 16, "grid": GRID, "layers": layers} | change))


def test_layers_are_numbered_through_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    monkeypatch.setattr(rwkv.Place, "of", lambda *place: places.append(place) or rwkv.Place(0.5, 0.5))
    layers = [{"order": ORDERS[0], "partition": PARTITIONS[0], "mixer": {"name": "RWKV"}}] * 2
    SequenceBackbone(16, GRID, layers, num_blocks=2)
    assert places == [(0, 4), (1, 4), (2, 4), (3, 4)]
