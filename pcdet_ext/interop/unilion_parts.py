"""UniLION's settings of encoder, 3-D backbone and map backbone (happinesslz/UniLION) in the words of this library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pcdet_ext.interop import lion
from pcdet_ext.interop.openpcdet_settings import Config, known_name
from pcdet_ext.interop.settings import skip
from pcdet_ext.ops import grid_size

OPERATORS = ("Mamba", "RWKV")
BEV_NORM = {"type": "BN", "eps": 1e-3, "momentum": 0.01}
BEV_UPSAMPLING = {"type": "deconv", "bias": False}


def encoder(config: Config) -> dict[str, Any]:
    """Our encoder for a section `pts_voxel_encoder`. Raises ValueError for one that this library does not have."""
    known_name("pts_voxel_encoder", config["type"], {"DynamicPillarVFE3D": None})
    cells = grid_size(config["point_cloud_range"], config["voxel_size"])
    if "grid_size" in config and tuple(config["grid_size"]) != tuple(cells):
        raise ValueError(f"grid_size must be {list(cells)}, as range and voxel size say, got {config['grid_size']}")
    return {
        "name": "DynamicVoxelVFE",
        "num_filters": config["num_filters"],
        "with_distance": config.get("with_distance", False),
        "use_absolute_xyz": config.get("use_absolute_xyz", True),
        "use_norm": config.get("use_norm", True),
        "x_major": True,
    }


LAST_ORDERS = ["x", "y"]  # of the layer behind the stages, whatever `direction` says


def backbone(config: Config) -> dict[str, Any]:
    """Our 3-D backbone for a section `pts_backbone`. Raises ValueError for what this library does not have."""
    known_name("pts_backbone", config["type"], {"Lion3DBackbone": None})
    widths, scales = config["layer_dim"], config["layer_down_scales"]
    _check_stages(config, widths, scales)
    described = config.get("sfd", True)
    node = {
        "name": "LION",
        **_operator(config["linear_operator"], widths),
        "windows": [list(reversed(window)) for window in config["window_shape"]],
        "group_sizes": config["group_size"],
        "scales": [[list(reversed(scale)) for scale in steps] for steps in scales],
        "generation": config["diff_scale"] if config["diffusion"] else 0.0,
        "shift": config["shift"],
        "orders": config["direction"],
        "widths": list(widths),
        "merge_repeated": True,
        "describe_input": True,
        "described": described,
        "recompute": True,
        "floor_keys": True,
    }
    if not config["diffusion"]:
        skip(config, "diff_scale")
    if list(config["direction"]) != LAST_ORDERS:
        node["out_orders"] = LAST_ORDERS
    return node


def _check_stages(config: Config, widths: Sequence[int], scales: Sequence[Any]) -> None:
    depths = [len(steps) for steps in scales]
    if list(config["depths"]) != depths or config["num_layers"] != len(depths) or len(widths) != len(depths):
        raise ValueError(
            f"num_layers {config['num_layers']}, depths {config['depths']} and layer_dim {widths} do not fit "
            f"layer_down_scales with {depths} entries"
        )
    if len(set(widths[:-1])) > 1:
        raise ValueError(f"layer_dim: only the last stage may have another width, got {widths}")


def _operator(config: Config, widths: Sequence[int]) -> dict[str, Any]:
    known_name("linear_operator", config["type"], dict.fromkeys(OPERATORS))
    if len(set(widths)) > 1 and config["cfg"].get("hidden_rate", 4) != 4:
        raise ValueError("linear_operator: hidden_rate other than 4 with stages of several widths is not known here")
    settings = dict(config["cfg"])
    if len(set(widths)) > 1:
        settings.pop("hidden_rate", None)  # each stage has four times its own width without it
    return lion.operator({"NAME": config["type"], "CFG": settings}, widths[0])


def bev_backbone(backbone_2d: Config, neck: Config) -> dict[str, Any]:
    """Our 2-D backbone for the sections `bev_backbone` and `pts_neck`.

    Raises ValueError for what this library does not have, or a neck that does not fit the backbone.
    """
    makers = {"ResSECOND": _second, "CustomResNet": _resnet}
    node: dict[str, Any] = known_name("bev_backbone", backbone_2d["type"], makers)(backbone_2d, neck)
    return node


def bev_in_channels(config: Config) -> int:
    """Channels of the map that a section `bev_backbone` takes."""
    channels: int = config["numC_input" if config["type"] == "CustomResNet" else "in_channels"]
    return channels


def _second(config: Config, neck: Config) -> dict[str, Any]:
    known_name("pts_neck", neck["type"], {"SECONDFPN": None, "SECONDFPN_CP": None})
    skip(config, "with_cp")  # memory against time: the same numbers
    skip(neck, "with_cp")
    if list(neck["in_channels"]) != list(config["out_channels"]):
        raise ValueError(f"pts_neck takes {neck['in_channels']} channels, its levels have {config['out_channels']}")
    for section, key, only in ((neck, "norm_cfg", BEV_NORM), (neck, "upsample_cfg", BEV_UPSAMPLING)):
        if key in section and dict(section[key]) != only:
            raise ValueError(f"pts_neck.{key}: {dict(section[key])} is not known here; known: {only}")
    return {
        "name": "BaseBEVResBackbone",
        "layer_nums": config["blocks_nums"],
        "layer_strides": config["layer_strides"],
        "num_filters": config["out_channels"],
        "upsample_strides": neck["upsample_strides"],
        "num_upsample_filters": neck["out_channels"],
        "use_conv_for_no_stride": neck.get("use_conv_for_no_stride", False),
    }


def _resnet(config: Config, neck: Config) -> dict[str, Any]:
    known_name("pts_neck", neck["type"], {"FPN_LSS": None})
    known_name("block_type", config.get("block_type", "Basic"), {"Basic": None})
    skip(config, "with_cp")
    counts, width = config.get("num_layer", [2, 2, 2]), config["numC_input"]
    widths = config.get("num_channels") or [width * 2 ** (i + 1) for i in range(len(counts))]
    levels = config.get("backbone_output_ids") or list(range(len(counts)))
    taken = [levels[i] for i in neck.get("input_feature_index", (0, 2))]
    if sum(widths[i] for i in taken) != neck["in_channels"]:
        raise ValueError(f"pts_neck takes {neck['in_channels']} channels, its levels have {[widths[i] for i in taken]}")
    return {
        "name": "ResNetFPN",
        "layer_nums": counts,
        "layer_strides": config.get("stride", [2] * len(counts)),
        "num_filters": widths,
        "levels": taken,
        "level_factor": neck.get("scale_factor", 4),
        "out_filters": neck["out_channels"],
        "out_factor": neck.get("extra_upsample", 2),
    }


def temporal(config: Config) -> dict[str, Any]:
    """What remembers the voxels of earlier frames, for the setting `max_seq_time`, with the published quirks."""
    quirks = ("truncate_cells", "cell_corners", "drop_all", "zero_voxel")
    return {"name": "VoxelFusion", "max_age": config["max_seq_time"], **dict.fromkeys(quirks, True)}
