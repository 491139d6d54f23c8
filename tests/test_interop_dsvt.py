"""Official DSVT configurations and checkpoints in this library."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from pcdet_ext.interop import from_official
from pcdet_ext.interop.golden import Case


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
    (_both("set_info", [[0, 1]] * 4), "set_sizes must be at least 1, got 0"),
    (_both("set_info", [[24, 0]] * 4), "blocks and ffn_channels must be at least 1"),
    (_set("set_info", [[12, 1]] * 4), "but in INPUT_LAYER"),
    (_set("nhead", [4, 5, 4, 4]), "num_heads must be positive and divide channels, got 5 and 32"),
    (_set("nhead", [4, 4]), "num_heads must have one entry a stage, 4 as channels, got 2"),
    (_set("INPUT_LAYER.downsample_stride", [[1, 1, 4]]), "pool_strides must have one entry between two stages"),
    (_set("INPUT_LAYER.downsample_stride", [[1, 1, 0]] * 3), "pool_strides must be three positive numbers"),
    (_set("INPUT_LAYER.window_shape.0", [6, 0, 32]), "windows must be three positive numbers"),
    (_set("INPUT_LAYER.shifts_list.1", [[0, 0, 0]]), "shifts must be two times three numbers"),
    (_set("block_name", ["DSVTBlock", "Block", "DSVTBlock", "DSVTBlock"]), "block_name: Block is not in this library"),
    (_set("reduction_type", "mean"), "reduction_type: 'mean' is not known"),
    (_set("activation", "glu"), "activation must be one of gelu, relu, got 'glu'"),
    (_set("conv_out_channel", 64), "conv_out_channel is 64, but d_model ends 32"),
    (lambda c: c.pop("nhead"), "BACKBONE_3D needs 'nhead'"),
    (_both("d_model", [36] * 4), "pool_heads must divide the channels, got 8 and 36"),
]


@pytest.mark.parametrize(("change", "message"), BACKBONE_CHANGES)
def test_senseless_backbones_are_refused(voxel, change, message) -> None:
    config = copy.deepcopy(voxel.config) | {"conv_out_channel": 32}
    change(config)
    if message.startswith("pool_heads"):
        config["conv_out_channel"] = 36
    with pytest.raises(ValueError, match=message):
        from_official("dsvt", config)


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
    config = copy.deepcopy(center.config)
    change(config)
    with pytest.raises(ValueError, match=message):
        from_official("dsvt", config)


def test_a_map_that_does_not_divide_is_refused(center) -> None:
    config = copy.deepcopy(center.config)
    config["POINT_CLOUD_RANGE"] = [-15.0, -15.0, -2, 15.0, 15.0, 4.0]
    config["GRID_SIZE"] = config["BACKBONE_3D"]["INPUT_LAYER"]["sparse_shape"] = [50, 50, 1]
    with pytest.raises(ValueError, match="does not divide by their product 4"):
        from_official("dsvt", config)


def test_checkpoints_of_other_models_are_refused(center, voxel, shared) -> None:
    second = Case.read(shared / "golden" / "openpcdet" / "e2e_second_kitti.json")
    for state in (voxel.tensors("param"), second.tensors("param")):
        with pytest.raises(ValueError, match=r"the state dict does not fit the configuration: .* and [0-9]+ more"):
            from_official("dsvt", center.config, state)
    state = center.tensors("param")
    state["backbone_3d.residual_norm_stage_0.0.weight"] = torch.ones(31)
    with pytest.raises(ValueError, match=r"residual_norm_stage_0.0.weight is \(31,\), not \(32,\)"):
        from_official("dsvt", center.config, state)
