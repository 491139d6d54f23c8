"""Configurations of OpenPCDet's published detectors have the published values."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.config import Registry, construct
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.interop import checkpoints, openpcdet, openpcdet_heads
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.bev import BEV_BACKBONES
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.heads import HEADS
from pcdet_ext.models.heads.postprocess import NMSConfig

CONFIGS = {
    "argoverse2/voxelnext": "openpcdet2/argo2_models/cbgs_voxel01_voxelnext.yaml",
    "kitti/pillarnet": "openpcdet/kitti_models/pillarnet.yaml",
    "kitti/second_multihead": "openpcdet2/kitti_models/second_multihead.yaml",
    "nuscenes/pillarnet": "openpcdet/nuscenes_models/cbgs_pillar0075_res2d_centerpoint.yaml",
    "nuscenes/pointpillars_multihead": "openpcdet/nuscenes_models/cbgs_pp_multihead.yaml",
    "nuscenes/second_multihead": "openpcdet/nuscenes_models/cbgs_second_multihead.yaml",
    "nuscenes/voxelnext": "openpcdet2/nuscenes_models/cbgs_voxel0075_voxelnext.yaml",
    "nuscenes/voxelnext_double_flip": "openpcdet2/nuscenes_models/cbgs_voxel0075_voxelnext_doubleflip.yaml",
    "waymo/pillarnet": "openpcdet/waymo_models/pillarnet.yaml",
    "waymo/voxelnext": "openpcdet2/waymo_models/voxelnext_ioubranch_large.yaml",
    "waymo/voxelnext_2d": "openpcdet2/waymo_models/voxelnext2d_ioubranch.yaml",
}


@pytest.fixture(scope="module")
def manifests(shared: Path) -> dict[str, Any]:
    """The published models by "folder/name"."""
    entries = {}
    for folder in ("openpcdet", "openpcdet2"):
        text = (shared / "golden" / folder / "manifest.json").read_text(encoding="utf-8")
        entries |= {f"{folder}/{name}": entry for name, entry in json.loads(text).items()}
    return entries


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_have_the_published_values(root: Path, manifests: dict[str, Any], name: str) -> None:
    ours, theirs = config.load(root / "configs" / f"{name}.yaml"), manifests[CONFIGS[name]]["config"]
    data, model, published = ours["data"], ours["model"].plain(), theirs["model"]
    classes = theirs["class_names"]
    assert list(data["classes"]) == classes
    assert list(data["point_cloud_range"]) == theirs["point_cloud_range"]
    assert model["voxel_size"] == theirs["voxel_size"]
    caps = (None, None)
    if published["VFE"]["NAME"] in ("MeanVFE", "PillarVFE"):
        voxels = theirs["voxel_processor"]
        limits = voxels["MAX_NUMBER_OF_VOXELS"]
        caps = (voxels["MAX_POINTS_PER_VOXEL"], (limits["train"], limits["test"]))
    head = openpcdet_heads.head(published["DENSE_HEAD"], published.get("POST_PROCESSING", {}), classes)
    parts = [
        (ENCODERS, "encoder", openpcdet.encoder(published["VFE"], *caps)),
        (BACKBONES, "backbone", openpcdet.backbone(published.get("BACKBONE_3D"), 1)),
        (BEV_BACKBONES, "bev_backbone", openpcdet.map_backbone(published)),
        (HEADS, "head", head),
    ]
    for registry, part, node in parts:
        assert complete(registry, model.get(part), classes) == complete(registry, node, classes), part
    settings, train = theirs["optimization"], construct(TrainConfig, ours["train"])
    assert (train.epochs, train.batch_size) == (settings["NUM_EPOCHS"], settings["BATCH_SIZE_PER_GPU"])
    assert (train.learning_rate, train.weight_decay) == (settings["LR"], settings["WEIGHT_DECAY"])
    assert (list(train.momentum), train.pct_start) == (settings["MOMS"], settings["PCT_START"])
    assert (train.div_factor, train.grad_norm_clip) == (settings["DIV_FACTOR"], settings["GRAD_NORM_CLIP"])


@pytest.mark.parametrize("name", CONFIGS)
def test_published_checkpoints_fit_the_configurations(root: Path, manifests: dict[str, Any], name: str) -> None:
    entry = manifests[CONFIGS[name]]
    with torch.device("meta"):
        detector = build_detector(config.load(root / "configs" / f"{name}.yaml"))
        state = {key: torch.empty(shape) for key, shape in entry["params"]}
    checkpoints.load_official(detector, state)  # refuses what is missing, left over, or of another shape
    assert len(detector.state_dict()) == entry["n_state_entries"] - 1  # all but global_step
    assert sum(p.numel() for p in detector.parameters()) == entry["total_params"]


def complete(registry: Registry, node: dict[str, Any] | None, classes: list[str]) -> dict[str, Any] | None:
    """A component with the defaults of its class filled in, in one spelling."""
    if node is None:
        return None
    parameters = inspect.signature(registry.get(node["name"])).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    full = {key: plain(value) for key, value in (defaults | node).items()}
    if isinstance(full.get("max_voxels"), int):
        full["max_voxels"] = [full["max_voxels"]] * 2
    if full.get("code_weights") and set(full["code_weights"]) == {1.0}:
        full["code_weights"] = None
    if "tasks" in full:
        full["tasks"] = full["tasks"] or [classes]
    if "anchors" in full:
        full["anchors"] = [{"align_center": False, **anchor} for anchor in full["anchors"]]
    if "nms" in full:
        full["nms"] = construct(NMSConfig, full["nms"] or {})
    return full


def plain(value: Any) -> Any:
    """Lists for tuples, at any depth."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
