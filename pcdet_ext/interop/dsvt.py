"""DSVT (github.com/Haiyang-W/DSVT): its configurations and checkpoints in this library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pcdet_ext.interop import openpcdet, openpcdet_backbones, openpcdet_heads
from pcdet_ext.interop.openpcdet_settings import Config
from pcdet_ext.interop.parameters import first_prefix
from pcdet_ext.interop.settings import given
from pcdet_ext.models.backbones.dsvt import DSVT
from pcdet_ext.models.detector import VoxelDetector
from pcdet_ext.ops import grid_size

POOLINGS = {"attention": "attention", "linear": "linear", "maxpool": "max"}


def from_official(config: Config, state_dict: Mapping[str, Any] | None = None) -> nn.Module:
    """A published DSVT with its parameters, in eval mode.

    config: of a detector, CLASS_NAMES, POINT_CLOUD_RANGE, VOXEL_SIZE, NUM_POINT_FEATURES, VFE, BACKBONE_3D,
    BACKBONE_2D and DENSE_HEAD; or the section BACKBONE_3D alone, for the backbone. state_dict: parameters, or a
    checkpoint with them under "model_state".
    Raises ValueError for what this library does not have or that does not fit.
    """
    module: nn.Module
    rename = backbone_name
    if "BACKBONE_3D" in config:
        module, rename = _detector(config), detector_name
    else:
        node = backbone(config)
        module = DSVT(in_channels=node["channels"][0], grid=grid(config), **_without_name(node))
    if state_dict is not None:
        openpcdet.load_official(module, state_dict.get("model_state", state_dict), rename)
    return module.eval()


def _without_name(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "name"}


def _detector(config: Config) -> VoxelDetector:
    needed = (
        "CLASS_NAMES",
        "POINT_CLOUD_RANGE",
        "VOXEL_SIZE",
        "NUM_POINT_FEATURES",
        "VFE",
        "BACKBONE_2D",
        "DENSE_HEAD",
    )
    for key in needed:
        if key not in config:
            raise ValueError(f"the configuration of a detector needs {key!r}, it has {', '.join(map(str, config))}")
    head = config["DENSE_HEAD"]
    _check_grid(config)
    whole = {"partial_cells": False}  # a map of partial cells would be larger than the range
    detector = VoxelDetector(
        classes=config["CLASS_NAMES"],
        point_cloud_range=config["POINT_CLOUD_RANGE"],
        num_point_features=config["NUM_POINT_FEATURES"],
        voxel_size=config["VOXEL_SIZE"],
        encoder=openpcdet.encoder(config["VFE"], None, None) | {"x_major": True},
        backbone=backbone(config["BACKBONE_3D"]) | whole,
        bev_backbone=openpcdet_backbones.bev_backbone(given(config["BACKBONE_2D"], NAME="BaseBEVResBackbone")),
        head=openpcdet_heads.head(head, config.get("POST_PROCESSING", {}), config["CLASS_NAMES"], windows=True),
    )
    _check_maps(config, detector)
    return detector


def _check_grid(config: Config) -> None:
    expected = grid_size(config["POINT_CLOUD_RANGE"], config["VOXEL_SIZE"])
    sizes = {"sparse_shape": config["BACKBONE_3D"]["INPUT_LAYER"]["sparse_shape"]}
    sizes |= {"GRID_SIZE": config["GRID_SIZE"]} if "GRID_SIZE" in config else {}
    for name, size in sizes.items():
        if list(size) != list(expected):
            raise ValueError(f"{name} is {list(size)}, but range and voxel size make {list(expected)} cells")


def _check_maps(config: Config, detector: VoxelDetector) -> None:
    """What follows the 3-D backbone must be set to the map it makes. Raises ValueError where it is not."""
    if detector.backbone is None:
        raise ValueError("a detector of DSVT needs its 3-D backbone")
    channels = detector.backbone.out_grid[0] * detector.backbone.out_channels
    expected = config.get("MAP_TO_BEV", {}).get("NUM_BEV_FEATURES", channels)
    if expected != channels:
        raise ValueError(f"NUM_BEV_FEATURES is {expected}, but the backbone's map has {channels} channels")
    stride = openpcdet_heads.stride(config["DENSE_HEAD"])
    if detector.stride != stride:
        raise ValueError(f"the head is set to a stride of {stride}, but its map has {detector.stride}")


def grid(config: Config) -> tuple[int, int, int]:
    """Cells (Z, Y, X) of a BACKBONE_3D section."""
    width, height, depth = config["INPUT_LAYER"]["sparse_shape"]
    return depth, height, width


def backbone(config: Config) -> dict[str, Any]:
    """The configuration of our `DSVT` for a BACKBONE_3D section.

    Raises ValueError for settings that this library does not have or that contradict each other.
    """
    _check_backbone(config)
    return partition(config["INPUT_LAYER"]) | {
        "name": "DSVT",
        "num_heads": config["nhead"],
        "ffn_channels": config["dim_feedforward"],
        "pooling": POOLINGS[config.get("reduction_type", "attention")],
        "activation": config["activation"],
        "dropout": float(config["dropout"]),
        "recompute": bool(config.get("ues_checkpoint", config.get("USE_CHECKPOINT", False))),
        "count_empty": True,  # this and mixed_positions: checkpoints were trained so
    }


def partition(config: Config) -> dict[str, Any]:
    """What the section INPUT_LAYER says of our `DSVT`."""
    return {
        "channels": config["d_model"],
        "num_blocks": [count for _, count in config["set_info"]],
        "group_sizes": [size for size, _ in config["set_info"]],
        "windows": [_zyx(window) for window in config["window_shape"]],
        "shifts": [[_zyx(shift) for shift in both] for both in config["shifts_list"]],
        "hybrid_factor": _zyx(config["hybrid_factor"]),
        "pool_strides": [_zyx(stride) for stride in config["downsample_stride"]],
        "normalize_position": config["normalize_pos"],
        "mixed_positions": True,
        "partial_cells": True,
    }


def _check_backbone(config: Config) -> None:
    if config.get("NAME", "DSVT") != "DSVT":
        raise ValueError(f"BACKBONE_3D: {config['NAME']!r} is not a DSVT")
    for key in ("INPUT_LAYER", "set_info", "d_model", "nhead", "dim_feedforward", "dropout", "activation"):
        if key not in config:
            raise ValueError(f"BACKBONE_3D needs {key!r}, it has {', '.join(map(str, config))}")
    for key in ("set_info", "d_model"):
        if list(config["INPUT_LAYER"][key]) != list(config[key]):
            raise ValueError(f"{key} is {config[key]}, but in INPUT_LAYER {config['INPUT_LAYER'][key]}")
    if unknown := set(config.get("block_name", ())) - {"DSVTBlock"}:
        raise ValueError(f"block_name: {', '.join(sorted(unknown))} is not in this library; known: DSVTBlock")
    if config.get("reduction_type", "attention") not in POOLINGS:
        raise ValueError(f"reduction_type: {config['reduction_type']!r} is not known; known: {', '.join(POOLINGS)}")
    if config.get("conv_out_channel", config["d_model"][-1]) != config["d_model"][-1]:
        raise ValueError(f"conv_out_channel is {config['conv_out_channel']}, but d_model ends {config['d_model'][-1]}")


def _zyx(xyz: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = xyz
    return z, y, x


LAYER = {
    "win_attn.self_attn.": "block.mix.module.",
    "win_attn.norm1.": "block.mix.norm.",
    "win_attn.linear1.": "block.feed.module.in_proj.",
    "win_attn.linear2.": "block.feed.module.out_proj.",
    "win_attn.norm2.": "block.feed.norm.",
}
POOL = {"self_attn.": "attention.", "pos_embedding": "position", "linear1.": "linear."}


def backbone_name(name: str) -> str:
    """Our name for a published parameter of the backbone."""
    name = name.replace("position_embedding_head.", "position.mlp.")
    if found := re.match(r"input_layer\.posembed_layers\.(\d+)\.(\d+)\.(\d+)\.", name):
        return f"stages.{found[1]}.{found[2]}.layers.{found[3]}.{name[found.end() :]}"
    if found := re.match(r"stage_(\d+)\.(\d+)\.encoder_list\.(\d+)\.", name):
        return f"stages.{found[1]}.{found[2]}.layers.{found[3]}.{first_prefix(LAYER, name[found.end() :])}"
    if found := re.match(r"residual_norm_stage_(\d+)\.(\d+)\.", name):
        return f"stages.{found[1]}.{found[2]}.norm.{name[found.end() :]}"
    if found := re.match(r"stage_(\d+)_reduction\.", name):
        return f"pools.{found[1]}.{first_prefix(POOL, name[found.end() :])}"
    return name


def detector_name(name: str) -> str:
    """Our name for a published parameter of a detector."""
    prefix, _, rest = name.partition(".")
    return f"backbone.{backbone_name(rest)}" if prefix == "backbone_3d" else openpcdet.our_name(name)
