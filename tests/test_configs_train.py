"""Every detector of configs/ learns a step from frames of its layout, on a small grid, and then detects."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.models.detector import VoxelDetector, build_detector
from pcdet_ext.models.heads import MapSegmentationHead, OccupancyHead
from pcdet_ext.models.registry import DETECTORS
from pcdet_ext.scenes import EgoPlan
from pcdet_ext.structures import PointBatch, Targets

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ALL = {path: config.load(path) for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name != "datasets"}
MODELS = [path for path, settings in ALL.items() if DETECTORS.get(settings["model"]["name"]) is VoxelDetector]
CELLS = 16  # of the small grid along x and y
POINTS = 60  # of a frame
LION_STAGES = range(4)
NARROW: dict[str, dict[str, Any]] = {  # wide heads on maps of a fixed size
    "MapSegmentationHead": {"hidden_channels": 8, "encoder_channels": 8, "encoder_blocks": [0, 0, 0]},
    "OccupancyHead": {"hidden_channels": 8, "heights": 2, "x": [-2.4, 2.4, 0.4], "y": [-2.4, 2.4, 0.4]},
}


def small(path: Path) -> config.Node:
    """A configuration with its own voxels on a small part of its range; wide backbones are narrower, and
    LION's layers fewer and short."""
    data, model = ALL[path]["data"], ALL[path]["model"]
    low_x, _, low_z, *_, high_z = data["point_cloud_range"]
    width, depth = (CELLS * size for size in model["voxel_size"][:2])
    start = 0.0 if low_x == 0 else -width / 2
    changes = [f"data.point_cloud_range={[start, -depth / 2, low_z, start + width, depth / 2, high_z]}"]
    backbone = model.get("backbone") or {}
    if model.get("encoder", {}).get("name") == "OctreeVFE":  # a cube, and deep enough for four stages
        half = 64 * model["voxel_size"][0]
        changes = [f"data.point_cloud_range={[-half] * 3 + [half] * 3}", "model.backbone.num_blocks=[1, 1, 2, 1]"]
        changes += [f"model.{part}.channels=[16, 32, 48, 48]" for part in ("backbone", "head")]
        changes += ["model.backbone.num_heads=[2, 2, 3, 3]"]
    if backbone.get("name") == "LION":
        stages = len(backbone.get("scales", LION_STAGES))
        changes += [f"model.backbone.group_sizes={[32] * stages}", "model.backbone.out_group_size=16"]
        changes += [f"model.backbone.scales={[[[2, 2, 2]]] * stages}", "model.encoder.num_filters=[16, 16]"]
        changes += ["model.backbone.bev_group_sizes=[16, 16, 16]"] if "bev_windows" in backbone else []
    if backbone.get("name") == "VoxelResBackBone8xVoxelNeXt":
        changes += ["model.backbone.channels=[4, 8, 8, 16, 16]", "model.backbone.out_channels=16"]
    for name, head in (model.get("heads") or {}).items():
        kind = head["name"]
        changes += [f"model.heads.{name}.{key}={value}" for key, value in NARROW.get(kind, {}).items()]
    for i, layer in enumerate(backbone.get("layers", ())):
        if layer["partition"].get("group_size", 0) > 256:
            changes.append(f"model.backbone.layers.{i}.partition.group_size=256")
    return config.load(path, changes)


def simulated(settings: config.Node, detector: VoxelDetector) -> PointBatch:
    """Two frames with the columns of the layout: an object of the first and of the last class, and none."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(settings["data"]["point_cloud_range"]).view(2, 3)
    points = torch.rand(2 * POINTS, detector.num_point_features, generator=generator)
    points[:, :3] = low + points[:, :3] * (high - low)
    middle = (low + high) / 2
    boxes = torch.tensor([[0.0, 0, 0, 1.5, 1.0, 1.2, 0.3, 0.5, 0.5], [0.0, 0, 0, 0.8, 0.7, 1.7, 2.0, 0.0, 0.0]])
    boxes[:, :3] = middle + (high - low) * torch.tensor([[0.0, 0.0, 0.0], [0.2, -0.1, 0.1]])
    labels = torch.tensor([0, len(detector.classes) - 1])
    of_points = torch.arange(POINTS) % len(detector.classes)
    things = torch.arange(POINTS) // 10  # instances, for heads that tell objects apart
    futures = torch.ones(2, 12, 2)
    known = torch.ones(2, 12, dtype=torch.bool)
    scene = scene_labels(detector)
    frames = tuple(
        Targets(
            boxes[:count],
            labels[:count],
            point_labels=of_points,
            point_instances=things,
            futures=futures[:count],
            future_mask=known[:count],
            **scene,
        )
        for count in (2, 0)
    )
    return PointBatch(points, torch.arange(2 * POINTS) // POINTS, 2, frames, commands=torch.tensor([0, 2]))


def scene_labels(detector: VoxelDetector) -> dict[str, Any]:
    """What the heads of a detector want to know of a scene: a map, occupancy, and the vehicle's own path."""
    labels: dict[str, Any] = {"plan": EgoPlan(torch.ones(6, 2), torch.ones(6, dtype=torch.bool), torch.zeros(10))}
    for head in detector.named_heads().values():
        if isinstance(head, MapSegmentationHead):
            labels["map_masks"] = torch.randint(0, 2, (len(head.layers), *head.size), dtype=torch.uint8)
        if isinstance(head, OccupancyHead):
            labels["occupancy"] = torch.randint(0, len(head.class_names), head.size, dtype=torch.uint8)
    return labels


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_detector_learns_a_step_and_detects(path: Path) -> None:
    torch.manual_seed(0)
    settings = small(path)
    detector: Any = build_detector(settings)
    batch = simulated(settings, detector)
    total = detector.loss(batch)["total"]
    total.backward()
    assert math.isfinite(total.item())
    reached = [p.grad for p in detector.parameters() if p.grad is not None]
    assert len(reached) > 0.5 * len(list(detector.parameters()))
    assert all(grad.isfinite().all() for grad in reached)
    torch.optim.SGD(detector.parameters(), 1e-6).step()
    found = detector.eval().predict(batch)
    assert len(found) == 2
