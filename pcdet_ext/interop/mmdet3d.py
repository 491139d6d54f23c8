"""Sections of mmdetection3d 1.x detectors, and their parameters, in this library.

Boxes and headings are the same there (x, y, then counter-clockwise from +x), but for z, which is that of the bottom.
Version 0.15, on which FlatFormer was published, has another box code: see `flatformer`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.config import suggest
from pcdet_ext.interop import flatformer
from pcdet_ext.interop.settings import given, skip

Config = Mapping[str, Any]

BATCH_NORM = {"type": "BN2d", "eps": 1e-5, "momentum": 0.1}  # of a CenterHead that does not say otherwise
PUBLISHED_NORM = (1e-3, 0.01)  # epsilon and momentum that our encoders and 2-D backbones have
ANCHOR_NAMES = {"conv_cls.": "conv_cls.", "conv_reg.": "conv_box.", "conv_dir_cls.": "conv_dir_cls."}


def encoder(config: Config, layer: Config) -> dict[str, Any]:
    """Our encoder for a section voxel_encoder.

    Args:
        config: the section.
        layer: the data preprocessor's voxel_layer, with the limits of hard voxels.

    Raises:
        ValueError: for encoders and settings that this library does not have.
    """
    kind = config["type"]
    limits = {"max_points": layer["max_num_points"], "max_voxels": _pair(layer["max_voxels"])}
    if kind == "HardSimpleVFE":
        return {"name": "MeanVFE", **limits}
    if kind == "DynamicSimpleVFE":
        return {"name": "DynamicMeanVFE"}
    if kind != "PillarFeatureNet":
        known = ("PillarFeatureNet", "HardSimpleVFE", "DynamicSimpleVFE")
        raise ValueError(f"type: {kind!r} has no counterpart in this library{suggest(kind, known)}")
    for name in ("with_cluster_center", "with_voxel_center"):
        _only(config, name, True)
    _only(config, "mode", "max")
    _check_norm(config)
    distance = config.get("with_distance", False)
    if distance and _is_legacy(config):
        raise ValueError("with_distance is not known here together with legacy, which measures it from the voxel")
    return {
        "name": "PillarVFE",
        **limits,
        "num_filters": config.get("feat_channels", [64]),
        "with_distance": distance,
        "use_absolute_xyz": not _is_legacy(config),
        "count_padding": True,  # checkpoints were trained so
    }


def _is_legacy(config: Config) -> bool:
    """Whether a PillarFeatureNet writes the offsets from the voxel's centre over the coordinates, its default."""
    return bool(config.get("legacy", True))


def _pair(limit: int | Sequence[int]) -> list[int]:
    """Voxels of a frame in training and in testing."""
    return [limit, limit] if isinstance(limit, int) else list(limit)


def bev_backbone(second: Config, neck: Config) -> dict[str, Any]:
    """Our 2-D backbone for the sections backbone (SECOND) and neck (SECONDFPN). Raises ValueError."""
    for config, kind in ((second, "SECOND"), (neck, "SECONDFPN")):
        if config["type"] != kind:
            raise ValueError(f"type: {config['type']!r} has no counterpart in this library; known: {kind}")
        _check_norm(config)
    return {
        "name": "BaseBEVBackbone",
        "layer_nums": second.get("layer_nums", [3, 5, 5]),
        "layer_strides": second.get("layer_strides", [2, 2, 2]),
        "num_filters": second.get("out_channels", [128, 128, 256]),
        "upsample_strides": neck.get("upsample_strides", [1, 2, 4]),
        "num_upsample_filters": neck.get("out_channels", [256, 256, 256]),
        "use_conv_for_no_stride": neck.get("use_conv_for_no_stride", False),
    }


def head(config: Config, train_cfg: Config, test_cfg: Config, classes: Sequence[str]) -> dict[str, Any]:
    """Our head for a section bbox_head.

    Args:
        config: the section.
        train_cfg: of the detector.
        test_cfg: of the detector.
        classes: of the data, in order.

    Raises:
        ValueError: the head or a setting is not in this library.
    """
    kinds = {"Anchor3DHead": anchor_head, "CenterHead": center_head}
    if config["type"] not in kinds:
        raise ValueError(
            f"type: {config['type']!r} has no counterpart in this library{suggest(str(config['type']), kinds)}"
        )
    return kinds[config["type"]](config, train_cfg, test_cfg, classes)


def anchor_head(config: Config, train_cfg: Config, test_cfg: Config, classes: Sequence[str]) -> dict[str, Any]:
    """The configuration of an `AnchorHead` for an Anchor3DHead.

    Training differs in one rule: here the anchor that overlaps an object most stands for it however little it is, there
    only from `min_pos_iou`.

    Args:
        config: the section bbox_head.
        train_cfg: of the detector.
        test_cfg: of the detector.
        classes: of the data, in order.

    Raises:
        ValueError: a setting is not in this library.
    """
    _only(config, "diff_rad_by_sin", True)
    box_loss, class_loss = config["loss_bbox"], config["loss_cls"]
    _only_kind("loss_cls", class_loss, ("FocalLoss",))
    for name, only in (("use_sigmoid", True), ("gamma", 2.0), ("alpha", 0.25)):
        _only(class_loss, name, only)
    _only_kind("bbox_coder", config["bbox_coder"], ("DeltaXYZWLHRBBoxCoder",))
    _only(test_cfg, "nms_across_levels", False)
    skip(test_cfg, "min_bbox_size")  # which mmdetection3d does not read either
    skip(train_cfg, "allowed_border", "pos_weight", "debug")
    skip(config["anchor_generator"], "reshape_out")
    skip(config["loss_dir"], "type", "use_sigmoid", "reduction")
    assigners = _assigners(train_cfg, classes)
    rotated = test_cfg.get("use_rotate_nms", False)
    node = {
        "name": "AnchorHead",
        "anchors": [
            _anchors(config["anchor_generator"], i, name, assigner)
            for i, (name, assigner) in enumerate(zip(classes, assigners, strict=True))
        ],
        "match_3d": _matches_in_space(assigners),
        "box_loss": _box_loss(box_loss),
        "class_weight": class_loss.get("loss_weight", 1.0),
        "box_weight": box_loss.get("loss_weight", 1.0),
        "code_weights": train_cfg.get("code_weight", [1.0] * 7),
        "score_threshold": test_cfg.get("score_thr", 0.0),
        "multi_label": True,
        "max_candidates": test_cfg.get("nms_pre", -1) if test_cfg.get("nms_pre", -1) > 0 else None,
        "max_detections": test_cfg["max_num"],
        "nms": {
            "iou_threshold": test_cfg["nms_thr"],
            "per_class": True,
            "max_before": None,
            "max_after": None,
            "kind": "rotated" if rotated else "axis_aligned",
        },
    }
    if not config.get("use_direction_classifier", True):
        raise ValueError("use_direction_classifier: False is not known here, and mmdetection3d cannot predict with it")
    return node | {
        "direction_bins": 2,
        "direction_offset": config.get("dir_offset", -math.pi / 2),
        "direction_limit_offset": config.get("dir_limit_offset", 0),
        "direction_weight": config["loss_dir"].get("loss_weight", 1.0),
    }


def _assigners(train_cfg: Config, classes: Sequence[str]) -> Sequence[Config]:
    found = train_cfg["assigner"]
    each = [found] * len(classes) if isinstance(found, Mapping) else list(found)
    if len(each) != len(classes):
        raise ValueError(f"train_cfg.assigner has {len(each)} entries for {len(classes)} classes")
    for assigner in each:
        skip(assigner, "type", "min_pos_iou", "ignore_iof_thr")
        skip(assigner["iou_calculator"], "coordinate")
    return each


def _matches_in_space(assigners: Sequence[Config]) -> bool:
    kinds = {str(assigner["iou_calculator"]["type"]).rpartition(".")[2] for assigner in assigners}
    known = {"BboxOverlapsNearest3D": False, "BboxOverlaps3D": True}
    if len(kinds) > 1 or not kinds <= set(known):
        raise ValueError(f"train_cfg.assigner: iou_calculator {sorted(kinds)} must be one of {', '.join(known)}")
    return known[kinds.pop()]


def _anchors(generator: Config, number: int, class_name: str, assigner: Config) -> dict[str, Any]:
    """The anchors of a class: the size and the range of its number."""
    kinds = {"AlignedAnchor3DRangeGenerator": True, "Anchor3DRangeGenerator": False}
    kind, sizes, ranges = generator["type"], generator["sizes"], generator["ranges"]
    if kind not in kinds or generator.get("align_corner", False):
        raise ValueError(f"anchor_generator: {kind!r} or align_corner is not known here; known: {', '.join(kinds)}")
    for name, only in (("scales", [1]), ("custom_values", []), ("size_per_range", True)):
        if name in generator and type(only)(generator[name]) != only:
            raise ValueError(f"anchor_generator.{name}: {generator[name]!r} is not known here; known: {only!r}")
    own = ranges[number if len(ranges) > 1 else 0] if number < len(ranges) or len(ranges) == 1 else None
    if number >= len(sizes) or own is None:
        raise ValueError(f"anchor_generator: {len(sizes)} sizes and {len(ranges)} ranges do not give one per class")
    if own[2] != own[5]:
        raise ValueError(f"anchor_generator.ranges: {own} must have one z, got {own[2]} to {own[5]}")
    return {
        "class_name": class_name,
        "sizes": [sizes[number]],
        "rotations": generator.get("rotations", [0, math.pi / 2]),
        "bottom_height": own[2],
        "matched": assigner["pos_iou_thr"],
        "unmatched": assigner["neg_iou_thr"],
        "align_center": kinds[kind],
    }


def anchor_ranges(config: Config) -> Sequence[Sequence[float]]:
    """Where the anchors of an Anchor3DHead are, which here is the range of the detector."""
    found: Sequence[Sequence[float]] = config["anchor_generator"]["ranges"]
    return found


def _box_loss(config: Config) -> str:
    _only_kind("loss_bbox", config, ("SmoothL1Loss", "L1Loss"))
    if str(config["type"]).endswith("SmoothL1Loss"):
        if abs(config.get("beta", 1.0) - 1 / 9) > 1e-6:
            raise ValueError(f"loss_bbox.beta: {config.get('beta', 1.0)} is not known here; known: 1/9")
        return "smooth_l1"
    return "l1"


def center_head(config: Config, train_cfg: Config, test_cfg: Config, classes: Sequence[str]) -> dict[str, Any]:
    """The configuration of a `CenterHead` for one of mmdetection3d 1.x.

    Args:
        config: the section bbox_head.
        train_cfg: of the detector.
        test_cfg: of the detector.
        classes: of the data, whose order the tasks must keep.

    Raises:
        ValueError: a setting is not in this library.
    """
    _only_kind("loss_cls", config["loss_cls"], ("GaussianFocalLoss",))
    _only_kind("loss_bbox", config["loss_bbox"], ("L1Loss",))
    skip(config["bbox_coder"], "out_size_factor")
    named = flatformer.classes(config)
    if named != list(classes):
        raise ValueError(f"tasks: their classes {named} are not those of the data, {list(classes)}, in the same order")
    if "iou" in config["common_heads"]:
        raise ValueError("common_heads.iou: mmdetection3d 1.x does not read it")
    node = flatformer.head(given(config, norm_cfg=BATCH_NORM), train_cfg, test_cfg)
    weights = train_cfg.get("code_weights", [1.0] * 10)
    # There the heading is (sin, cos), and all boxes of a task suppress each other.
    node["code_weights"] = [*weights[:6], weights[7], weights[6], *weights[8 : 10 if "vel" in node["branches"] else 8]]
    node["nms"] = node["nms"] | {"per_class": False}
    return node


def _check_norm(config: Config) -> None:
    norm = config.get("norm_cfg", dict(zip(("eps", "momentum"), PUBLISHED_NORM, strict=True)))
    if (norm.get("eps"), norm.get("momentum")) != PUBLISHED_NORM:
        raise ValueError(f"norm_cfg: eps and momentum must be 0.001 and 0.01, got {dict(norm)}")


def _only(config: Config, name: str, value: Any) -> None:
    if config.get(name, value) != value:
        raise ValueError(f"{name}: {config[name]!r} is not known here; known: {value!r}")


def _only_kind(section: str, config: Config, kinds: Sequence[str]) -> None:
    if str(config["type"]).rpartition(".")[2] not in kinds:
        raise ValueError(f"{section}.type: {config['type']!r} is not known here; known: {', '.join(kinds)}")
    skip(config, "reduction")


def backbone_name(name: str, back: bool = False) -> str:
    """Our name for a parameter inside of SECOND, whose levels have one layer less in front; back: theirs for ours."""
    found = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(\w+)", name)
    if found is None:
        return name
    return f"blocks.{found[1]}.{int(found[2]) + (-1 if back else 1)}.{found[3]}"


def anchor_name(name: str, back: bool = False) -> str:
    """Our name for a parameter inside of Anchor3DHead; back: theirs for ours."""
    for theirs, ours in ANCHOR_NAMES.items():
        old, new = (ours, theirs) if back else (theirs, ours)
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def center_name(name: str, back: bool = False) -> str:
    """Our name for a parameter inside of CenterHead; back: theirs for ours."""
    if not back:
        return flatformer.head_name(name)
    found = re.fullmatch(r"heads_list\.(\d+)\.(\w+)\.(.*)", name)
    if found is None:
        return _in_conv_module(name, r"(shared_conv)")
    branches = {ours: theirs for theirs, ours in flatformer.BRANCHES.items()}
    inside = _in_conv_module(found[3], r"(\d+)")
    return f"task_heads.{found[1]}.{branches[found[2]]}.{inside}"


def _in_conv_module(name: str, place: str) -> str:
    """A name inside of mmcv's ConvModule: convolution and norm have names instead of numbers."""
    found = re.fullmatch(rf"{place}\.([01])\.(\w+)", name)
    return name if found is None else f"{found[1]}.{('conv', 'bn')[int(found[2])]}.{found[3]}"


def center_value(name: str, value: Tensor) -> Tensor:
    """A parameter of a CenterHead by our name, either way: there the last convolution of "rot" gives (sin, cos)."""
    last = re.fullmatch(r"heads_list\.\d+\.rot\.\d+\.(weight|bias)", name)
    return value[[1, 0]] if last and len(value) == 2 else value


def pillar_value(name: str, value: Tensor, config: Config, back: bool = False) -> Tensor:
    """A parameter of a PillarFeatureNet.

    Its legacy form has the offsets from the voxel's centre where the coordinates should be, and once more at the end:
    here they stand once, and the weights of both are added.

    Args:
        name: our name for the parameter, inside of the encoder.
        value: the tensor.
        config: the section voxel_encoder.
        back: whether ours is wanted as theirs; the weights of the first offsets are then zero.
    """
    if not _is_legacy(config) or name != "pfn_layers.0.linear.weight":
        return value
    if back:
        return torch.cat([torch.zeros_like(value[:, :3]), value], 1)
    return torch.cat([value[:, 3:-3], value[:, -3:] + value[:, :3]], 1)
