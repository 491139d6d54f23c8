"""LION's published configurations and parameters: every name and shape has its place."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pcdet_ext.interop import from_official
from pcdet_ext.interop.lion import backbone, operator
from pcdet_ext.models.backbones import LION
from pcdet_ext.models.detector import VoxelDetector

PREFIXES = {"encoder": "vfe", "backbone": "backbone_3d", "bev_backbone": "backbone_2d", "head": "dense_head"}


@pytest.fixture(scope="module")
def manifest(shared: Path) -> dict[str, Any]:
    """The published models: configuration, and names and shapes of the backbone's parameters."""
    return json.loads((shared / "golden" / "lion" / "manifest.json").read_text(encoding="utf-8"))


def published(name: str) -> str:
    """The published name of one of a detector's parameters."""
    prefix, _, rest = name.partition(".")
    return f"{PREFIXES[prefix]}.{rest}"


def test_every_published_parameter_has_its_place(manifest: dict[str, Any]) -> None:
    for name, model in manifest.items():
        config = model["config"] | {"NUM_POINT_FEATURES": 5}
        sparse = "SparseCenterHead" in json.dumps(config)
        with torch.device("meta"):
            parameters = {key: torch.empty(shape) for key, shape in model["params"]}
            module = from_official("lion", config, parameters if sparse else None)
        assert isinstance(module, LION if sparse else VoxelDetector), name
        backbone_3d = module if sparse else module.backbone
        own = {f"backbone_3d.{key}": list(value.shape) for key, value in backbone_3d.state_dict().items()}
        assert own == dict(model["params"]), name
        assert sum(p.numel() for p in backbone_3d.parameters()) == model["total_params_backbone_3d"], name
        if sparse:
            with pytest.raises(ValueError, match="DENSE_HEAD: 'SparseCenterHead' is not in this library"):
                from_official("lion", config)


def test_parameters_of_a_backbone_alone_make_the_backbone(manifest: dict[str, Any]) -> None:
    model = manifest["second_with_lion_retnet_64dim.yaml"]
    parameters = {key: torch.randn(shape) for key, shape in model["params"]}
    module = from_official("lion", model["config"], parameters)
    assert isinstance(module, LION)
    assert module.out_grid == (2, 400, 352)
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, parameters[f"backbone_3d.{key}"].to(value.dtype))


def test_a_detector_takes_its_checkpoint_and_tells_what_does_not_fit(manifest: dict[str, Any]) -> None:
    config = manifest["second_with_lion_retnet_64dim.yaml"]["config"]
    fresh = from_official("lion", config | {"NUM_POINT_FEATURES": 4})
    checkpoint = {published(name): torch.randn_like(value.float()) for name, value in fresh.state_dict().items()}
    loaded = from_official("lion", config, {"model_state": checkpoint | {"global_step": torch.tensor(1)}})
    assert loaded.num_point_features == 4
    name = "backbone.linear_2.decoder.1.blocks.0.ffn.fc1.weight"
    torch.testing.assert_close(loaded.state_dict()[name], checkpoint[name.replace("backbone", "backbone_3d")])
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
    section = config["MODEL"]["BACKBONE_3D"]
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
    assert operator({"NAME": "RetNet", "CFG": cfg})["within"] == "symmetric"
    with pytest.raises(ValueError, match="used_MLP must be True"):
        operator({"NAME": "RetNet", "CFG": cfg | {"used_MLP": False}})
    with pytest.raises(ValueError, match="not known here: rotary"):
        operator({"NAME": "RetNet", "CFG": cfg | {"rotary": True}})
    with pytest.raises(ValueError, match="did you mean 'RetNet'"):
        operator({"NAME": "Retnet", "CFG": cfg})
    with pytest.raises(ValueError, match="use_gate must be False"):
        operator({"NAME": "TTT", "CFG": {"n_head": 2, "use_gate": True}})


def test_parameters_of_a_module_must_fit() -> None:
    config = {"OPERATOR": {"NAME": "xLSTM", "CFG": {"d_model": 8, "drop_path": 0.2}}}
    parameters = from_official("lion", config).state_dict()
    assert not from_official("lion", config, parameters).training
    with pytest.raises(ValueError, match=r"(?s)does not fit the configuration.*proj_down\.bias"):
        from_official("lion", config, {k: v for k, v in parameters.items() if not k.endswith("proj_down.bias")})
