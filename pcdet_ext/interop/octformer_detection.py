"""OctFormer's detector of indoor objects, with the head FCAF3D of mmdetection3d: configurations and checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.interop.octree_names import our_value, stages_name
from pcdet_ext.interop.parameters import load_renamed
from pcdet_ext.interop.settings import given, only_known, skip
from pcdet_ext.models.detector import VoxelDetector

Config = Mapping[str, Any]
HEAD = "FCAF3DHead"
# Of SUN RGB-D, in the order of the published labels.
CLASSES = ("bed", "table", "sofa", "chair", "toilet", "desk", "dresser", "night_stand", "bookshelf", "bathtub")
CLIP = 0.01  # share of half the side that is clipped at each face of the cube
BACKBONE = {"num_heads": (6, 12, 24, 24), "dilation": 4, "drop_path": 0.5}  # published defaults
THRESHOLDS = {"nms_pre": 1000, "iou_thr": 0.5, "score_thr": 0.01}
LOSSES = {"cls_loss": "FocalLoss", "center_loss": "CrossEntropyLoss"}
BOX_LOSSES = {8: "RotatedIoU3DLoss", 6: "AxisAlignedIoULoss"}  # by the numbers of a box code


def from_official(config: Config, state_dict: Config | None = None) -> VoxelDetector:
    """The published detector with its parameters, in eval mode: points with colours in, boxes out.

    Args:
        config: the settings of the network side by side, with `head` a mapping or the notation "FCAF3DHead (…),
            n_classes 10, …", or the section `model` of the published file, with `backbone` and `head`. `classes` may
            name the classes; without it there must be the 10 of SUN RGB-D.
        state_dict: the parameters, or a checkpoint with them under "state_dict".

    Raises:
        ValueError: for settings without counterpart here, and parameters that do not fit.
    """
    detector = build(config)
    if state_dict is not None:
        load_official(detector, state_dict.get("state_dict", state_dict))
    return detector.eval()


def load_official(detector: VoxelDetector, state: Mapping[str, Tensor]) -> None:
    """Load published parameters into a detector. Raises ValueError that lists what does not fit."""
    load_renamed(detector, state, detector_name, our_kernel)


def build(config: Config) -> VoxelDetector:
    """The untrained detector; arguments and errors are those of `from_official`."""
    head = _head(config)
    backbone = given(config.get("backbone", config), **BACKBONE)
    only_known("backbone", backbone, {"type": "OctFormer", "nempty": True, "use_dwconv": True})
    only_known("octformer", config, {"type": "OctFormerSingleStage3DDetector"})
    skip(config, "head_shapes", "train_cfg", "init_cfg", "pretrained")
    depth, voxel = config["octree_depth"], config["voxel_size"]
    half = voxel * 2 ** (depth - 1)
    _check_scale(config.get("scale_factor"), half)
    letters = _letters(config)
    channels = backbone.get("in_channels", 3 * len(letters))
    colours = channels - 3 * (len(letters) - 1) if "F" in letters else 0
    return VoxelDetector(
        classes=_classes(config, head["n_classes"]),
        point_cloud_range=(-half,) * 3 + (half,) * 3,
        num_point_features=3 + colours,
        voxel_size=(voxel,) * 3,
        encoder={
            "name": "OctreeVFE",
            "features": letters,
            "margin": CLIP,
            "full_depth": config.get("full_depth", 2),
        },
        backbone={
            "name": "OctFormer",
            "channels": backbone["channels"],
            "num_blocks": backbone["num_blocks"],
            "num_heads": backbone["num_heads"],
            "stem_down": backbone["stem_down"],
            "drop_path": backbone["drop_path"],
            "group_size": backbone["patch_size"],
            "dilation": backbone["dilation"],
            "straddle": True,
            "out_channels": None,
        },
        head=_our_head(config, head, backbone["channels"]),
    )


def _check_scale(scale: Any, half: float) -> None:
    """Refuse a number for the scale of the points that the voxels and the depth do not give; words are a note."""
    if isinstance(scale, int | float) and not math.isclose(scale, 1 / half, rel_tol=1e-6):
        raise ValueError(f"scale_factor: is {scale}, but voxel_size and octree_depth make it {1 / half}")


def _letters(config: Config) -> str:
    """Letters of the input feature, of which a note may stand behind: "F (3 colour channels)"."""
    words = str(config.get("input_feature", config.get("octree_feature", "F"))).split(maxsplit=1)
    return words[0].upper() if words else ""


def _classes(config: Config, count: int) -> tuple[str, ...]:
    names = tuple(config.get("classes", CLASSES))
    if len(names) != count:
        raise ValueError(f"classes: must name the {count} classes of the head (n_classes), there are {len(names)}")
    return names


def _head(config: Config) -> Config:
    """The settings of the head. Raises ValueError for another head."""
    head = config["head"]
    if isinstance(head, str):
        words = re.split(r"[ ,(]", head, maxsplit=1)[0]
        head = {"type": words} | {name: int(number) for name, number in re.findall(r"(\w+) (\d+)\b", head)}
        unknown = head.keys() - {"type", "n_classes", "n_reg_outs", "out_channels", *PRUNING}
        if unknown and head["type"] == HEAD:
            raise ValueError(f"head: {min(unknown)} is not known here")
    if head["type"] != HEAD:
        raise ValueError(
            f"head: {head['type']} is not in this library, {HEAD} is; a configuration without `head`, and parameters "
            "without it, are those of the backbone alone"
        )
    return head


PRUNING = {
    "pts_prune_threshold": "prune_threshold",
    "pts_assign_threshold": "assign_threshold",
    "pts_center_threshold": "center_threshold",
}


def _our_head(config: Config, head: Config, channels: Any) -> dict[str, Any]:
    numbers = head["n_reg_outs"]
    if numbers not in BOX_LOSSES:
        raise ValueError(f"head.n_reg_outs: must be 8 for turned boxes or 6 for boxes along the axes, got {numbers}")
    only_known("head", head, {"in_channels": channels, "voxel_size": config["voxel_size"]})
    skip(head, "train_cfg", "init_cfg")
    weights = {name: _loss_weight(head, name, kind) for name, kind in LOSSES.items()}
    test = given(head.get("test_cfg", config.get("test_cfg", {})), **THRESHOLDS)
    return {
        "name": "FCAF3DHead",
        "channels": channels,
        "out_channels": head["out_channels"],
        "headings": numbers == 8,
        "prune_by": "interpolated",
        **{ours: head[name] for name, ours in PRUNING.items()},
        "class_weight": weights["cls_loss"],
        "center_weight": weights["center_loss"],
        "box_weight": _loss_weight(head, "bbox_loss", BOX_LOSSES[numbers]),
        "max_candidates": test["nms_pre"],
        "score_threshold": test["score_thr"],
        "nms": {"iou_threshold": test["iou_thr"], "max_before": None, "max_after": None, "per_class": True},
    }


def _loss_weight(head: Config, name: str, kind: str) -> float:
    """The weight of a loss, 1 where the head does not name it. Raises ValueError for another kind of loss."""
    loss = head.get(name, {})
    only_known(f"head.{name}", loss, {"type": kind, "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "mode": "iou"})
    return float(loss.get("loss_weight", 1.0))


LAYERS = {  # inside of a block of the head, by whether it leads to a finer level
    "out": {"0.kernel": "conv.weight", "1.bn": "norm"},
    "up": {"0.kernel": "grow.weight", "1.bn": "norm", "3.kernel": "block.conv.weight", "4.bn": "block.norm"},
}
LINEAR = {"conv_center": "to_center", "conv_reg": "to_box", "conv_cls": "to_classes"}


def detector_name(name: str) -> str:
    """Our name for a published parameter of the detector."""
    part, _, rest = name.partition(".")
    if part == "backbone":
        return f"backbone.stages.{stages_name(rest, 'layers', 'downsamples')}"
    return f"head.{head_name(rest)}" if part == "head" else name


def head_name(name: str) -> str:
    """Our name for a published parameter of the head."""
    if found := re.fullmatch(r"(up|out)_block_(\d+)\.(\d\.(?:kernel|bn))(.*)", name):
        kind, number, layer, rest = found.groups()
        ours = LAYERS[kind].get(layer, layer)
        return f"{kind}_blocks.{int(number) - (kind == 'up')}.{ours}{rest}"  # the finest level has no way up
    if found := re.fullmatch(r"(conv_\w+)\.(kernel|bias)", name):
        return f"{LINEAR.get(found[1], found[1])}.{found[2].replace('kernel', 'weight')}"
    return name.removesuffix(".scale")


def our_kernel(key: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Our value of a published parameter.

    MinkowskiEngine has kernels [cells, in, out] whose cells go along x fastest and along z slowest, and [in, out] for
    one cell; biases are [1, out].

    Args:
        key: our name.
        value: the published tensor.
        shape: ours.
    """
    if not key.startswith("head."):
        return our_value(key, value, shape)
    if value.ndim == 3 and len(shape) == 5 and value.shape[0] == math.prod(shape[1:4]):
        return value.reshape(*shape[1:4], *value.shape[1:]).movedim(-1, 0)
    if key.endswith(".weight") and value.ndim == 2:
        return value.t()
    if key.endswith(".bias") and value.ndim == 2 and len(value) == 1:
        return value[0]
    return our_value(key, value, shape)
