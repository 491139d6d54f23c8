"""UniLION's settings of its detection heads in the words of this library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pcdet_ext.interop.openpcdet_heads import SMALL_CLASSES, SUPPRESSED
from pcdet_ext.interop.openpcdet_settings import Config, known_name
from pcdet_ext.interop.settings import only_known, skip
from pcdet_ext.models.heads.transfusion_queries import CHANNELS

CLASSES = {
    "nuScenes": (
        "car",
        "truck",
        "construction_vehicle",
        "bus",
        "trailer",
        "barrier",
        "motorcycle",
        "bicycle",
        "pedestrian",
        "traffic_cone",
    ),
    "Waymo": ("Vehicle", "Pedestrian", "Cyclist"),
}
WINDOW = 20  # cells to each side that a query sees, as hard-coded there
# What the heads have of which this library has one value only, by section.
LOSSES: dict[str, dict[str, Any]] = {
    "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "reduction": "mean"},
    "loss_heatmap": {"type": "GaussianFocalLoss", "reduction": "mean"},
    "loss_bbox": {"type": "L1Loss", "reduction": "mean"},
}
ASSIGNER: dict[str, dict[str, Any]] = {
    "iou_calculator": {"type": "BboxOverlaps3D", "coordinate": "lidar"},
    "cls_cost": {"type": "FocalLossCost", "gamma": 2, "alpha": 0.25},
    "reg_cost": {"type": "BBoxBEVL1Cost"},
    "iou_cost": {"type": "IoU3DCost"},
}


def class_names(config: Config) -> tuple[str, ...]:
    """The classes of a section `det_head`, which it does not name itself: those of its data set.

    Raises ValueError for another data set, or another number of classes.
    """
    dataset = config["test_cfg"]["dataset"]
    names: tuple[str, ...] = known_name("test_cfg.dataset", dataset, CLASSES)
    if config["train_cfg"]["dataset"] != dataset:
        raise ValueError(f"train_cfg is for {config['train_cfg']['dataset']}, but test_cfg for {dataset}")
    if config["num_classes"] != len(names):
        raise ValueError(f"num_classes must be {len(names)} for {dataset}, got {config['num_classes']}")
    return names


def geometry(config: Config) -> dict[str, Any]:
    """Range, voxel size and stride of a section `det_head`, which says them several times.

    Raises ValueError where it contradicts itself.
    """
    train, test, coder = config["train_cfg"], config["test_cfg"], config["bbox_coder"]
    low, size, stride = list(train["point_cloud_range"][:2]), list(train["voxel_size"][:2]), train["out_size_factor"]
    for name, section in (("test_cfg", test), ("bbox_coder", coder)):
        for key, value in (("pc_range", low), ("voxel_size", size)):
            if list(section[key][:2]) != value:
                raise ValueError(f"{name}.{key}: {section[key]} does not fit train_cfg, {value}")
        if section["out_size_factor"] != stride:
            raise ValueError(f"{name}.out_size_factor: {section['out_size_factor']} does not fit train_cfg, {stride}")
    cells = [
        round((high - at) / step) for at, high, step in zip(low, train["point_cloud_range"][3:5], size, strict=True)
    ]
    for name, section in (("train_cfg", train), ("test_cfg", test)):
        if list(section["grid_size"][:2]) != cells:
            raise ValueError(f"{name}.grid_size: {section['grid_size']} does not fit the range, {cells} cells")
    return {"point_cloud_range": train["point_cloud_range"], "voxel_size": train["voxel_size"], "stride": stride}


def head(config: Config) -> dict[str, Any]:
    """The configuration of a `TransFusionHead` for a TransFusionHead or TransFusionHeadV2.

    Raises ValueError for settings that this library does not have.
    """
    local: bool = known_name("det_head", config["type"], {"TransFusionHead": True, "TransFusionHeadV2": False})
    names, train, coder = class_names(config), config["train_cfg"], config["bbox_coder"]
    known_name("bbox_coder", coder["type"], {"TransFusionBBoxCoder": None})
    branches = _branches(config["common_heads"], coder["code_size"])
    for key, only in LOSSES.items():
        only_known(key, config[key], only)
    weights = {key: config[key]["loss_weight"] for key in LOSSES}
    if config.get("nms_kernel_size", 3) == 1:
        raise ValueError("nms_kernel_size: 1 crashes in the published code and is not known here")
    if train.get("pos_weight", -1) > 0:
        raise ValueError(f"train_cfg.pos_weight: {train['pos_weight']} is not known here; known: -1")
    node = {
        "name": "TransFusionHead",
        "branches": branches,
        "num_proposals": config["num_proposals"],
        "hidden_channels": config["hidden_channel"],
        "num_heads": config.get("num_heads", 8),
        "ffn_channels": config.get("ffn_channel", 256),
        "dropout": config.get("dropout", 0.1),
        "norm_momentum": config.get("bn_momentum", 0.1),
        "heatmap_conv_bias": False,
        "peak_size": config.get("nms_kernel_size", 3),
        "small_classes": _chosen(names, SMALL_CLASSES[config["test_cfg"]["dataset"]]),
        "gaussian_overlap": train["gaussian_overlap"],
        "min_radius": train["min_radius"],
        "class_weight": weights["loss_cls"],
        "heatmap_weight": weights["loss_heatmap"],
        "box_weight": weights["loss_bbox"],
        "code_weights": train["code_weights"],
        "iou_weight": config.get("iou_rescore_weight", 0.5),
        "score_threshold": coder.get("score_threshold") or None,
        "center_range": coder["post_center_range"],
        "iou_rectifier": 0.5 if "iou" in branches else None,
        "x_rows": True,
        "border_peaks": False,
        "iou_of_tops": True,
        "range_of_bottoms": True,
    }
    return node | _costs(train["assigner"]) | _suppression(config["test_cfg"], names) | _layers(config, local)


def _layers(config: Config, local: bool) -> dict[str, Any]:
    """What the two heads differ in: queries that each see a window alone, or each other and the whole map."""
    count = config.get("num_decoder_layers", 1)
    if not local:
        layers = {"num_layers": count, "auxiliary_losses": config.get("auxiliary", True), "iou_of_joined_rows": True}
        return {"conv_bias": False} | layers
    skip(config, "auxiliary")  # it has one layer whatever num_decoder_layers says, and no others that could learn
    window = config.get("query_radius", WINDOW)
    return {"conv_bias": True, "window": window, "window_wraps": True, "isolated_queries": True}


def _branches(config: Config, code_size: int) -> dict[str, int]:
    """Convolutions of each branch."""
    order = [name for name in config if name != "iou"]
    known = ["center", "height", "dim", "rot", "vel"]
    if order not in (known, known[:4]) or code_size != (10 if "vel" in config else 8):
        raise ValueError(f"common_heads {order} with a code_size of {code_size} are not known here; known: {known}")
    for name in config:
        if name not in CHANNELS or config[name][0] != CHANNELS[name]:
            raise ValueError(f"common_heads.{name}: {config[name]} is not known here; channels: {CHANNELS}")
    return {name: config[name][1] for name in config}


def _costs(config: Config) -> dict[str, float]:
    known_name("assigner", config["type"], {"HungarianAssigner3D": None})
    for key, only in ASSIGNER.items():
        only_known(f"assigner.{key}", config[key], only)
    published = {"class_cost": "cls_cost", "box_cost": "reg_cost", "iou_cost": "iou_cost"}
    return {ours: config[theirs]["weight"] for ours, theirs in published.items()}


def _suppression(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """Suppression by the distance of centres among some classes, each alone, whatever kind the section names."""
    skip(config, "nms_thr", "pre_max_size")  # the published code does not read them
    if config.get("nms_type") is None:
        skip(config, "post_max_size")
        return {}
    labels, threshold = SUPPRESSED[config["dataset"]]
    chosen = dict.fromkeys(_chosen(names, labels), threshold)
    return {"nms": chosen, "nms_kind": "circle", "nms_max": config["post_max_size"], "later_of_equals": True}


def _chosen(names: Sequence[str], labels: Sequence[int]) -> list[str]:
    return [names[label] for label in labels]


def head_name(name: str) -> str:
    """Our name for a parameter of a published head, of either kind."""
    if found := re.match(r"(decoder|prediction_head)\.(\d+)\.", name):
        rest, number = name[found.end() :], int(found[2])
        rest = re.sub(r"^(\w+\.\d+)\.(conv|bn)\.", lambda part: f"{part[1]}.{int(part[2] == 'bn')}.", rest)
        if number == 0:
            return f"{found[1]}.{rest}"
        return f"later_layers.{number - 1}.{int(found[1] == 'prediction_head')}.{rest}"
    return name
