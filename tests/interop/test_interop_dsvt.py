"""Official DSVT configurations and checkpoints in this library."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.conformance.golden import Case
from pcdet_ext.engine.optimizer import trained_parameters
from pcdet_ext.interop import dsvt, from_official, openpcdet, openpcdet_backbones, openpcdet_heads
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.bev import BEV_BACKBONES
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.heads import HEADS


@pytest.fixture(scope="module")
def manifest(shared: Path) -> dict:
    entries = json.loads((shared / "golden" / "dsvt" / "manifest.json").read_text())
    for entry in entries.values():  # some share the model of another and only differ in training
        if "same_model_as" in entry:
            entry["config"] = entries[entry["same_model_as"]]["config"] | entry["config"]
    return entries


@pytest.fixture(scope="module")
def center(shared: Path) -> Case:
    return Case.read(shared / "golden" / "dsvt" / "pipeline_center_b2.json")


@pytest.fixture(scope="module")
def voxel(shared: Path) -> Case:
    return Case.read(shared / "golden" / "dsvt" / "voxel_backbone_attnpool_b2.json")


def test_every_name_and_shape_of_the_published_models_has_its_place(manifest) -> None:
    for name, entry in manifest.items():
        state = {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(entry["params"])}
        detector = from_official("dsvt", entry["config"], {"model_state": state, "epoch": 24})
        found = sorted(float(t.flatten()[0]) for t in detector.state_dict().values())
        assert found == [float(i) for i, (key, _) in enumerate(entry["params"]) if key != "global_step"], name
        assert sum(p.numel() for p in detector.parameters()) == entry["total_params"], name


def _set(path: str, value: object):
    def change(config: dict) -> None:
        *parents, last = path.split(".")
        for key in parents:
            config = config[int(key) if key.isdigit() else key]
        config[int(last) if last.isdigit() else last] = value

    return change


def _both(key: str, value: object):
    def change(config: dict) -> None:
        config[key] = config["INPUT_LAYER"][key] = value

    return change


BACKBONE_CHANGES = [
    (_both("set_info", [[0, 1]] * 4), "num_blocks and group_sizes must be at least 1"),
    (_both("set_info", [[24, 0]] * 4), "num_blocks and group_sizes must be at least 1"),
    (_set("set_info", [[12, 1]] * 4), "but in INPUT_LAYER"),
    (_set("nhead", [4, 5, 4, 4]), "num_heads must be positive and divide channels, got 5 and 32"),
    (_set("nhead", [4, 4]), "num_heads must have one entry per stage, 4 as channels, got 2"),
    (_set("INPUT_LAYER.downsample_stride", [[1, 1, 4]]), "pool_strides must have one entry between two stages"),
    (_set("INPUT_LAYER.downsample_stride", [[1, 1, 0]] * 3), "pool_strides must be three positive numbers"),
    (_set("INPUT_LAYER.window_shape.0", [6, 0, 32]), "windows must be three positive numbers"),
    (_set("INPUT_LAYER.shifts_list.1", [[0, 0, 0]]), "shifts must be two times three numbers"),
    (_set("block_name", ["DSVTBlock", "Block", "DSVTBlock", "DSVTBlock"]), "block_name: Block is not in this library"),
    (_set("reduction_type", "mean"), "reduction_type: 'mean' is not known"),
    (_set("activation", "glu"), "activation: expected .*'gelu', .*, got 'glu'"),
    (_set("conv_out_channel", 64), "conv_out_channel is 64, but d_model ends 32"),
    (lambda c: c.pop("nhead"), "BACKBONE_3D needs 'nhead'"),
    (_both("d_model", [36] * 4), "pool_heads must divide the channels, got 8 and 36"),
]


@pytest.mark.parametrize(("change", "message"), BACKBONE_CHANGES)
def test_senseless_backbones_are_refused(voxel, change, message) -> None:
    changed = copy.deepcopy(voxel.config) | {"conv_out_channel": 32}
    change(changed)
    if message.startswith("pool_heads"):
        changed["conv_out_channel"] = 36
    with pytest.raises(ValueError, match=message):
        from_official("dsvt", changed)


DETECTOR_CHANGES = [
    (lambda c: c.pop("VFE"), "needs 'VFE'"),
    (_set("GRID_SIZE", [47, 48, 1]), "GRID_SIZE is"),
    (_set("VOXEL_SIZE", [0.3, 0.3, 6]), "sparse_shape is"),
    (_set("BACKBONE_3D.NAME", "LION"), "'LION' is not a DSVT"),
    (_set("VFE.NAME", "ImageVFE"), "'ImageVFE' is not in this library"),
    (_set("MAP_TO_BEV.NUM_BEV_FEATURES", 64), "NUM_BEV_FEATURES is 64, but the backbone's map has 32"),
    (_set("DENSE_HEAD.TARGET_ASSIGNER_CONFIG.FEATURE_MAP_STRIDE", 2), "stride of 2, but its map has 1"),
]


@pytest.mark.parametrize(("change", "message"), DETECTOR_CHANGES)
def test_senseless_detectors_are_refused(center, change, message) -> None:
    changed = copy.deepcopy(center.config)
    change(changed)
    with pytest.raises(ValueError, match=message):
        from_official("dsvt", changed)


def test_a_map_that_does_not_divide_is_refused(center) -> None:
    changed = copy.deepcopy(center.config)
    changed["POINT_CLOUD_RANGE"] = [-15.0, -15.0, -2, 15.0, 15.0, 4.0]
    changed["GRID_SIZE"] = changed["BACKBONE_3D"]["INPUT_LAYER"]["sparse_shape"] = [50, 50, 1]
    with pytest.raises(ValueError, match=r"a map of \(50, 50\) cells does not divide by the strides"):
        from_official("dsvt", changed)


def test_checkpoints_of_other_models_are_refused(center, voxel, shared) -> None:
    second = Case.read(shared / "golden" / "openpcdet" / "e2e_second_kitti.json")
    for state in (voxel.tensors("param"), second.tensors("param")):
        with pytest.raises(ValueError, match=r"the state dict does not fit the configuration: .* and [0-9]+ more"):
            from_official("dsvt", center.config, state)
    state = center.tensors("param")
    state["backbone_3d.residual_norm_stage_0.0.weight"] = torch.ones(31)
    with pytest.raises(ValueError, match=r"residual_norm_stage_0.0.weight is \(31,\), not \(32,\)"):
        from_official("dsvt", center.config, state)


CONFIGS = {
    "waymo/dsvt_pillar": "dsvt_plain_1f_onestage.yaml",
    "waymo/dsvt_voxel": "dsvt_3D_1f_onestage.yaml",
    "nuscenes/dsvt_pillar": "dsvt_plain_1f_onestage_nusences.yaml",
}
# Parameters that the published optimiser never receives.
NEVER_TRAINED = {"waymo/dsvt_pillar": 889_344, "waymo/dsvt_voxel": 1_224_768, "nuscenes/dsvt_pillar": 495_360}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_hold_the_published_values(root, manifest, name) -> None:
    settings = config.load(root / "configs" / f"{name}.yaml")
    published = manifest[CONFIGS[name]]["config"]
    assert list(settings["data"]["classes"]) == published["CLASS_NAMES"]
    assert list(settings["data"]["point_cloud_range"]) == published["POINT_CLOUD_RANGE"]
    assert list(settings["model"]["voxel_size"]) == published["VOXEL_SIZE"]
    sections = {
        "encoder": (ENCODERS, openpcdet.encoder(published["VFE"], None, None)),
        "backbone": (BACKBONES, dsvt.backbone(published["BACKBONE_3D"])),
        "bev_backbone": (BEV_BACKBONES, openpcdet_backbones.bev_backbone(published["BACKBONE_2D"])),
        "head": (HEADS, openpcdet_heads.head(published["DENSE_HEAD"], {}, published["CLASS_NAMES"])),
    }
    for section, (registry, expected) in sections.items():
        ours = settings["model"][section]
        assert ours["name"] == expected["name"]
        defaults = inspect.signature(registry._entries[ours["name"]]).parameters
        for key, value in expected.items():
            pointless = key == "count_empty" and not expected["pool_strides"]
            if (section, key) not in IMPLIED and not pointless:
                found = ours[key] if key in ours else defaults[key].default
                assert plain(found) == plain(value), (section, key)


IMPLIED = {("backbone", "partial_cells"), ("head", "tasks")}  # the grids divide; one task of all classes


def plain(value: object) -> object:
    """Lists for tuples, one number for a list that repeats it, None for a list of ones."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(v) for v in value]
        if items and all(i == items[0] and isinstance(i, (int, float)) for i in items):
            return None if items[0] == 1 and len(items) > 3 else items[0]
        return items
    return value


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_train_as_published(root, manifest, name) -> None:
    settings, published = config.load(root / "configs" / f"{name}.yaml"), manifest[CONFIGS[name]]["config"]
    train, expected = settings["train"], published["OPTIMIZATION"]
    words = {
        "epochs": "NUM_EPOCHS",
        "batch_size": "BATCH_SIZE_PER_GPU",
        "learning_rate": "LR",
        "weight_decay": "WEIGHT_DECAY",
        "momentum": "MOMS",
        "pct_start": "PCT_START",
        "div_factor": "DIV_FACTOR",
        "grad_norm_clip": "GRAD_NORM_CLIP",
    }
    assert {ours: train[ours] for ours in words} == {ours: expected[theirs] for ours, theirs in words.items()}
    assert train["fade_epochs"] == published["HOOK"]["DisableAugmentationHook"]["NUM_LAST_EPOCHS"]
    with torch.device("meta"):
        detector = build_detector(settings)
    every, trained = (trained_parameters(detector, groups) for groups in ("all", train["parameter_groups"]))
    assert sum(p.numel() for p in every) == manifest[CONFIGS[name]]["total_params"]
    assert sum(p.numel() for p in every) - sum(p.numel() for p in trained) == NEVER_TRAINED[name]
