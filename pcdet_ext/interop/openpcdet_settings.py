"""Settings that several of OpenPCDet's heads share, in the words of this library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pcdet_ext.config import suggest
from pcdet_ext.interop.settings import skip

Config = Mapping[str, Any]

L1: dict[str | None, str] = {"WeightedL1Loss": "l1"}
NMS_KINDS: dict[str | None, str] = {"nms_gpu": "rotated", "nms_normal_gpu": "axis_aligned"}


def check_branches(config: Config, channels: Mapping[str, int], height: str) -> None:
    """Check that a head's branches mean a box code that is known.

    Args:
        config: the section SEPARATE_HEAD_CFG.
        channels: of each branch, as they must be.
        height: name of the branch of z.

    Raises:
        ValueError: channels or their order would mean another code.
    """
    order = ["center", height, "dim", "rot", "vel"]
    if [name for name in config["HEAD_ORDER"] if name != "iou"] not in (order, order[:4]):  # "iou" is not in the code
        raise ValueError(f"HEAD_ORDER {config['HEAD_ORDER']} is not known here; known: {order}, with or without 'vel'")
    for name, branch in config["HEAD_DICT"].items():
        if branch["out_channels"] != channels.get(name):
            raise ValueError(f"HEAD_DICT.{name}: {branch['out_channels']} channels, known: {dict(channels)}")


def nms_fields(config: Config) -> dict[str, Any]:
    """Fields of `NMSConfig`; the two names of per-class suppression are those of CenterHead."""
    kind, sizes = config["NMS_TYPE"], (config["NMS_PRE_MAXSIZE"], config.get("NMS_POST_MAXSIZE"))
    node = {"iou_threshold": config["NMS_THRESH"], "max_before": sizes[0], "max_after": sizes[1]}
    if kind in ("class_specific_nms", "multi_class_nms"):
        skip(config, "MULTI_CLASSES_NMS")
    if kind == "class_specific_nms":  # never looks at its NMS_POST_MAXSIZE
        return node | {"per_class": True, "max_after": None}
    if kind == "multi_class_nms":
        return node | {"per_class": True, "rotate_90": True}
    return node | {"kind": named(kind, NMS_KINDS), "per_class": bool(config.get("MULTI_CLASSES_NMS"))}


def named(name: str | None, known: Mapping[str | None, str]) -> str:
    """Our word for a published name. Raises ValueError for another name."""
    if name not in known:
        raise ValueError(f"{name!r} is not known here; known: {', '.join(map(str, known))}")
    return known[name]


def known_name(section: str, name: str, known: Mapping[str, Any]) -> Any:
    """What is known under a name in a section.

    Args:
        section: of the configuration, for the message.
        name: that it has.
        known: what there is, by name.

    Raises:
        ValueError: the name is not known; the nearest one is said.
    """
    if name not in known:
        raise ValueError(f"{section}: {name!r} is not in this library{suggest(name, known)}")
    return known[name]
