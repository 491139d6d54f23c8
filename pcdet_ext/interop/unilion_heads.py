"""UniLION's heads beside detection: settings and parameter names of map, occupancy, motion and planning here.

Each section of a published configuration becomes a node for `HEADS` of this library, with the published quirks switched
on, and each published parameter name one of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pcdet_ext.interop.openpcdet_settings import Config, known_name
from pcdet_ext.interop.parameters import first_prefix
from pcdet_ext.interop.settings import given, only_known, skip

# Published names of parameters, of which only the beginning differs from ours.
NAMES: dict[str, dict[str, str]] = {
    "SegMapHead": {"bev_encoder.0.": "encoder.", "bev_encoder.1.": "encoder.", "seg_head.": "classifier."},
    "BEVOCCHead": {"final_conv.conv.": "conv.", "predicter.": "classifier.", "flow_predicter.": "flow_layers."},
    "NaiveMotionHead": {
        "motion_anchor_encoder.": "anchor_encoder.",
        "motion_anchor": "anchors",
        "fuser.": "fusion.",
        "agent_fut_decoder.": "layers.",
        "reg.": "regression.",
        "cls.": "classification.",
    },
    "AnchorPlannerHead": {
        "planning_anchor_encoder.": "anchor_encoder.",
        "planning_anchor": "anchors",
        "fuser.": "fusion.",
        "ego_fut_decoder.": "layers.",
        "ego_encoder.": "status_encoder.",
        "ego.": "status.",
        "ego_info.": "command.",
        "reg.": "regression.",
        "cls.": "classification.",
    },
}
KINDS = {
    "seg_map_head": "SegMapHead",
    "bev_occ_head": "BEVOCCHead",
    "naive_motion_head": "NaiveMotionHead",
    "anchor_planner_head": "AnchorPlannerHead",
}
EGO_POOL = 90  # cells, as it stands in the published code
ENCODER_CHANNELS, ENCODER_BLOCKS = 256, (5, 5, 5)  # likewise
# What losses have of which this library has one value only.
L1 = {"type": "L1Loss", "reduction": "mean"}
FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "reduction": "mean", "activated": False}
OCCUPANCY_FOCAL = FOCAL | {"type": "CustomFocalLoss", "gamma": 2.0, "alpha": 0.25}
HEIGHT = (-1.0, 1.0)  # of the range; no head here reads it


def our_name(kind: str) -> Callable[[str], str]:
    """The function that makes our name of a published parameter of a head of this class."""
    return lambda name: first_prefix(NAMES[kind], name)


def head(config: Config) -> dict[str, Any]:
    """The node of our head, with `in_channels` and where it is needed `point_cloud_range`, for a published section.

    config: the section, whose `type` is one of the classes in `NAMES`.
    Raises ValueError for settings that this library does not have.
    """
    kind = known_name("type", config["type"], {name: name for name in NAMES})
    return BUILDERS[kind](config)


def _map_head(config: Config) -> dict[str, Any]:
    section = config["seg_map_config"]
    skip(config, "num_classes", "num_decoder_layers", "train_cfg", "test_cfg")
    settings = given(config, seg_encoder_channels=ENCODER_CHANNELS, seg_encoder_blocks=ENCODER_BLOCKS, bn_momentum=0.1)
    return {
        "name": "MapSegmentationHead",
        "in_channels": config["in_channels"],
        **_grid(section),
        "layers": section["seg_map_classes"],
        "hidden_channels": config["hidden_channel"],
        "encoder_channels": settings["seg_encoder_channels"],
        "encoder_blocks": settings["seg_encoder_blocks"],
        "norm_momentum": settings["bn_momentum"],
    }


def _occupancy_head(config: Config) -> dict[str, Any]:
    settings = given(
        config,
        use_mask=False,
        flow=False,
        class_balance=False,
        loss_occ={},
        loss_occ_flow={},
        train_cfg={},
        test_cfg={},
    )
    if settings["use_mask"]:
        raise ValueError("use_mask: True is not known here: the published models use no mask of the cameras")
    names = settings["class_names"]
    if config["num_classes"] != len(names):
        raise ValueError(f"num_classes is {config['num_classes']}, but there are {len(names)} class_names")
    skip(config, "size", "train_cfg", "test_cfg")  # the published size is read nowhere
    node = {
        "name": "OccupancyHead",
        "in_channels": config["in_channels"],
        **_grid(config["bev_occ_config"]),
        "heights": config["Dz"],
        "hidden_channels": config["hidden_channel"],
        "flow": settings["flow"],
        **occupancy_losses(settings),
    }
    only_known("loss_occ_flow", settings["loss_occ_flow"], L1)
    weight = given(settings["loss_occ_flow"], loss_weight=1.0)["loss_weight"]
    return node | {"flow_weight": weight}


def occupancy_losses(config: Config) -> dict[str, Any]:
    """Those arguments of our occupancy head that concern its losses."""
    settings = given(config, class_balance=False, loss_occ={})
    focal = settings["loss_occ"]
    only_known("loss_occ", focal, OCCUPANCY_FOCAL)
    return {
        "occupancy_classes": config["class_names"],
        "class_balance": settings["class_balance"],
        "focal_weight": given(focal, loss_weight=1.0)["loss_weight"],
        "lovasz_of_unknown": True,
        "distance_of_corners": True,
    }


def _motion_head(config: Config) -> dict[str, Any]:
    skip(config, "motion_anchor", "train_cfg", "test_cfg")  # the anchors are among the parameters
    return {
        "name": "MotionHead",
        "in_channels": config["in_channels"],
        "classes": [f"class {number}" for number in range(config["num_classes"])],
        **_attention(config),
        **_path_losses(config, "motion"),
        "choice_of_unknown": True,
        "masks_in_object_order": True,
    }


def _planning_head(config: Config) -> dict[str, Any]:
    skip(config, "num_classes", "planning_anchor", "train_cfg", "test_cfg")  # the anchors are among the parameters
    return {
        "name": "PlanningHead",
        "in_channels": config["in_channels"],
        "num_layers": given(config, num_decoder_layers=1)["num_decoder_layers"],
        "pooling": given(config, ego_pool=EGO_POOL)["ego_pool"],
        **_attention(config),
        **_path_losses(config, "plan"),
        "mask_tiled": True,
    }


def _attention(config: Config) -> dict[str, Any]:
    settings = given(config, hidden_channel=128, num_heads=8, dropout=0.1)
    return {
        "hidden_channels": settings["hidden_channel"],
        "num_heads": settings["num_heads"],
        "dropout": settings["dropout"],
    }


def _path_losses(config: Config, task: str) -> dict[str, Any]:
    choice, places = config[f"loss_{task}_cls"], config[f"loss_{task}_reg"]
    only_known(f"loss_{task}_cls", choice, FOCAL)
    only_known(f"loss_{task}_reg", places, L1)
    focal = given(choice, alpha=0.25, gamma=2.0, loss_weight=1.0)
    return {
        "classification_weight": focal["loss_weight"],
        "regression_weight": given(places, loss_weight=1.0)["loss_weight"],
        "alpha": focal["alpha"],
        "gamma": focal["gamma"],
    }


def _grid(section: Config) -> dict[str, Any]:
    """The grid of a head and the range of the map that it reads: the first scope is that of the rows, y."""
    rows, columns = section["input_scope"]
    y, x = section["output_scope"]
    return {
        "point_cloud_range": [columns[0], rows[0], HEIGHT[0], columns[1], rows[1], HEIGHT[1]],
        "x": [float(value) for value in x],
        "y": [float(value) for value in y],
        "prescale_factor": section.get("prescale_factor", 1.0),
    }


BUILDERS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "SegMapHead": _map_head,
    "BEVOCCHead": _occupancy_head,
    "NaiveMotionHead": _motion_head,
    "AnchorPlannerHead": _planning_head,
}
