"""Published FlatFormer configurations and checkpoints in this library."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.conformance.golden import Case
from pcdet_ext.interop import from_official
from pcdet_ext.interop.flatformer import detector_name
from pcdet_ext.models.backbones import FlatFormer
from pcdet_ext.models.detector import VoxelDetector, build_detector
from pcdet_ext.models.heads import CenterHead
from pcdet_ext.structures import PointBatch, SparseVoxels

MODELS = [
    "flatformer_waymo_D1_2x_3class.py",
    "flatformer_waymo_D1_2x_3class_2f.py",
    "flatformer_waymo_D1_2x_3class_3f.py",
    "flatformer_waymo_D5_1x_3class.py",
    "flatformer_waymo_D5_1x_3class_3f.py",
]
# Entries whose numbers are converted, for boxes in the convention of this library.
CONVERTED = {
    f"bbox_head.task_heads.0.{branch}.1.{kind}" for branch in ("rot", "dim", "iou") for kind in ("weight", "bias")
}


@pytest.fixture(scope="module")
def manifest(shared: Path) -> dict:
    return json.loads((shared / "golden" / "flatformer" / "manifest.json").read_text())


def golden(shared: Path, name: str) -> Case:
    return Case.read(shared / "golden" / "flatformer" / f"{name}.json")


@pytest.fixture
def detector_case(shared: Path) -> Case:
    return golden(shared, "e2e_b2_nodrop")


def test_every_published_model_is_accounted_for(manifest: dict) -> None:
    assert sorted(manifest) == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_every_name_and_shape_of_a_published_model_has_its_place(manifest: dict, name: str) -> None:
    entry = manifest[name]
    state = {key: torch.full(shape, 10.0 + i) for i, (key, shape) in enumerate(entry["params"])}
    detector = from_official("flatformer", entry["config"], {"state_dict": state, "meta": {"epoch": 24}})
    found = {float(t.flatten()[0]) for t in detector.state_dict().values()}
    assert len(detector.state_dict()) == len(state)
    assert found >= {10.0 + i for i, (key, _) in enumerate(entry["params"]) if key not in CONVERTED}
    assert sum(p.numel() for p in detector.parameters()) == entry["total_params"]


def test_the_configuration_decays_what_the_published_training_decays(manifest: dict, root: Path) -> None:
    settings = config.load(root / "configs" / "waymo" / "flatformer.yaml")
    names = [name for name, _ in build_detector(settings).named_parameters()]
    published = [key for key, _ in manifest[MODELS[0]]["params"] if "norm" in key and "running" not in key]
    spared = {name for name in names if any(part in name for part in settings["train"]["undecayed"])}
    assert spared == {detector_name(key) for key in published if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("name", "path"), [(MODELS[0], "flatformer"), (MODELS[1], "flatformer_2frames"), (MODELS[2], "flatformer_3frames")]
)
def test_configuration_files_describe_the_published_models(manifest: dict, root: Path, name: str, path: str) -> None:
    ours = build_detector(config.load(root / "configs" / "waymo" / f"{path}.yaml"))
    official = from_official("flatformer", manifest[name]["config"])
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in official.state_dict().items()}
    for part in ("encoder", "backbone", "bev_backbone", "head"):
        for mine, theirs in zip(getattr(ours, part).modules(), getattr(official, part).modules(), strict=True):
            assert settings(mine) == settings(theirs)
    assert ours.head.code_weights.equal(official.head.code_weights)


def settings(module: torch.nn.Module) -> dict:
    """Plain attributes of a module."""
    hidden = ("training", "classes")
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in hidden}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("backbone_b2", FlatFormer),
        ("block_b2", FlatFormer),
        ("e2e_b2_nodrop", VoxelDetector),
        ("head_targets_loss_decode", CenterHead),
    ],
)
def test_case_configurations_build_modules_in_eval_mode(shared: Path, name: str, kind: type) -> None:
    case = golden(shared, name)
    module = from_official("flatformer", case.config, case.tensors("param") or None)
    assert isinstance(module, kind)
    assert not module.training


def test_backbone_runs_on_voxels(shared: Path) -> None:
    case = golden(shared, "backbone_b2")
    backbone = from_official("flatformer", case.config, case.tensors("param"))
    nx, ny, nz = case.config["sparse_shape"]
    voxels = SparseVoxels(case.tensor("in.x"), case.tensor("in.coords"), (nz, ny, nx), case.config["batch_size"])
    torch.testing.assert_close(backbone(voxels).features, case.tensor("mid.voxels_after_block1"), rtol=1e-4, atol=5e-5)


def test_detections_are_boxes_of_this_library(detector_case: Case) -> None:
    """A head that sees one object everywhere: w 2 m, l 5 m, yaw 0.3, an expected overlap of 0.8."""
    state = detector_case.tensors("param")
    for key, values in {
        "reg": [0.5, 0.5],
        "height": [1.0],
        "dim": [math.log(2), math.log(5), math.log(1.5)],
        "rot": [math.sin(0.3), math.cos(0.3)],
        "vel": [3.0, -2.0],
        "iou": [0.8],
        "heatmap": [2.0, -9.0, -9.0],
    }.items():
        state[f"bbox_head.task_heads.0.{key}.1.weight"].zero_()
        state[f"bbox_head.task_heads.0.{key}.1.bias"].copy_(torch.tensor(values))
    detector = from_official("flatformer", detector_case.config, state)
    points, frame = detector_case.tensor("in.points"), detector_case.tensor("in.point_coors")[:, 0].long()
    found = detector.predict(PointBatch(points, frame, 2))[0]
    length_along = -(0.3 + math.pi / 2)
    expected = torch.tensor([1.0, 5.0, 2.0, 1.5, length_along, 3.0, -2.0])
    assert len(found) > 0
    torch.testing.assert_close(found.boxes[:, 2:], expected.expand(len(found), -1), rtol=1e-5, atol=1e-5)
    score = torch.tensor(2.0).sigmoid() * 0.8**2
    torch.testing.assert_close(found.scores, score.expand(len(found)))
    assert set(found.names) == {"car"}


def changed(case: Case, path: str, value: object) -> dict:
    """The case's configuration with one value changed, or removed where it is None."""
    tree = copy.deepcopy(case.config)
    *keys, last = path.split(".")
    node = tree
    for key in keys:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("middle_encoder", None, "needs 'middle_encoder', it has "),
        ("bbox_head.tasks", None, "needs 'tasks', it has in_channels, "),
        ("middle_encoder.group_size", 0, "group_size must be at least 1, got 0"),
        ("middle_encoder.num_heads", 5, "num_heads must be positive and divide channels, got 5 and 32"),
        ("middle_encoder.activation", "glu", "activation: expected .*'gelu', .*, got 'glu'"),
        ("middle_encoder.window_shape", [8, 8], r"window_shape must be three positive sizes \(x, y, z\), got \[8, 8\]"),
        ("middle_encoder.sparse_shape", [32, 64, 1], r"output_shape \[64, 64\] must be sparse_shape's"),
        ("voxel_size", [0.25, 0.5, 8.0], r"sparse_shape \[64, 64, 1\] does not fit .* which make \[128, 64, 1\]"),
        ("voxel_encoder.with_cluster_center", False, "with_cluster_center False is not known"),
        ("voxel_encoder.norm_cfg", {"eps": 1e-5}, r"voxel_encoder.norm_cfg: eps and momentum must be 0.001 and 0.01"),
        ("bbox_head.common_heads.dim", [6, 2], "common_heads.dim: 6 channels"),
        ("bbox_head.bbox_coder.out_size_factor", 8, "out_size_factor: the head is set to a stride of 8, .* has 1"),
        ("bbox_head.norm_bbox", False, "norm_bbox False"),
    ],
)
def test_what_does_not_fit_is_refused(detector_case: Case, path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_official("flatformer", changed(detector_case, path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("test_cfg.iou_pow", [0.5, 0.5], "iou_power must have 3 numbers, got 2"),
        ("test_cfg.nms_type", "circle", "nms_type 'circle' is not known"),
        ("test_cfg.post_center_limit_range", [-1, -1, -1, 1, 1, 1], "post_center_limit_range .* must contain"),
    ],
)
def test_test_settings_that_do_not_fit_are_refused(shared: Path, path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_official("flatformer", changed(golden(shared, "head_targets_loss_decode"), path, value))


def test_unknown_modules_are_refused(shared: Path) -> None:
    with pytest.raises(ValueError, match="module: 'SST' is not in this library"):
        from_official("flatformer", changed(golden(shared, "backbone_b2"), "module", "SST"))


def test_parameters_that_do_not_fit_are_named(detector_case: Case) -> None:
    state = detector_case.tensors("param")
    fc1 = "middle_encoder.block_list.0.block.1.fc1.weight"
    state[fc1] = state[fc1][:3]
    del state["bbox_head.task_heads.0.heatmap.1.bias"]
    state["middle_encoder.block_list.7.fc1.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="does not fit the configuration") as error:
        from_official("flatformer", detector_case.config, state)
    text = str(error.value)
    assert f"{fc1} is (3, 32), not (64, 32)" in text
    assert "middle_encoder.block_list.7.fc1.weight has no place" in text
    assert "head.heads_list.0.hm.1.bias is missing" in text
