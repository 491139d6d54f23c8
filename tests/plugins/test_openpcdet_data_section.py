"""OpenPCDet's section DATA_CONFIG here: what decides the points counts, and everything else is refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pcdet_ext.config import ConfigError
from pcdet_ext.data.formats import DATASETS
from pcdet_ext.plugins.openpcdet.data_section import data_settings

WAYMO = {
    "DATASET": "WaymoDataset",
    "DATA_PATH": "../data/waymo",
    "PROCESSED_DATA_TAG": "waymo_processed_data_v0_5_0",
    "POINT_CLOUD_RANGE": [0, -8, -3, 16, 8, 1],
    "SAMPLED_INTERVAL": {"train": 5, "test": 1},
    "DISABLE_NLZ_FLAG_ON_POINTS": True,
    "POINT_FEATURE_ENCODING": {
        "encoding_type": "absolute_coordinates_encoding",
        "used_feature_list": ["x", "y", "z", "intensity", "elongation"],
        "src_feature_list": ["x", "y", "z", "intensity", "elongation"],
    },
    "DATA_PROCESSOR": [
        {"NAME": "mask_points_and_boxes_outside_range", "REMOVE_OUTSIDE_BOXES": True},
        {"NAME": "shuffle_points", "SHUFFLE_ENABLED": {"train": True, "test": False}},
        {
            "NAME": "transform_points_to_voxels",
            "VOXEL_SIZE": [1, 1, 4],
            "MAX_POINTS_PER_VOXEL": 5,
            "MAX_NUMBER_OF_VOXELS": {"train": 150, "test": 150},
        },
    ],
}
NUSCENES = WAYMO | {"DATASET": "NuScenesDataset", "MAX_SWEEPS": 10, "PRED_VELOCITY": True}
for key in ("SAMPLED_INTERVAL", "DISABLE_NLZ_FLAG_ON_POINTS"):
    del NUSCENES[key]
KITTI = {key: value for key, value in NUSCENES.items() if key not in ("MAX_SWEEPS", "PRED_VELOCITY")}
KITTI["DATASET"] = "KittiDataset"


def encoded(**changes: Any) -> dict[str, Any]:
    return {"POINT_FEATURE_ENCODING": WAYMO["POINT_FEATURE_ENCODING"] | changes}  # type: ignore[operator]


def processed(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"DATA_PROCESSOR": [*WAYMO["DATA_PROCESSOR"], *steps]}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "changes", "expected"),
    [
        (WAYMO, {}, {"tanh": ["intensity"], "no_label_zones": True, "max_sweeps": 1, "interval": 5}),
        (WAYMO, {"POINTS_TANH_DIM": [3, 4]}, {"tanh": ["intensity", "elongation"]}),
        (WAYMO, {"POINTS_TANH_DIM": []}, {"tanh": []}),
        (WAYMO, encoded(used_feature_list=["x", "y", "z", "elongation"]), {"tanh": []}),
        (WAYMO, {"DISABLE_NLZ_FLAG_ON_POINTS": False}, {"no_label_zones": False}),
        (WAYMO, {"SEQUENCE_CONFIG": {"ENABLED": True, "SAMPLE_OFFSET": [-3, 0]}}, {"max_sweeps": 4}),
        (WAYMO, {"SEQUENCE_CONFIG": {"ENABLED": False, "SAMPLE_OFFSET": [-3, 0]}}, {"max_sweeps": 1}),
        (WAYMO, {"TRAIN_WITH_SPEED": True}, {"velocity": True}),
        (NUSCENES, {"FILTER_MIN_POINTS_IN_GT": 1}, {"max_sweeps": 10, "velocity": True, "min_points": 1}),
        (KITTI, {"FOV_POINTS_ONLY": False}, {"fov_only": False}),
        (KITTI, processed({"NAME": "sample_points", "NUM_POINTS": {"train": 9, "test": 9}}),
         {"process": [{"name": "PointSampling", "number": 9}]}),
        (KITTI, processed({"NAME": "shuffle_points", "SHUFFLE_ENABLED": {"train": True, "test": True}}),
         {"process": [{"name": "PointShuffle"}]}),
        (KITTI, processed({"NAME": "mask_points_and_boxes_outside_range", "USE_CENTER_TO_FILTER": False}),
         {"min_box_corners": 1}),
    ],
)  # fmt: skip
def test_what_decides_the_points_is_taken_over(
    data: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = data_settings(data | changes, ["Car"])
    assert {key: found[key] for key in expected} == expected
    assert found["point_cloud_range"] == data["POINT_CLOUD_RANGE"]
    fields = {field.name for field in dataclasses.fields(DATASETS.get(found.pop("name")))}  # type: ignore[arg-type]
    assert set(found) <= fields


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (WAYMO, {"POINTS_TANH_DIMS": [3]}, "DATA_CONFIG.POINTS_TANH_DIMS: the setting is not known here; did you mean"),
        (KITTI, {"MAX_SWEEPS": 10}, "DATA_CONFIG.MAX_SWEEPS: the setting is not known here"),
        (KITTI, {"DATASET": "LyftDataset", "MAX_SWEEPS": 5}, "DATA_CONFIG.MAX_SWEEPS: the setting is not known here"),
        (WAYMO, {"POINTS_TANH_DIM": [5]}, "DATA_CONFIG.POINTS_TANH_DIM: must be columns from 3 to 4"),
        (WAYMO, {"USE_PREDBOX": True}, "DATA_CONFIG.USE_PREDBOX: has no counterpart"),
        (WAYMO, {"SEQUENCE_CONFIG": {"ENABLED": True, "SAMPLE_OFFSET": [-3, -1]}}, "SAMPLE_OFFSET: frames up to"),
        (WAYMO, {"SEQUENCE_CONFIG": {"ENABLED": True, "SAMPLE_OFFSET": [-1, 0], "ONEHOT_TIMESTAMP": True}}, "ONEHOT"),
        (NUSCENES, {"CAMERA_CONFIG": {"USE_CAMERA": True, "IMAGE": {"FINAL_DIM": [256, 704]}}}, "USE_CAMERA: "),
        (KITTI, {"GET_ITEM_LIST": ["points", "images"]}, "DATA_CONFIG.GET_ITEM_LIST: .* points alone"),
        (KITTI, encoded(encoding_type="lidar_encoding"), "encoding_type: lidar_encoding has no counterpart"),
        (KITTI, encoded(used_feature_list=["x", "y", "z", "ring"]), "used_feature_list: points have no 'ring'"),
        (KITTI, processed({"NAME": "downsample_depth_map"}), r"DATA_PROCESSOR\.3: downsample_depth_map has no"),
        (KITTI, processed({"NAME": "shuffle_points"}), "DATA_CONFIG: SHUFFLE_ENABLED is missing"),
        (KITTI, processed({"NAME": "sample_points", "NUM_POINTS": {"train": 9, "test": 8}}), "must be the same in"),
    ],
)
def test_other_settings_of_data_are_refused_by_name(
    data: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        data_settings(data | changes, ["Car"])
