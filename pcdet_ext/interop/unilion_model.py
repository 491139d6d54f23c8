"""The whole of UniLION, LiDAR and LiDAR over time, as a detector of this library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pcdet_ext.interop import unilion_detection, unilion_heads, unilion_names, unilion_parts
from pcdet_ext.interop.openpcdet_settings import Config, known_name
from pcdet_ext.interop.settings import given, skip
from pcdet_ext.models.detector import VoxelDetector

# Tasks in the order in which their heads run: name of ours, published section, published class.
TASKS = {
    "det": ("detection", "det_head", "TransFusionHead"),
    "occ": ("occupancy", "occ_head", "BEVOCCHead"),
    "map": ("map", "map_head", "SegMapHead"),
    "motion": ("motion", "motion_head", "NaiveMotionHead"),
    "planning": ("planning", "planning_head", "AnchorPlannerHead"),
}
# Constants of the published code, which a configuration may set beside the model, and the section that they belong to.
CONSTANTS = {
    "query_radius": "det_head",
    "seg_encoder_channels": "map_head",
    "seg_encoder_blocks": "map_head",
    "ego_pool": "planning_head",
}
WITHOUT_IMAGES = {"fusion": False, "use_grid_mask": False, "with_depth_loss": False}


def detector_of(config: Config) -> VoxelDetector:
    """The untrained detector for a model, or for a mapping with it under `model` and constants beside it.

    Raises ValueError for what this library does not have, such as images.
    """
    model = config.get("model", config)
    known_name("type", model["type"], {"UniLION": None})
    for key, only in WITHOUT_IMAGES.items():
        if model.get(key, only) != only:
            raise ValueError(f"{key}: images are not in this library; {key} must be {only}")
    skip(model, "loss_depth_weight")
    names = [task for task in TASKS if model["tasks"].get(task, False)]
    if not names:
        raise ValueError("tasks: none of them is switched on")
    _check_map(model)
    train = model.get("train_cfg") or {}
    nodes: dict[str, Any] = {
        "encoder": unilion_parts.encoder(model["pts_voxel_encoder"]),
        "backbone": unilion_parts.backbone(model["pts_backbone"]),
        "bev_backbone": unilion_parts.bev_backbone(model["bev_backbone"], model["pts_neck"]),
        "heads": {TASKS[task][0]: _head(task, config, model, train) for task in names},
        "temporal": _temporal(model),
        "balance": "detection" if train.get("dynamic", False) else None,
    }
    skip(train, "freeze", *(f"loss_{task}_weight" for task in TASKS))  # freezing: `train.freeze` of this library
    columns = model["pts_voxel_encoder"]["num_point_features"]
    classes = unilion_detection.CLASSES["nuScenes"]
    if "det" in names:
        classes = unilion_detection.class_names(model["det_head"])
    detector = VoxelDetector(classes, model["pc_range"], columns, model["voxel_size"], **nodes)
    if "det" in names:
        _check_geometry(model, detector)
    return detector


def _head(task: str, config: Config, model: Config, train: Config) -> dict[str, Any]:
    """The node of a task's head."""
    _, section, kind = TASKS[task]
    constants = {name: config[name] for name, of in CONSTANTS.items() if of == section and name in config}
    settings = given(model[section], **constants)
    skip(settings, "with_cp")  # memory against time: the same numbers
    weight = {"weight": float(train.get(f"loss_{task}_weight", 1.0))}
    if task == "det":
        return unilion_detection.head(settings) | weight
    if settings["type"] != kind:
        raise ValueError(f"{section}: {settings['type']!r} is not in this library; known: {kind}")
    node = unilion_heads.head(settings)
    channels = node.pop("in_channels")
    _check_equal(f"{section}.in_channels", channels, sum(model["pts_neck"]["out_channels"]))
    if "point_cloud_range" in node:
        area, own = list(model["pc_range"]), node.pop("point_cloud_range")
        _check_equal(f"{section}: input_scope", [*own[:2], *own[3:5]], [*area[:2], *area[3:5]])
    node.pop("classes", None)  # those of the detector
    return node | weight


def _temporal(model: Config) -> dict[str, Any] | None:
    if not model.get("seq", False):
        skip(model, "max_seq_time")
        return None
    width = model["pts_neck"]["in_channels"][0]  # which the published fuser takes for the width of the voxels
    _check_equal("pts_neck.in_channels: its first, which the memory has,", width, model["pts_backbone"]["layer_dim"][0])
    return unilion_parts.temporal(model)


def _check_map(model: Config) -> None:
    """What the sections say about what they get must be what they get."""
    encoder, backbone, flat = model["pts_voxel_encoder"], model["pts_backbone"], model["map2bev"]
    if flat["type"] != "HeightCompression":
        raise ValueError(f"map2bev: {flat['type']!r} is not in this library; known: HeightCompression")
    cells = encoder["grid_size"]
    _check_equal("pts_backbone.grid_size", backbone["grid_size"], cells)
    _check_equal("pts_voxel_encoder.point_cloud_range", encoder["point_cloud_range"], model["pc_range"])
    _check_equal("pts_voxel_encoder.voxel_size", encoder["voxel_size"], model["voxel_size"])
    _check_equal("pts_voxel_encoder: its last num_filters", encoder["num_filters"][-1], backbone["layer_dim"][0])
    height = -(-cells[2] // 2 ** len(backbone["layer_dim"]))
    _check_equal("map2bev.output_shape", flat["output_shape"], [*cells[:2], height])
    _check_equal("map2bev.num_bev_feats", flat["num_bev_feats"], height * backbone["layer_dim"][-1])
    width = unilion_parts.bev_in_channels(model["bev_backbone"])
    _check_equal("bev_backbone: its channels", width, flat["num_bev_feats"])


def _check_geometry(model: Config, detector: VoxelDetector) -> None:
    geometry = unilion_detection.geometry(model["det_head"])
    _check_equal("det_head: point_cloud_range", geometry["point_cloud_range"], model["pc_range"])
    _check_equal("det_head: voxel_size", geometry["voxel_size"], model["voxel_size"])
    _check_equal("det_head: out_size_factor", geometry["stride"], detector.stride)
    _check_equal("det_head.in_channels", model["det_head"]["in_channels"], sum(model["pts_neck"]["out_channels"]))


def _check_equal(name: str, value: Any, expected: Any) -> None:
    own, other = (list(v) if isinstance(v, Sequence) else v for v in (value, expected))
    if own != other:
        raise ValueError(f"{name} must be {other}, as the other sections say, got {own}")


HEADS_BY_SECTION = {section: (ours, kind) for ours, section, kind in TASKS.values()}


def detector_name(name: str) -> str:
    """Our name for a parameter of a published detector."""
    part, _, rest = name.partition(".")
    match part:
        case "pts_voxel_encoder":
            return f"encoder.{rest}"
        case "pts_backbone":
            return f"backbone.{unilion_names.backbone_name(rest)}"
        case "bev_backbone" | "pts_neck":
            return f"bev_backbone.{unilion_names.bev_name(name)}"
        case "temporal_fuser":
            return f"temporal.{unilion_names.temporal_name(name)}"
        case "det_head":
            return f"heads.detection.{unilion_detection.head_name(rest)}"
    if part in HEADS_BY_SECTION:
        ours, kind = HEADS_BY_SECTION[part]
        return f"heads.{ours}.{unilion_heads.our_name(kind)(rest)}"
    return name
