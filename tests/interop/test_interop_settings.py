"""Published configurations: every setting counts, is known to change nothing, or is refused by its path."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given as generate
from hypothesis import strategies as st

from pcdet_ext.conformance.golden import Case
from pcdet_ext.interop import SYSTEMS, from_official, openpcdet_backbones, openpcdet_heads
from pcdet_ext.interop.settings import Settings, every_setting_counts, given, skip, skip_rest
from pcdet_ext.interop.without_effect import ONLY, WITHOUT_EFFECT
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.heads import HEADS

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
CASES = {
    "dsvt": "dsvt/pipeline_transfusion_b2",
    "flatformer": "flatformer/backbone_relu_normpos_padpe",
    "hotformerloc": "octree/hotformerloc_cartesian",
    "lion": "lion/operator_mamba_odd_length",
    "octformer": "octree/octformer_seg",
    "octree": "octree/octformer_seg",
    "openpcdet2": "openpcdet2/e2e_pillarnet_kitti",
    "scatterformer": "scatterformer/bev_ded",
    "trajectoryformer": "tracking/trajectoryformer_motion_eval_b1",
    "unilion": "unilion/vfe_b2",
}


def config_of(system: str) -> dict:
    return json.loads((GOLDEN / f"{CASES[system]}.json").read_text())["config"]


def test_what_is_read_is_remembered_at_every_depth() -> None:
    settings = Settings({"a": {"b": 1, "c": {"d": 2}}, "e": [{"f": 3, "g": 4}], "h": 5})
    assert settings["a"]["b"] == 1
    assert settings["e"][0]["f"] == 3
    assert "h" in settings  # looking is not reading
    assert [path for path, _, _ in settings.unread()] == ["a.c.d", "e.0.g", "h"]


@generate(
    st.recursive(
        st.integers(), lambda inner: st.dictionaries(st.text("abc", min_size=1), inner) | st.lists(inner), max_leaves=20
    ).filter(lambda tree: isinstance(tree, dict))
)
def test_a_configuration_that_is_read_whole_has_nothing_unread(tree: dict) -> None:
    def read(value: object) -> object:
        if isinstance(value, Settings):
            return {key: read(inner) for key, inner in value.items()}
        return [read(inner) for inner in value] if isinstance(value, list) else value

    settings = Settings(tree)
    assert read(settings) == tree
    assert not list(settings.unread())


def test_defaults_do_not_hide_what_is_unread() -> None:
    settings = Settings({"section": {"known": 1, "other": 2}})
    section = given(settings["section"], known=7, default=8)
    assert (section["known"], section["default"]) == (1, 8)
    assert [path for path, _, _ in settings.unread()] == ["section.other"]
    skip_rest(settings["section"])
    assert not list(settings.unread())
    assert given({"a": 1}, a=2, b=3) == {"a": 1, "b": 3}


def test_unknown_settings_are_named_with_the_nearest_that_was_looked_for() -> None:
    with (
        pytest.raises(ValueError, match=r"^head\.IOU_RECTIFER: the setting is not known here; did you mean 'IOU_RECT"),
        every_setting_counts({"head": {"IOU_RECTIFER": 0.5}}) as settings,
    ):
        assert settings["head"].get("IOU_RECTIFIER") is None
    with (
        pytest.raises(ValueError, match="and 4 more"),
        every_setting_counts({f"k{i}": i for i in range(12)}),
    ):
        pass


def test_settings_without_effect_may_stay_and_others_must_have_their_value() -> None:
    with every_setting_counts({"OPTIMIZATION": {"LR": 1.0}, "DENSE_HEAD": {"ACTIVATION": "relu"}}):
        pass
    with (
        pytest.raises(ValueError, match=r"DENSE_HEAD.ACTIVATION: 'gelu' is not known here; known: 'relu'"),
        every_setting_counts({"DENSE_HEAD": {"ACTIVATION": "gelu"}}),
    ):
        pass
    assert not set(WITHOUT_EFFECT) & set(ONLY)


@pytest.mark.parametrize("system", CASES)
def test_every_door_refuses_a_key_that_it_does_not_know(system: str) -> None:
    assert set(CASES) == set(SYSTEMS) - {"lion2", "openpcdet"}  # doors of lion and openpcdet2
    config = config_of(system)
    from_official(system, config)
    with pytest.raises(ValueError, match=r"not_a_setting: the setting is not known here|not known here: not_a_setting"):
        from_official(system, config | {"not_a_setting": 1})
    for key, section in config.items():
        if isinstance(section, dict) and section:
            changed = copy.deepcopy(config)
            changed[key]["not_a_setting"] = 1
            with pytest.raises(ValueError, match=f"{key}.*not_a_setting"):
                from_official(system, changed)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("LOSS_CONFIG.LOSS_CLS.alpha", 0.5, r"LOSS_CLS.alpha: 0.5 is not known here; known: 0.25"),
        ("TARGET_ASSIGNER_CONFIG.HUNGARIAN_ASSIGNER.cls_cost.gamma", 1.0, r"cls_cost.gamma: 1.0 is not known here"),
        ("SEPARATE_HEAD_CFG.HEAD_ORDER", ["dim", "center", "height", "rot"], "HEAD_ORDER"),
        ("SEPARATE_HEAD_CFG.HEAD_DICT.dim.out_channels", 4, "HEAD_DICT.dim: 4 channels"),
        ("CLASS_AGNOSTIC", True, "CLASS_AGNOSTIC: True is not known here; known: False"),
    ],
)
def test_settings_of_a_head_that_would_mean_another_are_refused(path: str, value: object, message: str) -> None:
    config = config_of("dsvt")
    *sections, last = path.split(".")
    node = config["DENSE_HEAD"]
    for name in sections:
        node = node[name]
    node[last] = value
    with pytest.raises(ValueError, match=message):
        from_official("dsvt", config)


def test_second_stages_are_refused(shared: Path) -> None:
    case = Case.read(shared / "golden" / "openpcdet" / "e2e_second_kitti.json")
    config = copy.deepcopy(case.config)
    config["model_cfg"]["ROI_HEAD"] = {"NAME": "SECONDHead"}
    with pytest.raises(ValueError, match="ROI_HEAD: 'SECONDHead' is not in this library"):
        from_official("openpcdet", config)
    del config["model_cfg"]["VFE"], config["model_cfg"]["ROI_HEAD"]
    with pytest.raises(ValueError, match="a detector needs the section VFE"):
        from_official("openpcdet", config)


def test_what_is_switched_off_may_stay_but_not_what_is_unknown() -> None:
    with every_setting_counts({"section": {"on": False, "of_it": 1}, "plain": 2}) as settings:
        assert not settings["section"]["on"]
        skip(settings["section"], "of_it", "not there")
        skip({"plain": 2}, "plain")  # a plain mapping has nothing to remember
        assert settings["plain"] == 2
    with (
        pytest.raises(ValueError, match=r"section\.other"),
        every_setting_counts({"section": {"other": 1}}) as settings,
    ):
        skip(settings["section"], "of_it")


def anchor_config() -> dict:
    config = Case.read(GOLDEN / "openpcdet" / "anchor_head_empty_sample.json").config
    return copy.deepcopy({key: config[key] for key in ("model_cfg", "post_processing")})


@pytest.mark.parametrize(("switch", "bins"), [(None, 0), (False, 2), (True, 2)])
def test_a_head_of_anchors_without_directions_may_keep_their_settings(switch: bool | None, bins: int) -> None:
    """Published heads look whether the switch is there, and not what it says."""
    config = anchor_config()
    assert {"NUM_DIR_BINS", "DIR_OFFSET", "DIR_LIMIT_OFFSET"} <= set(config["model_cfg"])
    config["model_cfg"]["USE_DIRECTION_CLASSIFIER"] = switch
    if switch is None:
        del config["model_cfg"]["USE_DIRECTION_CLASSIFIER"]
    with every_setting_counts(config) as read:
        node = openpcdet_heads.anchor_head(read["model_cfg"], read["post_processing"])
        openpcdet_heads.stride(read["model_cfg"])
    assert node["direction_bins"] == bins


@pytest.mark.parametrize("raw", [False, True])
def test_raw_scores_of_a_head_of_anchors_are_a_setting(raw: bool) -> None:
    config = anchor_config()
    config["post_processing"]["OUTPUT_RAW_SCORE"] = raw
    with every_setting_counts(config) as read:
        node = openpcdet_heads.anchor_head(read["model_cfg"], read["post_processing"])
        openpcdet_heads.stride(read["model_cfg"])
    assert node["raw_scores"] is raw


@pytest.mark.parametrize("system", ["openpcdet", "dsvt"])
def test_a_rectifier_that_is_switched_off_may_stay(system: str) -> None:
    if system == "openpcdet":
        section = Case.read(GOLDEN / "openpcdet" / "center_head_iou_b2.json").config["model_cfg"]
    else:
        section = config_of("dsvt")["DENSE_HEAD"]
    post = section["POST_PROCESSING"]
    assert post["USE_IOU_TO_RECTIFY_SCORE"]
    assert "IOU_RECTIFIER" in post
    post["USE_IOU_TO_RECTIFY_SCORE"] = False
    with every_setting_counts({"DENSE_HEAD": section}) as read:
        node = openpcdet_heads.head(read["DENSE_HEAD"], {}, [f"class {i}" for i in range(10)])
        openpcdet_heads.stride(read["DENSE_HEAD"])
    assert node["iou_rectifier"] is None


@pytest.mark.parametrize("name", ["VoxelBackBone8x", "VoxelResBackBone8x"])
def test_the_last_padding_of_a_backbone_counts(name: str) -> None:
    with every_setting_counts({"BACKBONE_3D": {"NAME": name, "last_pad": 1}}) as read:
        node = openpcdet_backbones.backbone(read["BACKBONE_3D"], 8)
    depth = 41  # of published voxels, with the layer that is added to z
    for kernel, stride, padding in ((3, 2, 1), (3, 2, 1), (3, 2, 0), (3, 2, node["last_pad"])):
        depth = (depth + 2 * padding - kernel) // stride + 1
    assert BACKBONES.build(node, in_channels=4, grid=(40, 16, 16)).out_grid == (depth, 2, 2)


def test_how_a_numeric_case_was_made_changes_nothing() -> None:
    made = "cls_bias_shift hm_bias_shift hm_gain cls_gain cone_shift hm_class_shift bf16 gain dim_bias save_objs"
    made += " grad_params grad_ins save_features variant"  # as the published cases say
    with every_setting_counts(dict.fromkeys(made.split(), 1)):
        pass


@pytest.mark.parametrize("upsample", [1, 2, 4])
def test_strides_of_center_heads_are_those_of_the_enlarged_map(upsample: int) -> None:
    """A published cell is FEATURE_MAP_STRIDE voxels wide, however much the head has enlarged its map."""
    config = Case.read(GOLDEN / "openpcdet" / "center_head_iou_b2.json").config
    section = config["model_cfg"] | {"UPSAMPLE": upsample}
    section["TARGET_ASSIGNER_CONFIG"] = section["TARGET_ASSIGNER_CONFIG"] | {"FEATURE_MAP_STRIDE": 2}
    head = HEADS.build(
        openpcdet_heads.center_head(section),
        in_channels=config["input_channels"],
        classes=config["class_names"],
        point_cloud_range=config["point_cloud_range"],
        voxel_size=[0.5, 0.25, 6.0],
        stride=openpcdet_heads.stride(section),
    )
    assert head.cell == (1.0, 0.5)
    assert head(torch.zeros(1, config["input_channels"], 3, 4)).tasks[0].heatmap.shape[2:] == (
        3 * upsample,
        4 * upsample,
    )
