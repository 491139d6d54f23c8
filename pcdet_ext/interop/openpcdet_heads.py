"""OpenPCDet's settings of detection heads (`DENSE_HEAD`, `POST_PROCESSING`) in the words of this library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pcdet_ext.interop import openpcdet_sparse_heads as sparse_heads
from pcdet_ext.interop.openpcdet_backbones import bev_backbone
from pcdet_ext.interop.openpcdet_settings import L1, Config, check_branches, named, nms_fields
from pcdet_ext.interop.settings import given, skip
from pcdet_ext.models.heads import branches, transfusion_queries


def head(
    config: Config, post_processing: Config, class_names: Sequence[str], windows: bool | None = None
) -> dict[str, Any]:
    """The configuration of a head.

    Args:
        config: the section DENSE_HEAD.
        post_processing: the detector's POST_PROCESSING.
        class_names: in order.
        windows: of a TransFusionHead, see `transfusion_head`.

    Raises:
        ValueError: the head or a setting is not in this library.
    """
    name = config["NAME"]
    if name == "AnchorHeadSingle":
        return anchor_head(config, post_processing)
    if name == "AnchorHeadMulti":
        return anchor_head_multi(config, post_processing, class_names)
    if name == "TransFusionHead":
        return transfusion_head(config, class_names, windows)
    known: dict[str, Callable[[Config], dict[str, Any]]] = {
        "CenterHead": center_head,
        "SparseCenterHead": sparse_heads.sparse_center_head,
        "VoxelNeXtHead": sparse_heads.voxelnext_head,
    }
    if name in known:
        return known[name](config)
    others = ", ".join(["AnchorHeadSingle", "AnchorHeadMulti", "TransFusionHead", *known])
    raise ValueError(f"DENSE_HEAD: {name!r} is not in this library; known: {others}")


def stride(config: Config) -> int:
    """Voxels per cell of the map that a head is set to.

    FEATURE_MAP_STRIDE is that of the predictions, whose cells are smaller where the head enlarges its map (UPSAMPLE).
    Raises ValueError for anchors of several strides.
    """
    if "ANCHOR_GENERATOR_CONFIG" not in config:
        return config["TARGET_ASSIGNER_CONFIG"]["FEATURE_MAP_STRIDE"] * config.get("UPSAMPLE", 1)
    strides = {entry["feature_map_stride"] for entry in config["ANCHOR_GENERATOR_CONFIG"]}
    if len(strides) > 1:
        raise ValueError(f"anchors of different feature_map_stride {sorted(strides)} are not known here")
    return strides.pop()


def anchor_head(config: Config, post_processing: Config) -> dict[str, Any]:
    """The configuration of an `AnchorHead` for an AnchorHeadSingle.

    post_processing: the detector's own section, which holds score threshold and NMS of anchor heads.
    Raises ValueError for settings that this library does not have.
    """
    for entry in config["ANCHOR_GENERATOR_CONFIG"]:
        if len(entry["anchor_bottom_heights"]) != 1:
            raise ValueError(f"anchors of {entry['class_name']}: more than one bottom height is not known here")
    node = _anchor_settings(config, post_processing) | {
        "name": "AnchorHead",
        "raw_scores": bool(post_processing.get("OUTPUT_RAW_SCORE", False)),
        "multi_label": bool(post_processing["NMS_CONFIG"].get("MULTI_CLASSES_NMS")),
    }
    return node | _directions(config)


def anchor_head_multi(config: Config, post_processing: Config, class_names: Sequence[str]) -> dict[str, Any]:
    """The configuration of an `AnchorHeadMulti`. Arguments as in `anchor_head`, and the same errors.

    class_names: in the order that groups and anchors must have them in.
    """
    groups = [entry["HEAD_CLS_NAME"] for entry in config["RPN_HEAD_CFGS"]]
    anchors = [entry["class_name"] for entry in config["ANCHOR_GENERATOR_CONFIG"]]
    orders = {"RPN_HEAD_CFGS": [name for group in groups for name in group], "ANCHOR_GENERATOR_CONFIG": anchors}
    for key, order in orders.items():
        if list(order) != list(class_names):  # the published losses cut the classes by position
            raise ValueError(f"{key} must have the classes in their order, {list(class_names)}, got {list(order)}")
    separate, nms = config.get("SEPARATE_MULTIHEAD", False), post_processing["NMS_CONFIG"]
    if config.get("USE_MULTIHEAD") is not True or bool(nms.get("MULTI_CLASSES_NMS")) != separate:
        raise ValueError("a head of groups needs USE_MULTIHEAD, and MULTI_CLASSES_NMS just where SEPARATE_MULTIHEAD is")
    weights = config["LOSS_CONFIG"]["LOSS_WEIGHTS"]
    coder = config["TARGET_ASSIGNER_CONFIG"].get("BOX_CODER_CONFIG") or {}
    extra = coder.get("code_size", 7) - 7
    if extra not in (0, 2):
        raise ValueError(f"BOX_CODER_CONFIG: a code_size of {extra + 7} is not known here; known: 7, 9")
    node = _anchor_settings(config, post_processing) | {
        "name": "AnchorHeadMulti",
        "groups": groups,
        "shared_channels": config.get("SHARED_CONV_NUM_FILTER"),
        "separate": separate,
        "group_backbones": _own_backbones(config["RPN_HEAD_CFGS"]),
        "raw_scores": bool(post_processing.get("OUTPUT_RAW_SCORE", False)) and not separate,  # published ones, too
        "velocity": extra == 2,
        "sincos": coder.get("encode_angle_by_sincos", False),
        "positive_weight": weights.get("pos_cls_weight", 1.0),
        "negative_weight": weights.get("neg_cls_weight", 1.0),
    }
    if "SEPARATE_REG_CONFIG" in config:
        parts = config["SEPARATE_REG_CONFIG"]
        widths = [entry.split(":") for entry in parts["REG_LIST"]]
        node |= {
            "parts": {name: int(width) for name, width in widths},
            "middle_convs": parts["NUM_MIDDLE_CONV"],
            "middle_channels": parts["NUM_MIDDLE_FILTER"],
        }
    return node | _directions(config) | {"idle_directions": config.get("USE_DIRECTION_CLASSIFIER") is False}


def _own_backbones(groups: Sequence[Config]) -> list[dict[str, Any] | None] | None:
    """The 2-D backbones that groups of anchors have of their own (LAYER_NUMS and what goes with it)."""
    named = [given(entry, NAME="BaseBEVBackbone") if "LAYER_NUMS" in entry else None for entry in groups]
    found = [None if entry is None else bev_backbone(entry) for entry in named]
    return found if any(found) else None


def _anchor_settings(config: Config, post_processing: Config) -> dict[str, Any]:
    """What both heads of anchors have."""
    assigner, loss = config["TARGET_ASSIGNER_CONFIG"], config["LOSS_CONFIG"]
    if assigner["BOX_CODER"] != "ResidualCoder" or assigner.get("POS_FRACTION", -1) >= 0:
        raise ValueError("only the target assigner with ResidualCoder and without sampling (POS_FRACTION < 0) is known")
    weights = loss["LOSS_WEIGHTS"]
    return {
        "anchors": [_anchors(entry) for entry in config["ANCHOR_GENERATOR_CONFIG"]],
        "match_3d": assigner.get("MATCH_HEIGHT", False),
        "box_loss": named(loss.get("REG_LOSS_TYPE"), {None: "smooth_l1", "WeightedSmoothL1Loss": "smooth_l1"} | L1),
        "class_weight": weights["cls_weight"],
        "box_weight": weights["loc_weight"],
        "code_weights": weights["code_weights"],
        "score_threshold": post_processing["SCORE_THRESH"],
        "nms": nms_fields(post_processing["NMS_CONFIG"]),
    }


def _directions(config: Config) -> dict[str, Any]:
    """Settings of the direction classifier, which published heads have wherever its switch stands, False or True."""
    if config.get("USE_DIRECTION_CLASSIFIER") is None:
        skip(config, "USE_DIRECTION_CLASSIFIER", "NUM_DIR_BINS", "DIR_OFFSET", "DIR_LIMIT_OFFSET")
        skip(config["LOSS_CONFIG"]["LOSS_WEIGHTS"], "dir_weight")
        return {"direction_bins": 0}
    return {
        "direction_bins": config["NUM_DIR_BINS"],
        "direction_offset": config["DIR_OFFSET"],
        "direction_limit_offset": config["DIR_LIMIT_OFFSET"],
        "direction_weight": config["LOSS_CONFIG"]["LOSS_WEIGHTS"]["dir_weight"],
    }


def center_head(config: Config) -> dict[str, Any]:
    """The configuration of a `CenterHead`, also for the variants of DSVT and LION.

    Raises ValueError for settings that this library does not have.
    """
    separate, assigner = config["SEPARATE_HEAD_CFG"], config["TARGET_ASSIGNER_CONFIG"]
    weights, post = config["LOSS_CONFIG"]["LOSS_WEIGHTS"], config["POST_PROCESSING"]
    check_branches(separate, branches.CHANNELS, "center_z")
    rectify = post.get("USE_IOU_TO_RECTIFY_SCORE", False)
    if not rectify:
        skip(post, "IOU_RECTIFIER")
    return {
        "name": "CenterHead",
        "tasks": config["CLASS_NAMES_EACH_HEAD"],
        "branches": {name: branch["num_conv"] for name, branch in separate["HEAD_DICT"].items()},
        "heatmap_convs": config["NUM_HM_CONV"],
        "shared_channels": config["SHARED_CONV_CHANNEL"],
        "upsample": config.get("UPSAMPLE", 1),
        "conv_bias": config.get("USE_BIAS_BEFORE_NORM", False),
        "norm_eps": config.get("BN_EPS", 1e-5),
        "norm_momentum": config.get("BN_MOM", 0.1),
        "gaussian_overlap": assigner["GAUSSIAN_OVERLAP"],
        "min_radius": assigner["MIN_RADIUS"],
        "class_weight": weights["cls_weight"],
        "box_weight": weights["loc_weight"],
        "code_weights": weights["code_weights"],
        "box_iou_loss": config.get("IOU_REG_LOSS", False),
        "score_threshold": post["SCORE_THRESH"],
        "max_candidates": post["MAX_OBJ_PER_SAMPLE"],
        "center_range": post["POST_CENTER_LIMIT_RANGE"],
        "iou_rectifier": post["IOU_RECTIFIER"] if rectify else None,
        "nms": nms_fields(post["NMS_CONFIG"]),
    }


# As hard-coded there: classes whose every cell is a peak, and the suppression in the version of DSVT and LION.
SMALL_CLASSES = {"nuScenes": (8, 9), "Waymo": (1, 2)}
SUPPRESSED = {"nuScenes": ((8, 9), 0.175), "Waymo": ((0, 1, 2), 0.7)}


def transfusion_head(config: Config, class_names: Sequence[str], windows: bool | None = None) -> dict[str, Any]:
    """The configuration of a `TransFusionHead`: OpenPCDet's, or DSVT's, LION's or ScatterFormer's.

    Args:
        config: the section DENSE_HEAD.
        class_names: in order.
        windows: whether each query looks at a window of the map, as those of DSVT and LION do, or at all of it, as
            those of OpenPCDet do; None to tell by the settings that only one of them has.

    Raises:
        ValueError: a setting is not in this library.
    """
    separate, assigner, post = (config[k] for k in ("SEPARATE_HEAD_CFG", "TARGET_ASSIGNER_CONFIG", "POST_PROCESSING"))
    weights, costs = config["LOSS_CONFIG"]["LOSS_WEIGHTS"], assigner["HUNGARIAN_ASSIGNER"]
    dataset = assigner["DATASET"]
    check_branches(separate, transfusion_queries.CHANNELS, "height")
    node = {
        "name": "TransFusionHead",
        "branches": {name: branch["num_conv"] for name, branch in separate["HEAD_DICT"].items()},
        "heatmap_convs": config["NUM_HM_CONV"],
        "num_proposals": config["NUM_PROPOSALS"],
        "hidden_channels": config["HIDDEN_CHANNEL"],
        "num_heads": config["NUM_HEADS"],
        "ffn_channels": config["FFN_CHANNEL"],
        "dropout": config["DROPOUT"],
        "norm_momentum": config["BN_MOMENTUM"],
        "conv_bias": config["USE_BIAS_BEFORE_NORM"],
        "peak_size": config["NMS_KERNEL_SIZE"],
        "small_classes": _names(SMALL_CLASSES.get(dataset, ()), class_names),
        "class_cost": costs["cls_cost"]["weight"],
        "box_cost": costs["reg_cost"]["weight"],
        "iou_cost": costs["iou_cost"]["weight"],
        "gaussian_overlap": assigner["GAUSSIAN_OVERLAP"],
        "min_radius": assigner["MIN_RADIUS"],
        "class_weight": weights["cls_weight"],
        "box_weight": weights["bbox_weight"],
        "heatmap_weight": weights["hm_weight"],
        "code_weights": weights["code_weights"],
        "score_threshold": post["SCORE_THRESH"],
        "center_range": post["POST_CENTER_RANGE"],
        "border_peaks": False,
        "bottom_cost": True,
    }
    local = "QUERY_RADIUS" in config
    if not local and not (_has_windows(separate["HEAD_DICT"], weights, post) if windows is None else windows):
        skip(post, *RECTIFYING)
        skip(weights, IOU_WEIGHT)
        return node | ({"iou_weight": 0.0} if "iou" in separate["HEAD_DICT"] else {})  # it has no loss for the branch
    labels, threshold = SUPPRESSED.get(dataset, ((), 0.0))
    node |= {"iou_rectifier": _rectifier(post), "nms": dict.fromkeys(_names(labels, class_names), threshold)}
    return node | (_local_queries(config) if local else _windowed_queries(separate["HEAD_DICT"], weights))


IOU_WEIGHT = "loss_iou_rescore_weight"
RECTIFYING = ("USE_IOU_TO_RECTIFY_SCORE", "IOU_RECTIFIER")


def _has_windows(branches: Config, weights: Config, post: Config) -> bool:
    """Whether a head has the IoU branch, or a setting, that OpenPCDet's does not know."""
    return "iou" in branches or IOU_WEIGHT in weights or any(name in post for name in RECTIFYING)


def _rectifier(post: Config) -> float | Sequence[float] | None:
    """IOU_RECTIFIER, where scores are rectified."""
    if post.get("USE_IOU_TO_RECTIFY_SCORE", False):
        return _one_or_each(post.get("IOU_RECTIFIER"))
    skip(post, "IOU_RECTIFIER")
    return None


def _windowed_queries(branches: Config, weights: Config) -> dict[str, Any]:
    """What the version of DSVT and LION has of its own."""
    with_iou = "iou" in branches
    if not with_iou:
        skip(weights, IOU_WEIGHT)
    return {
        "conv_bias": True,
        "window": 20,
        "window_wraps": True,
        "isolated_queries": True,
        "x_rows": True,
        "height": "top",
    } | ({"iou_of_tops": True, "iou_weight": weights[IOU_WEIGHT]} if with_iou else {})


def _local_queries(config: Config) -> dict[str, Any]:
    """What ScatterFormer's version of the head has of its own."""
    loss = config["LOSS_CONFIG"]
    for switch, weight in (("LOSS_IOU", "iou_weight"), ("LOSS_IOU_REG", "iou_reg_weight")):
        if not loss[switch]:
            skip(loss["LOSS_WEIGHTS"], weight)
    for key, known in (("QUERY_LOCAL", True), ("CLASS_AGNOSTIC", False), ("ACTIVATION", "relu")):
        if config.get(key, known) != known:
            raise ValueError(f"{key}: {config[key]!r} is not known here; known: {known!r}")
    return {
        "window": config["QUERY_RADIUS"],
        "window_repeats": True,
        "isolated_queries": True,
        "iou_weight": loss["LOSS_WEIGHTS"]["iou_weight"] if loss["LOSS_IOU"] else 0.0,
        "box_iou_weight": loss["LOSS_WEIGHTS"]["iou_reg_weight"] if loss["LOSS_IOU_REG"] else 0.0,
    }


def _names(labels: Sequence[int], class_names: Sequence[str]) -> list[str]:
    return [name for label, name in enumerate(class_names) if label in labels]


def _one_or_each(values: float | Sequence[float] | None) -> float | Sequence[float] | None:
    """IOU_RECTIFIER of TransFusionHead, where a list of one value is for all classes."""
    return values[0] if isinstance(values, Sequence) and len(values) == 1 else values


def _anchors(entry: Config) -> dict[str, Any]:
    heights = entry["anchor_bottom_heights"]
    return {
        "class_name": entry["class_name"],
        "sizes": entry["anchor_sizes"],
        "rotations": entry["anchor_rotations"],
        "bottom_height": heights[0] if len(heights) == 1 else heights,
        "matched": entry["matched_threshold"],
        "unmatched": entry["unmatched_threshold"],
        "align_center": entry.get("align_center", False),
    }
