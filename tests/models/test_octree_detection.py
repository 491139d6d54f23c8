"""Octree transformers and octree orders in detectors, from configurations alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.mixers import OctreeAttention
from pcdet_ext.models.backbones import HOTFormer, OctFormer
from pcdet_ext.models.detector import VoxelDetector, build_detector
from pcdet_ext.structures import PointBatch, SparseVoxels, Targets

KITTI = Path(__file__).resolve().parents[2] / "configs" / "kitti"
CAR = [20.0, 3.0, -1.0, 3.9, 1.6, 1.56, 0.3]
SMALLER = ["data.point_cloud_range=[0, -12.8, -3, 25.6, 12.8, 1]"]
HOTFORMER = (
    "model.backbone={name: HOTFormer, channels: [32, 32], num_blocks: [1, 1], num_heads: [2, 2], "
    "num_levels: 2, stem_down: 1, num_octformer_stages: 0, group_size: 32, out_channels: 24}"
)
WINDOWS = "{name: OctreeWindows, dilation: 2}"
ATTENTION = "{name: OctreeAttention, num_heads: 4, group_size: 72, dilation: 2}"


def batch() -> PointBatch:
    """A car's points on a plane, twice."""
    generator = torch.Generator().manual_seed(0)
    clouds, targets = [], []
    for _ in range(2):
        ground = torch.rand(1500, 3, generator=generator) * torch.tensor([25.6, 25.6, 0.1])
        ground = ground - torch.tensor([0, 12.8, 1.8])
        car = torch.rand(200, 3, generator=generator) * torch.tensor([3.9, 1.6, 1.5]) + torch.tensor([18.0, 2.2, -1.75])
        clouds.append(torch.cat([torch.cat([ground, car]), torch.rand(1700, 1, generator=generator)], 1))
        targets.append(Targets(torch.tensor([CAR]), torch.tensor([0]), ("Car",)))
    points = PointBatch.from_points(clouds)
    return PointBatch(points.points, points.batch_index, 2, tuple(targets))


def losses_of(detector: VoxelDetector, steps: int = 4) -> list[float]:
    optimizer, losses = torch.optim.AdamW(detector.train().parameters(), 2e-3), []
    for _ in range(steps):
        loss = detector.loss(batch())["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(("overrides", "kind"), [([], OctFormer), ([HOTFORMER], HOTFormer)])
def test_octree_transformers_detect(overrides: list[str], kind: type) -> None:
    torch.manual_seed(0)
    detector = build_detector(config.load(KITTI / "octformer.yaml", [*SMALLER, *overrides]))
    assert isinstance(detector.backbone, kind)
    losses = losses_of(detector)
    assert losses[-1] < losses[0]
    found = detector.eval().predict(batch())
    assert len(found) == 2
    assert all(torch.as_tensor(frame.boxes).isfinite().all() for frame in found)


@pytest.mark.parametrize("empty", [0, 1])
def test_octree_transformers_take_frames_without_points(empty: int) -> None:
    torch.manual_seed(0)
    detector = build_detector(config.load(KITTI / "octformer.yaml", SMALLER)).eval()
    given = batch()
    keep = given.batch_index != empty
    found = detector.predict(PointBatch(given.points[keep], given.batch_index[keep], 2))
    assert len(found) == 2


OCTREE_ORDERS = "[{name: ZOrder}, {name: Hilbert}]"
ON_OCTREES = {
    "flatformer": [f"model.backbone.orders={OCTREE_ORDERS}"],
    "dsvt": [f"model.backbone.orders={OCTREE_ORDERS}"],
    "lion_mamba": [f"model.backbone.orders={OCTREE_ORDERS}"],
}


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("name", ON_OCTREES)
def test_other_backbones_follow_octree_orders_by_configuration_alone(name: str, attention: bool) -> None:
    """On the orders of octrees; then with octree windows and octree attention in the place of their own parts too."""
    torch.manual_seed(0)
    parts = [f"model.backbone.partition={WINDOWS}", f"model.backbone.mixer={ATTENTION}"] if attention else []
    detector = build_detector(config.load(KITTI / f"{name}.yaml", [*SMALLER, *ON_OCTREES[name], *parts]))
    called = []
    for module in detector.modules():
        if isinstance(module, OctreeAttention):
            module.register_forward_hook(lambda _, arguments, __: called.append(arguments[1].cells is not None))
    losses = losses_of(detector, steps=2)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert bool(called) == attention
    assert all(called)


@pytest.mark.parametrize("kind", [OctFormer, HOTFormer])
def test_octree_transformers_compute_under_autocast(kind: type) -> None:
    torch.manual_seed(0)
    coords = torch.unique(torch.randint(0, 64, (300, 3), dtype=torch.int32), dim=0)
    coords = torch.cat([torch.zeros(len(coords), 1, dtype=torch.int32), coords], 1)
    voxels = SparseVoxels(torch.randn(len(coords), 5), coords, (64, 64, 64), 1)
    backbone = kind(5, (64, 64, 64)).eval()
    with torch.no_grad():
        wanted = backbone(voxels).features
        with torch.autocast("cpu", torch.bfloat16):
            found = backbone(voxels).features
    assert (found - wanted).norm() < 0.05 * wanted.norm()
