"""Whole detectors: built from configurations, trained a few steps, and given unusual batches."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_map

import pcdet_ext
from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.interop import from_official
from pcdet_ext.models.detector import VoxelDetector, build_detector
from pcdet_ext.structures import PointBatch, Targets

RANGE = [0.0, -6.4, -3.0, 12.8, 6.4, 1.0]
CAR = {"class_name": "Car", "sizes": [[3.9, 1.6, 1.5]], "bottom_height": -1.8, "matched": 0.6, "unmatched": 0.45}
WALKER = CAR | {"class_name": "Walker", "sizes": [[0.8, 0.6, 1.7]], "matched": 0.5, "unmatched": 0.35}
BEV = {
    "name": "BaseBEVBackbone",
    "layer_nums": [1, 1],
    "layer_strides": [1, 2],
    "num_filters": [8, 8],
    "upsample_strides": [1, 2],
    "num_upsample_filters": [8, 8],
}
ANCHOR_HEAD = {"name": "AnchorHead", "anchors": [CAR, WALKER], "nms": {"iou_threshold": 0.1}}
CENTER_HEAD = {"name": "CenterHead", "shared_channels": 8}
PILLARS = {"voxel_size": [0.4, 0.4, 4.0], "encoder": {"name": "PillarVFE", "num_filters": [8]}, "bev_backbone": BEV}
QUERY_HEAD = {"name": "TransFusionHead", "hidden_channels": 16, "num_heads": 2, "ffn_channels": 16, "num_proposals": 9}
MODELS = {
    "transfusion": PILLARS | {"head": QUERY_HEAD},
    "pointpillars": PILLARS | {"head": ANCHOR_HEAD},
    "centerpoint": PILLARS | {"encoder": {"name": "DynamicPillarVFE", "num_filters": [8, 8]}, "head": CENTER_HEAD},
    "second": {
        "voxel_size": [0.1, 0.1, 0.1],
        "encoder": {"name": "MeanVFE"},
        "backbone": {"name": "VoxelBackBone8x", "channels": [4, 4, 4, 4, 8]},
        "bev_backbone": BEV,
        "head": ANCHOR_HEAD,
    },
}


def settings(model: dict, **data) -> config.Node:
    tree = {
        "data": {"classes": ["Car", "Walker"], "point_cloud_range": RANGE} | data,
        "model": {"name": "VoxelDetector"} | model,
    }
    return config.from_plain(tree, "test.yaml")


def build(name: str) -> VoxelDetector:
    torch.manual_seed(0)
    return build_detector(settings(MODELS[name]))


def cloud(points: int, seed: int = 0) -> torch.Tensor:
    """Points on two objects and on the ground."""
    generator = torch.Generator().manual_seed(seed)
    low, size = torch.tensor([0.0, -6.4, -2.5, 0.0]), torch.tensor([12.8, 12.8, 2.0, 1.0])
    return torch.rand(points, 4, generator=generator) * size + low


def batch(*counts: int) -> PointBatch:
    joined = PointBatch.from_points([cloud(n, seed) for seed, n in enumerate(counts)])
    boxes = torch.tensor([[5.0, 1.0, -1.0, 3.9, 1.6, 1.5, 0.3], [9.0, -3.0, -1.0, 0.8, 0.6, 1.7, 1.2]])
    first = (boxes, torch.tensor([0, 1]))
    empty = (torch.zeros(0, 7), torch.zeros(0, dtype=torch.long))
    objects = [first if n else empty for n in counts]
    names = tuple(f"frame{i}" for i in range(len(counts)))
    targets = tuple(Targets(*columns) for columns in objects)
    return PointBatch(joined.points, joined.batch_index, len(counts), targets, names)


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_lower_the_loss(name):
    detector, frames = build(name), batch(400, 300)
    optimizer = torch.optim.AdamW(detector.parameters(), 3e-3)
    history = []
    for _ in range(8):
        losses = detector.loss(frames)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        history.append(float(losses["total"].detach()))
    assert history[-1] < 0.8 * history[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_losses_of_mixed_precision_are_float32(name):
    detector = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.loss(batch(300, 200))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    full = detector.loss(batch(300, 200))
    assert losses["total"].item() == pytest.approx(full["total"].item(), rel=0.1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("counts", [(300, 0, 200), (0,), (0, 0)])
def test_empty_frames_are_detected_in_and_trained_on(name, counts):
    detector = build(name)
    frames = batch(*counts)
    detector.train()
    assert detector.loss(frames)["total"].isfinite()
    found = detector.eval().predict(frames)
    assert [d.frame_id for d in found] == [f"frame{i}" for i in range(len(counts))]
    assert all(d.class_names == ("Car", "Walker") for d in found)


@pytest.mark.parametrize("name", MODELS)
def test_frames_do_not_see_each_other(name):
    detector = build(name).eval()
    joined = detector.bev_map(batch(300, 200))
    for seed, count in enumerate((300, 200)):
        alone = detector.bev_map(PointBatch.from_points([cloud(count, seed)]))
        torch.testing.assert_close(alone[0], joined[seed])


@pytest.mark.parametrize("name", ["pointpillars", "second", "centerpoint_pillar"])
def test_shipped_configurations_build(root, name):
    detector = build_detector(config.load(root / "configs" / "kitti" / f"{name}.yaml"))
    assert detector.classes == ("Car", "Pedestrian", "Cyclist")
    assert detector.stride == (8 if name == "second" else 2)
    assert detector.num_point_features == 4


@pytest.mark.parametrize(("name", "published"), [("pointpillars", "pointpillar"), ("second", "second")])
def test_shipped_configurations_are_the_published_ones(root, shared, name, published):
    manifest = json.loads((shared / "golden" / "openpcdet" / "manifest.json").read_text())
    official = from_official("openpcdet", manifest[f"kitti_models/{published}.yaml"]["config"])
    ours = build_detector(config.load(root / "configs" / "kitti" / f"{name}.yaml"))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in official.state_dict().items()}
    assert ours.head.specs == official.head.specs
    assert ours.head.nms == official.head.nms
    assert ours.encoder.grid == official.encoder.grid
    for key in ("class_weight", "box_weight", "direction_weight", "direction_offset", "score_threshold", "beta"):
        assert getattr(ours.head, key) == getattr(official.head, key)


def test_points_of_another_width_are_an_error():
    with pytest.raises(ValueError, match="4 columns"):
        build("centerpoint").predict(PointBatch.from_points([torch.zeros(3, 5)]))


def test_loss_needs_ground_truth():
    with pytest.raises(ValueError, match="no ground truth"):
        build("centerpoint").loss(PointBatch.from_points([cloud(10)]))


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"encoder": {"name": "PilarVFE"}}, {}, "model.encoder.name.*did you mean 'PillarVFE'"),
        ({"encoder": {"name": "PillarVFE", "num_filter": [8]}}, {}, "did you mean 'num_filters'"),
        ({"head": {"name": "AnchorHed"}}, {}, "did you mean 'AnchorHead'"),
        ({"voxel_size": [0.4, 0.4]}, {}, "voxel_size must be three"),
        ({"hed": {}}, {}, "did you mean 'head'"),
        ({}, {"classes": ["Car", "Car"]}, "different names"),
        ({}, {"point_cloud_range": [0, 0, 0, 1, -1, 1]}, "point_cloud_range must be"),
        ({}, {"point_features": ["x", "y"]}, "at least 3"),
        (
            {},
            {"point_cloud_range": [0, -6.4, -3, 13, 6.4, 1]},
            r"range: 0 to 13 along x .*\(32.5\); x up to 12.8 or 13.2",
        ),
        ({}, {"point_cloud_range": [0, -6.4, -3, 12.8, 6.4, 2]}, "along z is no whole number of voxels of 4 m"),
        ({}, {"point_cloud_range": [0, -6.4, -3, 13.2, 6.4, 1]}, r"test.yaml: model.bev_backbone: .*\(32, 33\) cells"),
        ({"voxel_size": [0.4, float("nan"), 4.0]}, {}, "test.yaml: model.voxel_size.1: must be a finite number"),
        ({"head": ANCHOR_HEAD}, {"classes": ["Car", "Walker", "Bike"]}, "'Bike' must have one entry"),
    ],
)
def test_wrong_settings_are_named(changes, data, message):
    with pytest.raises(ConfigError, match=message):
        build_detector(settings(MODELS["pointpillars"] | changes, **data))


def test_pillars_need_no_whole_number_of_voxels_along_z():
    data = {"point_cloud_range": [0, -6.4, -3, 12.8, 6.4, 2]}
    assert build_detector(settings(MODELS["centerpoint"], **data)).encoder.grid == (1, 32, 32)


@pytest.mark.parametrize("section", ["data", "model"])
def test_missing_section_is_named(section):
    whole = settings(MODELS["pointpillars"])
    del whole[section]
    with pytest.raises(ConfigError, match=f"needs the section '{section}'"):
        build_detector(whole)


SMALL = ("data.point_cloud_range=[0, -8, -3, 17.6, 8, 1]",)
PUBLISHED = ["kitti/demo", "kitti/flatformer", "kitti/lion_mamba", "kitti/dsvt", "kitti/scatterformer", "kitti/second"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_detectors_as_torch_modules(name):
    torch.manual_seed(0)
    found = pcdet_ext.build(name, SMALL if name.endswith("second") else (), device="cpu")
    points = torch.rand(800, 4) * torch.tensor([17.0, 14, 3, 1]) - torch.tensor([0, 7, 2.5, 0])
    batch = PointBatch.from_points([points])
    with torch.no_grad():
        plain = found.model.bev_map(batch)
        for copied in (copy.deepcopy(found.model), pickle.loads(pickle.dumps(found.model))):
            torch.testing.assert_close(copied.bev_map(batch), plain)
        double = copy.deepcopy(found.model).double()
        assert double.bev_map(batch).dtype == torch.float64
        torch.testing.assert_close(double.bev_map(batch).float(), plain, rtol=1e-2, atol=1e-3)
        for half in (copy.deepcopy(found.model).half(), copy.deepcopy(found.model).bfloat16()):
            with pytest.raises(ValueError, match=r"too coarse: keep them in float32 .* torch\.autocast"):
                half.predict(batch)
        with torch.autocast("cpu", torch.bfloat16):
            assert found.model.bev_map(batch).isfinite().all()


@pytest.mark.parametrize("name", PUBLISHED)
def test_detectors_train_in_double_precision(name):
    torch.manual_seed(0)
    model = pcdet_ext.build(name, SMALL if name.endswith("second") else (), device="cpu").model.double().train()
    points = torch.rand(400, 4) * torch.tensor([17.0, 14, 3, 1]) - torch.tensor([0, 7, 2.5, 0])
    targets = Targets(torch.tensor([[6.0, 0, -1, 4, 2, 1.5, 0]]), torch.zeros(1, dtype=torch.int64))
    total = model.loss(replace(PointBatch.from_points([points]), targets=(targets,)))["total"]
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert total.isfinite()
    assert all(g.dtype == torch.float64 and g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)


def test_batches_keep_everything_when_torch_maps_over_them():
    targets = (Targets(torch.zeros(1, 7), torch.zeros(1, dtype=torch.int64)),)
    batch = replace(PointBatch.from_points([torch.rand(5, 4)]), targets=targets, frame_ids=("a",))
    mapped = tree_map(lambda tensor: tensor + 1, batch)
    assert torch.equal(mapped.points, batch.points + 1)
    assert torch.equal(mapped.batch_index, batch.batch_index + 1)
    assert (mapped.batch_size, mapped.targets, mapped.frame_ids) == (1, targets, ("a",))


@pytest.mark.parametrize("strict", [True, False])
def test_what_torch_export_says(strict):
    found = pcdet_ext.build("kitti/demo", device="cpu")
    with pytest.raises(
        (RuntimeError, torch._dynamo.exc.Unsupported),
        match="how many voxels and groups there are depends on the points",
    ):
        torch.export.export(found.model, (PointBatch.from_points([torch.rand(50, 4)]),), strict=strict)


@pytest.mark.parametrize("section", ["data", "model"])
def test_a_section_that_is_no_mapping_is_refused_as_such(section: str) -> None:
    wrong = config.load("kitti/demo", [f"{section}=5"])
    with pytest.raises(config.ConfigError, match=f"{section} must be a mapping, got 5"):
        build_detector(wrong)


@pytest.mark.parametrize("classes", ["[]", '[""]', "[Car, Car]"])
def test_classes_are_different_names(classes: str) -> None:
    wrong = config.load("kitti/demo", [f"data.classes={classes}"])
    with pytest.raises(ConfigError, match="classes must be one or more different names"):
        build_detector(wrong)
