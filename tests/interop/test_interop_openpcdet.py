"""Official OpenPCDet configurations and checkpoints in this library."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pcdet_ext.conformance.cases.openpcdet_heads  # noqa: F401  (registers the runners)
from pcdet_ext.conformance.golden import Case, run_case
from pcdet_ext.interop import dsvt, from_official, openpcdet, openpcdet_heads
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.models.heads import HEADS

COVERED = (
    "nuscenes_models/cbgs_second_multihead.yaml",
    "nuscenes_models/cbgs_pp_multihead.yaml",
    "kitti_models/pillarnet.yaml",
    "waymo_models/pillarnet.yaml",
    "nuscenes_models/cbgs_pillar0075_res2d_centerpoint.yaml",
    "kitti_models/pointpillar.yaml",
    "kitti_models/second.yaml",
    "waymo_models/second.yaml",
    "waymo_models/pointpillar_1x.yaml",
    "waymo_models/centerpoint.yaml",
    "waymo_models/centerpoint_without_resnet.yaml",
    "waymo_models/centerpoint_pillar_1x.yaml",
    "waymo_models/centerpoint_dyn_pillar_1x.yaml",
    "nuscenes_models/cbgs_voxel01_res3d_centerpoint.yaml",
    "nuscenes_models/cbgs_voxel0075_res3d_centerpoint.yaml",
    "nuscenes_models/cbgs_dyn_pp_centerpoint.yaml",
    "nuscenes_models/transfusion_lidar.yaml",
    "once_models/centerpoint.yaml",
)


@pytest.fixture(scope="module")
def manifest(shared: Path) -> dict:
    return json.loads((shared / "golden" / "openpcdet" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def second(shared: Path) -> Case:
    return Case.read(shared / "golden" / "openpcdet" / "e2e_second_kitti.json")


@pytest.mark.parametrize("case", ["e2e_pointpillar_kitti", "e2e_second_kitti", "e2e_centerpoint_waymo"])
def test_reproduces_published_detections(shared, case):
    report = run_case(shared / "golden" / "openpcdet" / f"{case}.json")
    assert report.status == "pass", report.line()


def test_every_published_model_is_accounted_for(manifest):
    assert set(manifest) == set(COVERED)


@pytest.mark.parametrize("name", COVERED)
def test_every_name_and_shape_of_a_published_model_has_its_place(manifest, name):
    entry = manifest[name]
    state = {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(entry["params"])}
    assert len(state) == entry["n_state_entries"]
    detector = from_official("openpcdet", entry["config"], state)
    found = sorted(float(t.flatten()[0]) for t in detector.state_dict().values())
    assert found == [float(i) for i, (key, _) in enumerate(entry["params"]) if key != "global_step"]


@pytest.fixture(scope="module")
def second_manifest(shared: Path) -> dict:
    return json.loads((shared / "golden" / "openpcdet2" / "manifest.json").read_text())


def test_every_name_and_shape_of_the_other_published_models_has_its_place_or_they_say_why(second_manifest):
    covered = 0
    for name, entry in second_manifest.items():
        model = entry["config"]["model"]
        if "ROI_HEAD" in model:
            with pytest.raises(ValueError, match=r"ROI_HEAD: .* is of two stages"):
                from_official("openpcdet2", entry["config"])
            continue
        with torch.device("meta"):
            detector = from_official("openpcdet2", entry["config"])
            state = {key: torch.empty(shape) for key, shape in entry["params"]}
        is_dsvt = model.get("BACKBONE_3D", {}).get("NAME") == "DSVT"
        rename = dsvt.detector_name if is_dsvt else None
        placed = openpcdet.official_state(detector, state, rename)
        assert {key: value.shape for key, value in placed.items()} == {
            key: value.shape for key, value in detector.state_dict().items()
        }, name
        assert len(placed) == entry["n_state_entries"] - 1, name  # all but global_step
        assert sum(p.numel() for p in detector.parameters()) == entry["total_params"], name
        covered += 1
    assert covered == 16


def test_checkpoint_with_spconv_1_weights_loads(second):
    state = second.tensors("param")
    old = {k: t.movedim(0, -1) if t.ndim == 5 else t for k, t in state.items()}
    detector = from_official("openpcdet", second.config, {"model_state": old, "epoch": 80})
    expected = from_official("openpcdet", second.config, state)
    for key, value in expected.state_dict().items():
        assert value.equal(detector.state_dict()[key]), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("dense_head.conv_box.bias"), "head.conv_box.bias is missing"),
        (lambda s: s.update({"roi_head.weight": torch.zeros(1)}), "roi_head.weight has no place"),
        (lambda s: s.update({"dense_head.conv_box.bias": torch.zeros(3)}), r"conv_box.bias is \(3,\), not \(42,\)"),
        (lambda s: s.clear(), "and [0-9]+ more"),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(second, change, message):
    state = second.tensors("param")
    change(state)
    with pytest.raises(ValueError, match=message):
        from_official("openpcdet", second.config, state)


def _set(path: str, value: object):
    def change(config: dict) -> None:
        *parents, last = path.split(".")
        for key in parents:
            config = config[int(key) if key.isdigit() else key]
        config[last] = value

    return change


HEAD = "model_cfg.DENSE_HEAD"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("voxel_size"), "needs 'voxel_size'"),
        (lambda c: c.pop("voxelize"), "MAX_POINTS_PER_VOXEL and MAX_NUMBER_OF_VOXELS"),
        (_set("model_cfg.VFE.NAME", "ImageVFE"), "'ImageVFE' is not in this library"),
        (_set("model_cfg.BACKBONE_3D.NAME", "VoxelBackBone9x"), "did you mean 'VoxelBackBone8x'"),
        (_set(f"{HEAD}.NAME", "PointHead"), "'PointHead' is not in this library"),
        (_set(f"{HEAD}.TARGET_ASSIGNER_CONFIG.BOX_CODER", "PointResidualCoder"), "ResidualCoder"),
        (_set(f"{HEAD}.LOSS_CONFIG.REG_LOSS_TYPE", "IoULoss"), "'IoULoss' is not known"),
        (_set(f"{HEAD}.ANCHOR_GENERATOR_CONFIG.0.feature_map_stride", 4), "feature_map_stride"),
        (_set(f"{HEAD}.ANCHOR_GENERATOR_CONFIG.0.anchor_bottom_heights", [0, 1]), "more than one bottom height"),
        (_set("model_cfg.BACKBONE_2D.LAYER_STRIDES", [2, 2]), "stride of 8, but its map has 16"),
        (_set("model_cfg.POST_PROCESSING.NMS_CONFIG.NMS_TYPE", "soft_nms"), "'soft_nms' is not known"),
    ],
)
def test_settings_without_counterpart_are_refused(second, change, message):
    config = copy.deepcopy(second.config)
    change(config)
    with pytest.raises(ValueError, match=message):
        from_official("openpcdet", config)


def test_unknown_system_is_named():
    with pytest.raises(ValueError, match="did you mean 'openpcdet'"):
        from_official("openpcdt", {})


def _multi_head() -> dict[str, Any]:
    """The section of a multi-head detector with one group that has a 2-D backbone of its own."""
    anchors = {"anchor_sizes": [[3.9, 1.6, 1.5]], "anchor_rotations": [0, 1.57], "anchor_bottom_heights": [-1.6]}
    limits = {"feature_map_stride": 2, "matched_threshold": 0.5, "unmatched_threshold": 0.35}
    own = {"LAYER_NUMS": [1], "LAYER_STRIDES": [1], "NUM_FILTERS": [8], "UPSAMPLE_STRIDES": [1]}
    return {
        "NAME": "AnchorHeadMulti",
        "USE_MULTIHEAD": True,
        "ANCHOR_GENERATOR_CONFIG": [{"class_name": name, **anchors, **limits} for name in ("Car", "Van")],
        "RPN_HEAD_CFGS": [
            {"HEAD_CLS_NAME": ["Car"]},
            {"HEAD_CLS_NAME": ["Van"], **own, "NUM_UPSAMPLE_FILTERS": [8]},
        ],
        "TARGET_ASSIGNER_CONFIG": {"BOX_CODER": "ResidualCoder"},
        "LOSS_CONFIG": {"LOSS_WEIGHTS": {"cls_weight": 1.0, "loc_weight": 1.0, "code_weights": [1.0] * 7}},
    }


POST = {
    "SCORE_THRESH": 0.1,
    "OUTPUT_RAW_SCORE": True,
    "NMS_CONFIG": {"NMS_TYPE": "nms_gpu", "NMS_THRESH": 0.2, "NMS_PRE_MAXSIZE": 9, "NMS_POST_MAXSIZE": 9},
}


def test_groups_of_anchors_may_have_a_backbone_of_their_own() -> None:
    with every_setting_counts({"DENSE_HEAD": _multi_head(), "POST_PROCESSING": POST}) as read:
        node = openpcdet_heads.head(read["DENSE_HEAD"], read["POST_PROCESSING"], ["Car", "Van"])
        assert openpcdet_heads.stride(read["DENSE_HEAD"]) == 2
    assert node["group_backbones"][0] is None
    assert node["raw_scores"]
    head = HEADS.build(node, in_channels=8, classes=["Car", "Van"], point_cloud_range=[0, 0, -3, 8, 8, 1])
    published = {
        name.replace(".bev_backbone.", "."): value for name, value in head.state_dict(prefix="dense_head.").items()
    }
    assert "dense_head.rpn_heads.1.deblocks.0.0.weight" in published
    assert {openpcdet.our_name(name) for name in published} == set(head.state_dict(prefix="head."))


def test_settings_of_a_group_that_nobody_reads_are_named() -> None:
    section = _multi_head()
    section["RPN_HEAD_CFGS"][1]["LAYER_WIDTHS"] = [8]

    def read_all() -> None:
        with every_setting_counts({"DENSE_HEAD": section, "POST_PROCESSING": POST}) as read:
            openpcdet_heads.head(read["DENSE_HEAD"], read["POST_PROCESSING"], ["Car", "Van"])
            openpcdet_heads.stride(read["DENSE_HEAD"])

    with pytest.raises(ValueError, match=r"RPN_HEAD_CFGS\.1\.LAYER_WIDTHS: the setting is not known here"):
        read_all()
