"""OpenPCDet's and LION's settings of heads on occupied cells in the words of this library."""

from __future__ import annotations

from typing import Any

from pcdet_ext.interop.openpcdet_settings import NMS_KINDS, Config, check_branches, nms_fields
from pcdet_ext.interop.settings import skip
from pcdet_ext.models.heads import branches

CONV_TYPES = {"subm": False, "spconv": True}  # HEAD_CONV_TYPE, and whether its convolutions make new sites
AROUND = {"nearst": "nearest_site", "gt_center": "center"}


def sparse_center_head(config: Config) -> dict[str, Any]:
    """The configuration of a `SparseCenterHead`. Raises ValueError for settings that this library does not have."""
    post = config["POST_PROCESSING"]
    kind = config.get("HEAD_CONV_TYPE", "spconv")
    if kind not in CONV_TYPES:
        raise ValueError(f"HEAD_CONV_TYPE {kind!r} is not known here; known: {', '.join(CONV_TYPES)}")
    if post["NMS_CONFIG"]["NMS_TYPE"] not in NMS_KINDS:
        known = ", ".join(map(str, NMS_KINDS))
        raise ValueError(
            f"NMS_TYPE {post['NMS_CONFIG']['NMS_TYPE']!r} does not exist for a SparseCenterHead; known: {known}"
        )
    rectify = post.get("USE_IOU_TO_RECTIFY_SCORE", False)
    if not rectify:
        skip(post, "IOU_RECTIFIER")
    return _common(config) | {
        "name": "SparseCenterHead",
        "conv_bias": config.get("USE_BIAS_BEFORE_NORM", False),
        "norm_eps": config.get("BN_EPS", 1e-5),
        "norm_momentum": config.get("BN_MOM", 0.1),
        "dilate": CONV_TYPES[kind],
        "swapped_limits": True,
        "iou_rectifier": post["IOU_RECTIFIER"] if rectify else None,
    }


def voxelnext_head(config: Config) -> dict[str, Any]:
    """The configuration of a `VoxelNeXtHead`. Raises ValueError for settings that this library does not have."""
    skip(config, "BN_EPS", "BN_MOM")  # the published head does not read them
    learns_iou = config.get("IOU_BRANCH", False)
    if learns_iou != ("iou" in config["SEPARATE_HEAD_CFG"]["HEAD_DICT"]):
        raise ValueError("IOU_BRANCH and the branch 'iou' in HEAD_DICT go together")
    if not learns_iou:
        skip(config, "RECTIFIER")
        skip(config["LOSS_CONFIG"]["LOSS_WEIGHTS"], "iou_weight")
    kinds = config.get("GAUSSIAN_TYPE", ["nearst", "gt_center"])
    node = _common(config)
    return node | {
        "name": "VoxelNeXtHead",
        "conv_bias": config.get("USE_BIAS_BEFORE_NORM", False),
        "kernel_size": config.get("KERNEL_SIZE_HEAD", 3),
        "gaussian_ratio": config.get("GAUSSIAN_RATIO", 1.0),
        "gaussian_around": [ours for theirs, ours in AROUND.items() if theirs in kinds],
        "double_flip": config.get("DOUBLE_FLIP", False),
        "box_iou_weight": config["LOSS_CONFIG"]["LOSS_WEIGHTS"].get("iou_weight") if learns_iou else None,
        "iou_rectifier": config["RECTIFIER"] if learns_iou else None,
        "nms": node["nms"] | {"per_class": learns_iou},
    }


def _common(config: Config) -> dict[str, Any]:
    """What both heads have."""
    separate, assigner = config["SEPARATE_HEAD_CFG"], config["TARGET_ASSIGNER_CONFIG"]
    weights, post = config["LOSS_CONFIG"]["LOSS_WEIGHTS"], config["POST_PROCESSING"]
    check_branches(separate, branches.CHANNELS, "center_z")
    widths = {name: config[name] for name in ("INPUT_FEATURES", "SHARED_CONV_CHANNEL") if name in config}
    if len(set(widths.values())) > 1:
        raise ValueError(f"a head on occupied cells has one width, got {widths}")
    return {
        "tasks": config["CLASS_NAMES_EACH_HEAD"],
        "branches": {name: branch["num_conv"] for name, branch in separate["HEAD_DICT"].items()},
        "heatmap_convs": config["NUM_HM_CONV"],
        "gaussian_overlap": assigner["GAUSSIAN_OVERLAP"],
        "min_radius": assigner["MIN_RADIUS"],
        "max_objects": assigner["NUM_MAX_OBJS"],
        "heatmaps_by_frame": True,
        "class_weight": weights["cls_weight"],
        "box_weight": weights["loc_weight"],
        "code_weights": weights["code_weights"],
        "score_threshold": post["SCORE_THRESH"],
        "max_candidates": post["MAX_OBJ_PER_SAMPLE"],
        "center_range": post["POST_CENTER_LIMIT_RANGE"],
        "nms": nms_fields(post["NMS_CONFIG"]),
    }
