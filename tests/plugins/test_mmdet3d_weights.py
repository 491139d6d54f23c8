"""What of an mmdetection3d configuration has no counterpart here is refused by its section.

That converted detectors find the same boxes: `test_mmdet3d_training`.
"""

from __future__ import annotations

import copy
from typing import Any

import mmdet3d_models as models
import pytest

from pcdet_ext.config import ConfigError
from pcdet_ext.models.detector import build_detector
from pcdet_ext.plugins.mmdet3d import weights

DATASET = {"type": "RepeatDataset", "dataset": {"type": "KittiDataset", "metainfo": {"classes": models.CLASSES}}}


def settings(name: str, **changes: Any) -> dict[str, Any]:
    """A configuration, with values of its model changed by their path, whose steps `__` parts."""
    model = copy.deepcopy(models.models()[name])
    for path, value in changes.items():
        *sections, last = path.split("__")
        place = model
        for section in sections:
            place = place[int(section) if isinstance(place, list) else section]
        place[int(last) if isinstance(place, list) else last] = value
    return {"model": model, "test_dataloader": {"dataset": DATASET}}


def test_settings_of_the_library_follow() -> None:
    found = weights.library_settings(settings("lion_mamba")).plain()
    assert found["data"]["name"] == "KittiDataset"
    assert found["data"]["point_features"] == ["x", "y", "z", "intensity"]
    assert found["model"]["backbone"]["mixer"]["name"] == "Mamba"
    anchors = found["model"]["head"]["anchors"]
    assert [(a["class_name"], a["bottom_height"]) for a in anchors] == list(
        zip(models.CLASSES, (-0.6, -0.6, -1.78), strict=True)
    )
    assert build_detector(weights.library_settings(settings("pointpillars"))).stride == 2


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pointpillars", {"voxel_encoder__type": "HardVFE"}, r"model\.voxel_encoder: type: 'HardVFE' has no counter"),
        ("pointpillars", {"voxel_encoder__mode": "avg"}, r"model\.voxel_encoder: mode: 'avg'"),
        (
            "pointpillars",
            {"voxel_encoder__feat_chanels": [3]},
            r"feat_chanels: the setting is not known here",
        ),
        ("pointpillars", {"backbone__type": "ResNet"}, r"model\.backbone and neck: type: 'ResNet'"),
        ("pointpillars", {"neck__norm_cfg": {"eps": 1.0}}, r"norm_cfg: eps and momentum"),
        ("pointpillars", {"bbox_head__type": "SSD3DHead"}, r"model\.bbox_head: type: 'SSD3DHead'"),
        ("pointpillars", {"bbox_head__loss_cls__gamma": 1.0}, r"model\.bbox_head: gamma: 1\.0"),
        (
            "pointpillars",
            {"bbox_head__anchor_generator__ranges__0": [0, -9, 0, 9, 9, 0]},
            r"ranges: .*must reach",
        ),
        ("pointpillars", {"bbox_head__use_direction_classifier": False}, r"use_direction_classifier"),
        ("pointpillars", {"train_cfg": {"assigner": []}}, r"assigner has 0 entries for 3 classes"),
        ("pointpillars", {"test_cfg__nms_treshold": 0.1}, r"test_cfg\.nms_treshold: the setting is not known here"),
        ("pointpillars", {"test_cfg": {}}, r"model\.bbox_head: has no 'max_num'"),
        ("voxelnet", {"middle_encoder__type": "SparseUNet"}, r"model\.middle_encoder: 'SparseUNet' has no counterpart"),
        ("voxelnet", {"middle_encoder__sparse_shape": [40, 160, 160]}, r"sparse_shape: .* must be \[41, 160, 160\]"),
        ("voxelnet", {"middle_encoder__order": ("norm", "act", "conv")}, r"middle_encoder: order"),
        ("voxelnet", {"middle_encoder__block_type": "bottleneck"}, r"block_type: 'bottleneck' is not known"),
        ("voxelnet", {"middle_encoder__norm_cfg": {"type": "BN1d"}}, r"norm_cfg: .*'eps': 0\.001"),
        ("voxelnet", {"middle_encoder__return_middle_feats": True}, r"return_middle_feats"),
        ("voxelnet", {"middle_encoder__base_channels": 32}, r"base_channels: 32 must be that of the first stage, 16"),
        (
            "voxelnet",
            {"middle_encoder__encoder_channels": ((16,), (32, 32))},
            r"encoder_channels: .* is not known here",
        ),
        (
            "voxelnet",
            {"middle_encoder__encoder_paddings": ((0,), (1, 1), (1, 1), (1, 1))},
            r"encoder_paddings: .*\(1, 1, 1\)\) are not known here",
        ),
        (
            "voxelnet",
            {"middle_encoder__encoder_paddings": ((1,), (), (1,), (1,))},
            r"encoder_paddings: .* are not known",
        ),
        ("voxelnet", {"middle_encoder__in_chanels": 4}, r"in_chanels: the setting is not known here"),
        (
            "centerpoint",
            {"pts_bbox_head__tasks__0__class_names": ["Car", "Cyclist", "Pedestrian"]},
            r"in the same order",
        ),
        ("centerpoint", {"pts_bbox_head__bbox_coder__voxel_size": [1, 1]}, r"pts_bbox_head\.bbox_coder\.voxel_size"),
        ("centerpoint", {"pts_bbox_head__norm_bbox": False}, r"model\.pts_bbox_head: norm_bbox"),
        ("ours", {"bbox_head__classes": ["Car"]}, r"model\.bbox_head\.classes: \['Car'\]"),
        ("ours", {"neck": {"type": "SECONDFPN"}}, r"model\.neck: behind PcdetExtBackbone"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_its_section(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weights.library_settings(settings(name, **changes))


def test_the_order_of_classes_must_be_known() -> None:
    with pytest.raises(ConfigError, match="has none of test_dataloader"):
        weights.library_settings({"model": models.pointpillars()})
    with pytest.raises(ConfigError, match="has no classes"):
        weights.library_settings({"model": models.pointpillars(), "test_dataloader": {"dataset": {"type": "X"}}})
    with pytest.raises(ConfigError, match="model: has no voxel_encoder"):
        weights.library_settings({})
