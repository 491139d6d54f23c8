"""Relatives of published backbones, put together from shared parts: each trains a step, and groups as its note says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.models.detector import build_detector
from pcdet_ext.structures import PointBatch, SparseVoxels, Targets

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "relatives").glob("*.yaml"))
SMALL = ["data.point_cloud_range=[0, -6.4, -3, 12.8, 6.4, 1]"]
SHORT = {  # groups, for as few points as a test has
    "voxel_mamba_like": ["model.backbone.layers.0.partition.group_size=512"],
    "ptv3_like": [f"model.backbone.layers.{i}.partition.group_size=64" for i in range(3)],
}


def build(path: Path):
    torch.manual_seed(0)
    return build_detector(config.load(path, SMALL + SHORT.get(path.stem, [])))


def frames() -> PointBatch:
    points = torch.rand(500, 4) * torch.tensor([12.8, 12.8, 4.0, 1.0]) - torch.tensor([0.0, 6.4, 3.0, 0.0])
    box = torch.tensor([[6.0, 0.0, -1.0, 3.9, 1.6, 1.5, 0.3]])
    targets = (Targets(box, torch.zeros(1, dtype=torch.int64)),)
    return PointBatch(points, torch.zeros(500, dtype=torch.int64), 1, targets)


def test_the_relatives_are_these() -> None:
    assert [path.stem for path in CONFIGS] == ["ptv3_like", "sst_like", "voxel_mamba_like"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_relatives_train_a_step_and_detect(path: Path) -> None:
    detector, batch = build(path), frames()
    before = detector.loss(batch)["total"]
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.backbone.parameters())
    torch.optim.AdamW(detector.parameters(), 1e-3).step()
    assert detector.loss(batch)["total"].detach() < before.detach()
    assert len(detector.eval().predict(batch)) == 1


def test_every_window_of_the_windowed_relative_is_one_group() -> None:
    (path,) = (path for path in CONFIGS if path.stem == "sst_like")
    backbone = build(path).backbone
    coords = torch.tensor([[0, 0, y, x] for y in range(24) for x in range(24)], dtype=torch.int32)
    voxels = SparseVoxels(torch.zeros(len(coords), 1), coords, (1, 24, 24), 1)
    plan = backbone.partitions[0](voxels, backbone.orders[0])
    cells = coords[plan.index][..., 2:] // 12
    assert plan.index.shape == (4, 144)
    assert (cells == cells[:, :1]).all()


def test_the_whole_frame_is_one_sequence_of_the_relative_of_voxel_mamba() -> None:
    (path,) = (path for path in CONFIGS if path.stem == "voxel_mamba_like")
    backbone = build(path).backbone
    coords = torch.tensor([[b, 0, y, x] for b in range(2) for y in range(16) for x in range(16)], dtype=torch.int32)
    voxels = SparseVoxels(torch.zeros(len(coords), 1), coords, (8, 64, 64), 2)
    plan = backbone.partitions[0](voxels, backbone.orders[0])
    assert plan.num_groups == 2
    assert plan.valid.sum(1).tolist() == [256, 256]
