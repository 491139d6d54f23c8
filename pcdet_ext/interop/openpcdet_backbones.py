"""OpenPCDet's settings of backbones (`BACKBONE_3D`, `BACKBONE_2D`) in the words of this library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pcdet_ext.interop.openpcdet_settings import Config, known_name
from pcdet_ext.interop.settings import skip

SECOND = ("VoxelBackBone8x", "VoxelResBackBone8x")
PILLARNET_CHANNELS = (32, 64, 128, 256)
BACKBONES: dict[str, Callable[[Config, int], dict[str, Any]]] = {
    "VoxelBackBone8x": lambda config, divisor: _second(config, divisor, (16, 32, 64, 64, 128)),
    "VoxelResBackBone8x": lambda config, divisor: (
        _second(config, divisor, (16, 32, 64, 128, 128)) | {"use_bias": config.get("USE_BIAS", True)}
    ),
    "VoxelResBackBone8xVoxelNeXt": lambda config, divisor: _voxelnext(config, divisor),
    "VoxelResBackBone8xVoxelNeXt2D": lambda _, divisor: {
        "channels": [width // divisor for width in (32, 64, 128, 256, 256, 256)],
        "out_channels": 256 // divisor,
    },
    "PillarBackBone8x": lambda _, divisor: {"channels": [width // divisor for width in PILLARNET_CHANNELS]},
    "PillarRes18BackBone8x": lambda _, divisor: {"channels": [width // divisor for width in PILLARNET_CHANNELS]},
}
RESIDUAL = {"PillarBackBone8x": False, "PillarRes18BackBone8x": True}  # PillarNet's, and whether their stages are


def backbone(config: Config | None, channel_divisor: int) -> dict[str, Any] | None:
    """Our 3-D backbone for a BACKBONE_3D section; widths that the published code has as constants are divided."""
    if config is None:
        return None
    make = known_name("BACKBONE_3D", config["NAME"], BACKBONES)
    return {"name": config["NAME"], **make(config, channel_divisor)}


def _second(config: Config, divisor: int, channels: Sequence[int]) -> dict[str, Any]:
    return {"channels": [width // divisor for width in channels], "last_pad": config.get("last_pad", 0)}


def _voxelnext(config: Config, divisor: int) -> dict[str, Any]:
    return {
        "channels": config.get("CHANNELS", [width // divisor for width in (16, 32, 64, 128, 128)]),
        "kernel_sizes": config.get("SPCONV_KERNEL_SIZES", [3, 3, 3, 3]),
        "out_channels": config.get("OUT_CHANNEL", 128 // divisor),
    }


BEV_BACKBONES = {"BaseBEVBackbone": "BaseBEVBackbone", "BaseBEVResBackbone": "BaseBEVResBackbone"}


def bev_backbone(config: Config) -> dict[str, Any]:
    """Our 2-D backbone for a BACKBONE_2D section."""
    return {
        "name": known_name("BACKBONE_2D", config["NAME"], BEV_BACKBONES),
        "layer_nums": config["LAYER_NUMS"],
        "layer_strides": config["LAYER_STRIDES"],
        "num_filters": config["NUM_FILTERS"],
        "upsample_strides": config.get("UPSAMPLE_STRIDES", ()),
        "num_upsample_filters": config.get("NUM_UPSAMPLE_FILTERS", ()),
        "use_conv_for_no_stride": config.get("USE_CONV_FOR_NO_STRIDE", False),
    }


def pillarnet_neck(config: Config, backbone_name: str | None) -> dict[str, Any]:
    """Our 2-D backbone for PillarNet's BACKBONE_2D section behind a 3-D backbone of this name."""
    if backbone_name not in RESIDUAL:
        raise ValueError(f"BaseBEVBackboneV1 goes with {' or '.join(RESIDUAL)}, not {backbone_name}")
    skip(config, "LAYER_STRIDES")  # the published code does not read it
    return {
        "name": "PillarNetNeck",
        "layer_nums": config["LAYER_NUMS"],
        "num_filters": config["NUM_FILTERS"],
        "upsample_strides": config["UPSAMPLE_STRIDES"],
        "num_upsample_filters": config["NUM_UPSAMPLE_FILTERS"],
        "residual": RESIDUAL[backbone_name],
    }
