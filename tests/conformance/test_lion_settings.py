"""Settings of LION's cases that are refused by name, or left to the published defaults."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from pcdet_ext.conformance.cases.lion import run_merging, run_operator
from pcdet_ext.conformance.cases.mappings import lion_mapping
from pcdet_ext.conformance.golden import Case, Runner
from pcdet_ext.grouping.orders import WindowX, WindowY
from pcdet_ext.interop import lion, openpcdet_heads

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"


@pytest.mark.parametrize(
    ("case", "run"),
    [
        ("merging_down222", run_merging),
        ("operator_ttt", run_operator),
        ("mapping_small_frame", lion_mapping),
    ],
)
def test_settings_that_nobody_reads_are_named(case: str, run: Runner) -> None:
    golden = Case.read(GOLDEN / "lion" / f"{case}.json")
    golden.config["norm_kind"] = "rms"
    with pytest.raises(ValueError, match="norm_kind: the setting is not known here"):
        run(golden, False)


def test_expansions_of_retention_are_the_published_ones_where_nothing_is_said() -> None:
    golden = Case.read(GOLDEN / "lion" / "operator_retnet_4heads.json")
    settings = golden.config["OPERATOR"]["CFG"]
    for name, value in {"expand_k": 1, "expand_v": 2, "hidden_rate": 4}.items():
        assert settings.pop(name) == value
    torch.testing.assert_close(run_operator(golden, False)["out.x"], golden.tensor("out.x"), rtol=1e-4, atol=1e-5)


def test_nothing_is_generated_where_nothing_is_said() -> None:
    golden = Case.read(GOLDEN / "lion" / "merging_down222.json")
    for name in ("diffusion", "diff_scale"):
        del golden.config[name]
    assert torch.equal(run_merging(golden, False)["out.unq_inv"], golden.tensor("out.unq_inv"))


def test_heads_on_sites_make_new_sites_where_nothing_is_said() -> None:
    section = copy.deepcopy(Case.read(GOLDEN / "lion2" / "sparse_center_head.json").config["model_cfg"])
    assert not openpcdet_heads.head(section, {}, ())["dilate"]
    del section["HEAD_CONV_TYPE"]
    assert openpcdet_heads.head(section, {}, ())["dilate"]


def test_heads_on_sites_suppress_by_either_overlap() -> None:
    section = copy.deepcopy(Case.read(GOLDEN / "lion2" / "sparse_center_head.json").config["model_cfg"])
    suppression = section["POST_PROCESSING"]["NMS_CONFIG"]
    assert openpcdet_heads.head(section, {}, ())["nms"]["kind"] == "rotated"
    suppression["NMS_TYPE"] = "nms_normal_gpu"
    assert openpcdet_heads.head(section, {}, ())["nms"]["kind"] == "axis_aligned"
    suppression["NMS_TYPE"] = "class_specific_nms"
    with pytest.raises(ValueError, match="'class_specific_nms' does not exist for a SparseCenterHead; known: nms_gpu"):
        openpcdet_heads.head(section, {}, ())


@pytest.mark.parametrize("directions", [["x", "y"], ["y", "x"], ["y"]])
def test_the_layers_behind_the_stages_go_along_x_and_then_y(directions: list[str]) -> None:
    stages = {"LAYER_DIM": [8] * 4, "DEPTHS": [1] * 4, "LAYER_DOWN_SCALES": [[[2, 2, 2]]] * 4, "NUM_LAYERS": 4}
    windows = {"WINDOW_SHAPE": [[4, 4, 32], [4, 4, 16], [4, 4, 8], [4, 4, 4]], "GROUP_SIZE": [8] * 4}
    section = {
        "NAME": "LION3DBackboneOneStride_Sparse",
        "FEATURE_DIM": 8,
        **stages,
        **windows,
        "DIRECTION": directions,
        "DIFFUSION": False,
        "DIFF_SCALE": 0.2,
        "SHIFT": True,
        "OPERATOR": {"NAME": "Mamba", "CFG": {"d_state": 2}},
    }
    backbone = lion.from_official({"BACKBONE_3D": section, "input_channels": 8, "grid_size_xyz": [8, 8, 32]})
    kinds = {"x": WindowX, "y": WindowY}
    stage = backbone.stages[0].block.encoder[0].layer
    assert [type(order) for order in stage.orders] == [kinds[name] for name in directions]
    for layer in (backbone.out_layer, *backbone.bev_layers):
        assert [type(order) for order in layer.orders] == [WindowX, WindowY]
        assert len(layer.passes) == 2
