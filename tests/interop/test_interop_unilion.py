"""UniLION: every published parameter has its place, and settings that are not known are refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcdet_ext import config
from pcdet_ext.interop import from_official
from pcdet_ext.interop.checkpoints import load_official
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.task_weights import weighted_losses


@pytest.fixture(scope="module")
def manifest(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden" / "unilion" / "manifest.json").read_text())["models"]


def parameters(manifest: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    """Parameters that take no memory, with the names and shapes of a published model."""
    shapes, own = manifest["unilion_LT_seq_e2e"]["parameters"], manifest[name].get("parameters_as")
    if own is not None:
        parts = own.split("top-level modules: ")[1].split(", ")
        shapes = {key: shape for key, shape in shapes.items() if key.split(".")[0] in parts}
    kinds = {key: torch.int64 if key.endswith("num_batches_tracked") else torch.float32 for key in shapes}
    return {key: torch.zeros((), dtype=kinds[key]).expand(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", ["L_det", "L_det_map", "L_perception", "LT_seq_perception", "LT_seq_e2e"])
def test_every_name_and_shape_of_the_published_models_has_its_place(manifest: dict[str, Any], name: str) -> None:
    entry, state = manifest[f"unilion_{name}"], parameters(manifest, f"unilion_{name}")
    detector = from_official("unilion", entry["config"], state)
    anchors = sum(value.numel() for key, value in detector.named_buffers() if "anchor" in key)
    assert sum(p.numel() for p in detector.parameters()) + anchors == entry["num_parameters"]
    assert (detector.temporal is not None) == ("LT" in name)
    assert detector.weights["detection"] == entry["config"]["train_cfg"]["loss_det_weight"]
    assert detector.balance == ("detection" if entry["config"]["train_cfg"]["dynamic"] else None)


def small(shared: Path) -> dict[str, Any]:
    found = json.loads((shared / "golden" / "unilion" / "pipeline_lt_e2e.json").read_text())["config"]
    del found["frames"]
    return found


def test_checkpoints_with_images_load(shared: Path) -> None:
    source = from_official("unilion", small(shared))
    with pytest.raises(ValueError, match="is missing"):
        load_official(source, {"pts_voxel_encoder.pfn_layers.0.linear.weight": torch.zeros(6, 11)})
    with np.load(shared / "golden" / "unilion" / "pipeline_lt_e2e.npz") as arrays:
        given = {key.removeprefix("param."): arrays[key] for key in arrays if key.startswith("param.")}
    published = {key: torch.from_numpy(value) for key, value in given.items()}
    load_official(source, published | {"img_backbone.patch_embed.projection.weight": torch.zeros(3)})
    own = source.state_dict()
    assert own["temporal.fuser.weight"].equal(published["temporal_fuser.0.weight"])
    assert own["heads.detection.shared_conv.bias"].equal(published["det_head.shared_conv.bias"])


def changed(published: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(published)
    *sections, key = path.split(".")
    inner = found
    for section in sections:
        inner = inner[section]
    inner[key] = value
    return found


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.type", "UniLAION", "UniLAION"),
        ("model.fusion", True, "images are not in this library"),
        ("model.img_backbone", {"type": "Swin"}, "img_backbone.type"),
        ("model.tasks", {"det": False}, "none of them is switched on"),
        ("model.pts_backbone.grid_size", [64, 64, 16], "pts_backbone.grid_size"),
        ("model.pts_backbone.layer_dim", [12, 16, 12, 12], "only the last stage may have another width"),
        ("model.pts_backbone.depths", [2, 1, 1, 1], "do not fit layer_down_scales"),
        ("model.pts_backbone.linear_operator.type", "TTT", "TTT"),
        ("model.pts_backbone.sdf", False, "pts_backbone.sdf.*did you mean"),
        ("model.map2bev.num_bev_feats", 48, "num_bev_feats"),
        ("model.map2bev.output_shape", [64, 64, 4], "output_shape"),
        ("model.pts_neck.upsample_cfg", {"type": "deconv", "bias": True}, "pts_neck.upsample_cfg"),
        ("model.pts_neck.norm_cfg.eps", 1e-5, "pts_neck.norm_cfg"),
        ("model.pts_neck.in_channels", [12, 12, 12], "pts_neck takes"),
        ("model.pts_voxel_encoder.voxel_size", [0.3, 0.3, 0.5], "pts_voxel_encoder.voxel_size"),
        ("model.map_head.in_channels", 12, "map_head.in_channels"),
        ("model.occ_head.bev_occ_config.input_scope", [[-9.6, 9.6, 0.6], [-9.0, 9.0, 0.6]], "input_scope"),
        ("model.planning_head.type", "Other", "planning_head"),
        ("model.det_head.bbox_coder.voxel_size", [0.2, 0.2], "bbox_coder.voxel_size"),
        ("query_radios", 3, "query_radios"),
    ],
)
def test_settings_that_are_not_known_or_contradict_are_refused(
    shared: Path, path: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_official("unilion", changed(small(shared), path, value))


def test_operators_widths_and_merges_of_the_published_backbone(shared: Path) -> None:
    section = small(shared)["model"]["pts_backbone"]
    rwkv = {"type": "RWKV", "cfg": {"n_head": 4, "drop_path": 0.2, "hidden_rate": 4}}
    backbone = from_official("unilion", section | {"linear_operator": rwkv, "layer_dim": [12, 12, 12, 16]})
    assert backbone.out_channels == 16
    assert backbone.out_layer.passes[0][0].feed.module.in_proj.out_features == 64
    plain = from_official("unilion", section | {"sfd": False})
    assert not any("describe" in name for name in plain.state_dict())
    assert not from_official("unilion", section | {"diffusion": False}).stages[0].merge.generation
    wide = {"type": "RWKV", "cfg": {"n_head": 4, "hidden_rate": 2}}
    with pytest.raises(ValueError, match="hidden_rate other than 4"):
        from_official("unilion", section | {"linear_operator": wide, "layer_dim": [12, 12, 12, 16]})


def test_other_heads_are_balanced_by_one() -> None:
    values = {"box": {"a": 2.0, "b": 4.0}, "map": {"c": 0.5, "d": 1.5}, "plan": {"e": 0.0}}
    leaves = {h: {n: torch.tensor(v, requires_grad=True) for n, v in own.items()} for h, own in values.items()}
    found = weighted_losses(leaves, {"box": 0.5, "map": 0.1, "plan": 1.0}, balance="box")
    scale = 0.1 * 6.0 / (2.0 + 1e-5)
    expected = {"box/a": 1.0, "box/b": 2.0, "map/c": scale * 0.5, "map/d": scale * 1.5, "plan/e": 0.0}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)
    sum(found.values()).backward()
    assert [leaves[h][n].grad.item() for h, n in (("box", "a"), ("map", "d"))] == pytest.approx([0.5, scale])
    plain = weighted_losses(leaves, {"box": 0.5, "map": 0.1, "plan": 1.0})
    assert plain["map/d"].item() == pytest.approx(0.15)


def settings_of(module: torch.nn.Module) -> dict[str, Any]:
    """All plain settings of a module and those inside it, by name."""
    own = (bool, int, float, str, tuple, list, type(None))
    hidden = {"training", "floor_keys", "pooling", "reads", "keep_point_index"}  # see the test that uses this
    return {
        f"{name}.{key}": value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, own) and not key.startswith("_") and key not in hidden
    }


@pytest.mark.parametrize("name", ["l_det", "l_det_map", "l", "lt", "lt_e2e"])
def test_configurations_hold_the_published_values(root: Path, manifest: dict[str, Any], name: str) -> None:
    """But how cells of grids that do not divide are counted, and a pooling window that is the whole map."""
    stages = {"l": "L_perception", "lt": "LT_seq_perception", "lt_e2e": "LT_seq_e2e", "l_det": "L_det"}
    entry = manifest[f"unilion_{stages.get(name, 'L_det_map')}"]
    settings = config.load(root / "configs" / "unilion" / f"{name}.yaml")
    with torch.device("meta"):
        ours, published = build_detector(settings), from_official("unilion", entry["config"])
    shapes = [{key: value.shape for key, value in d.state_dict().items()} for d in (ours, published)]
    assert shapes[0] == shapes[1]
    assert settings_of(ours) == settings_of(published)
    assert ours.weights == published.weights
    training, own = entry["training"], settings["train"]
    assert (own["epochs"], own["batch_size"]) == (training["epochs"], training["samples_per_gpu"])
    up, down = training["lr_config"]["target_ratio"]
    assert own["learning_rate"] == pytest.approx(training["optimizer"]["lr"] * up)
    assert (own["div_factor"], down) == (up, 1e-4)
    assert own["weight_decay"] == training["optimizer"]["weight_decay"]
    assert own["momentum"] == pytest.approx([0.9, 0.9 * training["momentum_config"]["target_ratio"][0]], rel=1e-4)
    moves = training["bda_aug_conf"]
    names = {step["name"] for step in settings["data"]["augment"]}
    wanted = {"RandomRotation": any(moves["rot_lim"]), "RandomFlip": moves["flip_dx_ratio"] > 0}
    wanted |= {"RandomScaling": moves["scale_lim"] != [1.0, 1.0], "RandomTranslation": any(moves["tran_lim"])}
    assert names == {step for step, on in wanted.items() if on}
    assert ("sequences" in settings["data"]) == entry["config"].get("seq", False)
    assert settings["data"]["point_cloud_range"] == entry["config"]["pc_range"]
