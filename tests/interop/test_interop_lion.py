"""LION's published configurations and parameters: every name and shape has its place."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.config import Registry, construct
from pcdet_ext.conformance.golden import Case
from pcdet_ext.engine.settings import TrainConfig
from pcdet_ext.interop import from_official, openpcdet, openpcdet_backbones, openpcdet_heads
from pcdet_ext.interop.lion import backbone, official_state, operator
from pcdet_ext.interop.lion_names import backbone_name, our_value
from pcdet_ext.mixers import MIXERS
from pcdet_ext.models.backbones import BACKBONES, LION
from pcdet_ext.models.backbones.lion import operator_blocks
from pcdet_ext.models.bev import BEV_BACKBONES
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.heads import HEADS
from pcdet_ext.models.heads.postprocess import NMSConfig


@pytest.fixture(scope="module")
def manifest(shared: Path) -> dict[str, Any]:
    """The published models: configuration, and names and shapes of the backbone's parameters."""
    return json.loads((shared / "golden" / "lion" / "manifest.json").read_text(encoding="utf-8"))


def test_every_parameter_of_a_whole_published_model_has_its_place(shared: Path) -> None:
    """The backbones' own manifest, of other configurations' names, is part of it."""
    whole = json.loads((shared / "golden" / "lion2" / "manifest.json").read_text(encoding="utf-8"))
    assert len(whole) == 19
    for name, model in whole.items():
        with torch.device("meta"):
            state = {key: torch.empty(shape) for key, shape in model["params"]}
            detector = from_official("lion2", model["config"])
        assert len(state) == model["n_state_entries"], name
        placed = official_state(detector, state)
        assert {key: value.shape for key, value in placed.items()} == {
            key: value.shape for key, value in detector.state_dict().items()
        }, name
        assert len(placed) == len(state) - 1, name  # all but global_step
        assert sum(p.numel() for p in detector.parameters()) == model["total_params"], name


def test_parameters_of_a_backbone_alone_make_the_backbone(manifest: dict[str, Any]) -> None:
    model = manifest["second_with_lion_retnet_64dim.yaml"]
    parameters = {key: torch.randn(shape) for key, shape in model["params"]}
    module = from_official("lion", model["config"], parameters)
    assert isinstance(module, LION)
    assert module.out_grid == (2, 400, 352)
    state = module.state_dict()
    for key, value in parameters.items():
        ours = state[backbone_name(key.removeprefix("backbone_3d."))]
        torch.testing.assert_close(ours, our_value(key, value).to(ours.dtype))


def test_a_detector_takes_its_checkpoint_and_tells_what_does_not_fit(manifest: dict[str, Any]) -> None:
    model = manifest["second_with_lion_retnet_64dim.yaml"]
    config = model["config"]
    fresh = from_official("lion", config | {"NUM_POINT_FEATURES": 4})
    prefixes = {"encoder": "vfe", "bev_backbone": "backbone_2d", "head": "dense_head"}
    checkpoint = {key: torch.randn(shape) for key, shape in model["params"]}
    for name, value in fresh.state_dict().items():
        prefix, _, rest = name.partition(".")
        if prefix in prefixes:
            checkpoint[f"{prefixes[prefix]}.{rest}"] = torch.randn_like(value.float())
    loaded = from_official("lion", config, {"model_state": checkpoint | {"global_step": torch.tensor(1)}})
    assert loaded.num_point_features == 4
    ours = loaded.state_dict()["backbone.stages.1.block.decoder.1.layer.passes.0.0.feed.module.in_proj.weight"]
    torch.testing.assert_close(ours, checkpoint["backbone_3d.linear_2.decoder.1.blocks.0.ffn.fc1.weight"])
    with pytest.raises(ValueError, match=r"head\.conv_box\.bias is missing"):
        from_official("lion", config, {k: v for k, v in checkpoint.items() if k != "dense_head.conv_box.bias"})
    with pytest.raises(ValueError, match="needs NUM_POINT_FEATURES"):
        from_official("lion", config)


def test_what_does_not_fit_is_named(manifest: dict[str, Any]) -> None:
    config = copy.deepcopy(manifest["second_with_lion_retnet_64dim.yaml"]["config"]) | {"NUM_POINT_FEATURES": 4}
    wrong = copy.deepcopy(config)
    wrong["MODEL"]["VFE"]["NAME"] = "ImageVFE"
    wrong["MODEL"]["DENSE_HEAD"]["NAME"] = "PointHead"
    with pytest.raises(ValueError, match=r"VFE: 'ImageVFE' is not in this library.*DENSE_HEAD: 'PointHead'"):
        from_official("lion", wrong)
    wrong = copy.deepcopy(config)
    wrong["MODEL"]["MAP_TO_BEV"]["NUM_BEV_FEATURES"] = 64
    with pytest.raises(ValueError, match="NUM_BEV_FEATURES is 64, but the backbone's map has 128 channels"):
        from_official("lion", wrong)
    wrong = copy.deepcopy(config)
    wrong["MODEL"]["VFE"]["NUM_FILTERS"] = [64, 32]
    with pytest.raises(ValueError, match="FEATURE_DIM is 64, but the voxels have 32 channels"):
        from_official("lion", wrong)
    section = config["MODEL"]["BACKBONE_3D"]
    with pytest.raises(ValueError, match="FEATURE_DIM is 64, but the voxels have 32 channels"):
        from_official("lion", {"BACKBONE_3D": section, "input_channels": 32, "grid_size_xyz": [8, 8, 32]})
    with pytest.raises(ValueError, match="has no 'input_channels'"):
        from_official("lion", {"BACKBONE_3D": section, "grid_size_xyz": [8, 8, 32]})
    for change, message in (
        ({"NAME": "LION3D"}, "'LION3D' is not in this library"),
        ({"LAYER_DIM": [64, 64, 64, 32]}, "must be one width"),
        ({"DEPTHS": [2, 2, 2, 1]}, "do not fit LAYER_DOWN_SCALES"),
    ):
        with pytest.raises(ValueError, match=message):
            backbone(section | change)
    with pytest.raises(ValueError, match="needs one of MODEL, BACKBONE_3D"):
        from_official("lion", {"NAME": "x"})


def test_operators_refuse_settings_that_are_not_here() -> None:
    cfg = {"mode": "chunk", "n_head": 2, "expand_k": 1, "expand_v": 2, "hidden_rate": 4, "used_MLP": True}
    found = operator({"NAME": "RetNet", "CFG": cfg}, 8)
    assert found["mixer"]["within"] == "symmetric"
    assert found["block"] == {"feed_forward": {"name": "MLP", "ffn_channels": 32}}
    with pytest.raises(ValueError, match="used_MLP must be True"):
        operator({"NAME": "RetNet", "CFG": cfg | {"used_MLP": False}}, 8)
    with pytest.raises(ValueError, match="not known here: rotary"):
        operator({"NAME": "RetNet", "CFG": cfg | {"rotary": True}}, 8)
    with pytest.raises(ValueError, match="did you mean 'RetNet'"):
        operator({"NAME": "Retnet", "CFG": cfg}, 8)
    with pytest.raises(ValueError, match="use_gate must be False"):
        operator({"NAME": "TTT", "CFG": {"n_head": 2, "use_gate": True}}, 8)


def test_parameters_of_a_module_must_fit(shared: Path) -> None:
    case = Case.read(shared / "golden" / "lion" / "operator_xlstm.json")
    parameters = case.tensors("param")
    assert not from_official("lion", case.config, parameters).training
    with pytest.raises(ValueError, match=r"(?s)does not fit the configuration.*out_proj\.bias is missing"):
        from_official("lion", case.config, {k: v for k, v in parameters.items() if not k.endswith("proj_down.bias")})


CONFIGS = {  # of configs/lion: the published configuration with the same settings
    "waymo_mamba": "lion_mamba_waymo_8x_1f_1x_one_stride_64dim",
    "waymo_mamba_large": "lion_mamba_waymo_8x_1f_1x_one_stride_128dim",
    "waymo_retnet": "lion_retnet_waymo_8x_1f_1x_one_stride_64dim",
    "waymo_rwkv": "lion_rwkv_waymo_8x_1f_1x_one_stride_64dim",
    "nuscenes_mamba": "lion_mamba_nusc_8x_1f_1x_one_stride_128dim",
    "nuscenes_mamba_48_epochs": "lion_mamba_nusc_8x_1f_1x_one_stride_128dim_ep48",
    "nuscenes_retnet": "lion_retnet_nusc_8x_1f_1x_one_stride_128dim",
    "nuscenes_rwkv": "lion_rwkv_nusc_8x_1f_1x_one_stride_128dim",
    "argoverse2_mamba": "lion_mamba_1f_1x_argo_128dim_sparse_v2",
    "argoverse2_retnet": "lion_retnet_1f_1x_argo_128dim_sparse_v2",
    "argoverse2_rwkv": "lion_rwkv_1f_1x_argo_128dim_sparse_v2",
    "once_mamba": "centerpoint_with_lion_with_128dim_mamba",
    "once_retnet": "centerpoint_with_lion_with_128dim_retnet",
    "once_rwkv": "centerpoint_with_lion_with_128dim_rwkv",
    "kitti_mamba": "second_with_lion_mamba_64dim",
    "kitti_retnet": "second_with_lion_retnet_64dim",
    "kitti_rwkv": "second_with_lion_rwkv_64dim",
    "kitti_xlstm": "second_with_lion_xLSTM_64dim",
    "kitti_ttt": "second_with_lion_TTT_64dim",
}
AUGMENTATIONS = {
    "gt_sampling": "GroundTruthSampling",
    "random_world_flip": "RandomFlip",
    "random_world_rotation": "RandomRotation",
    "random_world_scaling": "RandomScaling",
    "random_world_translation": "RandomTranslation",
}
NOT_IN_FILES = ("floor_keys", "x_major")  # without influence where grids divide


def complete(registry: Registry, node: dict[str, Any], classes: list[str], channels: int = 0) -> dict[str, Any]:
    """A component with the defaults of its class filled in."""
    entry = registry._entries[node["name"]]
    defaults = {n: p.default for n, p in inspect.signature(entry).parameters.items() if p.default is not p.empty}
    full = {k: plain(v) for k, v in (defaults | node).items() if k not in NOT_IN_FILES}
    if "mixer" in full:
        full["blocks"] = operator_settings(full["mixer"], full.pop("block") or {}, channels)
        full["mixer"] = complete(MIXERS, full["mixer"], classes)
    if full["name"] == "AnchorHead":
        full["anchors"] = [{"align_center": False, **anchor} for anchor in full["anchors"]]
        full["code_weights"] = full["code_weights"] or [1] * 7
    if full["name"] == "CenterHead":
        full |= {"tasks": full["tasks"] or [classes], "code_weights": full["code_weights"] or [1] * 8}
    if isinstance(full.get("nms"), dict) and "iou_threshold" in full["nms"]:
        full["nms"] = plain(asdict(NMSConfig(**full["nms"])))
    return full


def operator_settings(mixer: dict[str, Any], block: dict[str, Any], channels: int) -> list[dict[str, Any]]:
    """What the blocks around an operator are set to, what the published layers have filled in."""
    found = []
    for published in operator_blocks(mixer, channels, first=True):
        settings = {"drop_path": 0.0, **published, **block}
        settings["feed_forward"] = {**published.get("feed_forward", {}), **(settings.get("feed_forward") or {})}
        found.append({key: value for key, value in settings.items() if key != "mixer"})
    return found


def plain(value: Any) -> Any:
    """Lists for tuples, at any depth."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def test_configurations_have_the_published_values(root: Path, manifest: dict[str, Any]) -> None:
    assert {p.stem for p in (root / "configs" / "lion").glob("*.yaml")} == set(CONFIGS)
    assert {f"{name}.yaml" for name in CONFIGS.values()} == set(manifest)
    for file, name in CONFIGS.items():
        ours = config.load(root / "configs" / "lion" / f"{file}.yaml")
        theirs = manifest[f"{name}.yaml"]["config"]
        data, model, published_model = ours["data"], ours["model"].plain(), theirs["MODEL"]
        assert list(data["classes"]) == theirs["CLASS_NAMES"], file
        assert data["point_cloud_range"] == theirs["POINT_CLOUD_RANGE"], file
        assert model["voxel_size"] == theirs["VOXEL_SIZE"], file
        parts = [(ENCODERS, "encoder", openpcdet.encoder(published_model["VFE"], None, None))]
        parts.append((BACKBONES, "backbone", backbone(published_model["BACKBONE_3D"])))
        if not file.startswith("argoverse2"):
            parts.append(
                (BEV_BACKBONES, "bev_backbone", openpcdet_backbones.bev_backbone(published_model["BACKBONE_2D"]))
            )
        post = published_model["POST_PROCESSING"]
        head = openpcdet_heads.head(published_model["DENSE_HEAD"], post, theirs["CLASS_NAMES"])
        parts.append((HEADS, "head", head))
        channels = published_model["BACKBONE_3D"]["FEATURE_DIM"]
        for registry, part, node in parts:
            mine, published_values = (
                complete(registry, n, theirs["CLASS_NAMES"], channels) for n in (model[part], node)
            )
            assert mine == published_values, f"{file}: {part}"
        check_training(construct(TrainConfig, ours["train"]), theirs, file)


@pytest.mark.parametrize("file", CONFIGS)
def test_configurations_build_a_detector(root: Path, file: str) -> None:
    with torch.device("meta"):
        detector = build_detector(config.load(root / "configs" / "lion" / f"{file}.yaml"))
    assert detector.backbone.out_grid[0] == (1 if "argoverse2" in file else 2)
    assert detector.stride == (2 if "nuscenes" in file else 1)


def check_training(train: TrainConfig, theirs: dict[str, Any], file: str) -> None:
    settings = theirs["OPTIMIZATION"]
    ours = (train.epochs, train.batch_size, train.learning_rate, train.weight_decay, train.pct_start)
    keys = ("NUM_EPOCHS", "BATCH_SIZE_PER_GPU", "LR", "WEIGHT_DECAY", "PCT_START")
    assert ours == tuple(settings[k] for k in keys), file
    assert list(train.momentum) == settings["MOMS"], file
    assert (train.div_factor, train.grad_norm_clip) == (settings["DIV_FACTOR"], settings["GRAD_NORM_CLIP"]), file
    hook = (theirs["HOOK"] or {}).get("DisableAugmentationHook")
    if hook and not file.startswith("argoverse2"):  # whose data configuration has no augmentations yet
        assert train.fade_epochs == hook["NUM_LAST_EPOCHS"], file
        assert list(train.fade_augmentations) == [AUGMENTATIONS[n] for n in hook["DISABLE_AUG_LIST"]], file
