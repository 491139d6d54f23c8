"""ScatterFormer (github.com/skyhehe123/ScatterFormer): its configurations and checkpoints in this library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pcdet_ext.interop import openpcdet, openpcdet_heads
from pcdet_ext.interop.openpcdet_heads import Config
from pcdet_ext.mixers.linear_attention import LinearAttention
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.backbones.scatterformer import CrossWindowFFN, PillarPooling, ScatterFormerBlock
from pcdet_ext.models.bev.backbones import BEV_BACKBONES
from pcdet_ext.models.detector import VoxelDetector
from pcdet_ext.models.encoders.points import ENCODERS

DETECTOR_KEYS = (
    "CLASS_NAMES",
    "point_cloud_range",
    "voxel_size",
    "num_point_features",
    "VFE",
    "BACKBONE_3D",
    "BACKBONE_2D",
    "DENSE_HEAD",
)


def from_official(config: Config, state_dict: Mapping[str, Any] | None = None) -> nn.Module:
    """A published ScatterFormer with its parameters, in eval mode.

    config: of a detector, CLASS_NAMES, point_cloud_range, voxel_size, num_point_features, VFE, BACKBONE_3D, BACKBONE_2D
    and DENSE_HEAD; or the section BACKBONE_3D with input_channels and grid_size (x, y, z), for the backbone alone; or
    what a part of it is built with, see `PARTS`. state_dict: parameters, or a checkpoint with them under "model_state".
    Raises ValueError for what this library does not have or that does not fit.
    """
    module = next((make(config) for key, make in PARTS.items() if key in config), None)
    if module is None:
        given = ", ".join(map(str, config))
        raise ValueError(f"the configuration needs one of {', '.join(PARTS)} to tell what it is of; it has {given}")
    if state_dict is not None:
        openpcdet.load_official(module, state_dict.get("model_state", state_dict))
    return module.eval()


def _attention(config: Config) -> nn.Module:
    _need(config, ("dim", "num_heads"), "attention layer")
    return LinearAttention(config["dim"], config["num_heads"], config.get("qkv_bias", False))


def _cross_window(config: Config) -> nn.Module:
    _need(config, ("embed_dim", "conv_size"), "cross-window layer")
    return CrossWindowFFN(config["embed_dim"], config["conv_size"] - 1)


def _block(config: Config) -> nn.Module:
    keys = ("embed_dim", "win_size", "num_layers", "nhead")
    _need(config, keys, "block")
    return ScatterFormerBlock(*(config[key] for key in keys))


def _pooling(config: Config) -> nn.Module:
    _need(config, ("dim", "pillar_size"), "pillar pooling")
    return PillarPooling(config["dim"], config["pillar_size"], nonnegative_query=True)


def _encoder(config: Config) -> nn.Module:
    keys = ("num_point_features", "point_cloud_range", "voxel_size")
    _need(config, keys, "voxel encoder")
    channels, extent, size = (config[key] for key in keys)
    return ENCODERS.build(encoder(config), in_channels=channels, point_cloud_range=extent, voxel_size=size)


def _bev_backbone(config: Config) -> nn.Module:
    _need(config, ("input_channels",), "2-D backbone")
    return BEV_BACKBONES.build(bev_backbone(config), in_channels=config["input_channels"])


def _backbone(config: Config) -> nn.Module:
    _need(config, ("input_channels", "grid_size"), "backbone")
    grid = tuple(reversed(config["grid_size"]))
    return BACKBONES.build(backbone(config), in_channels=config["input_channels"], grid=grid)


def _detector(config: Config) -> VoxelDetector:
    _need(config, DETECTOR_KEYS, "detector")
    detector = VoxelDetector(
        classes=config["CLASS_NAMES"],
        point_cloud_range=config["point_cloud_range"],
        num_point_features=config["num_point_features"],
        voxel_size=config["voxel_size"],
        encoder=encoder(config["VFE"]),
        backbone=backbone(config["BACKBONE_3D"]),
        bev_backbone=bev_backbone(config["BACKBONE_2D"]),
        head=head(config["DENSE_HEAD"], config),
    )
    published = openpcdet_heads.stride(config["DENSE_HEAD"])
    if detector.stride != published:
        raise ValueError(f"the head is set to a stride of {published}, but its map has {detector.stride}")
    return detector


# What can be built, by the setting that only its configuration has.
PARTS: dict[str, Callable[[Config], nn.Module]] = {
    "BACKBONE_3D": _detector,
    "WIN_SIZE": _backbone,
    "NUM_SBB": _bev_backbone,
    "NUM_FILTERS": _encoder,
    "nhead": _block,
    "conv_size": _cross_window,
    "pillar_size": _pooling,
    "num_heads": _attention,
}


def encoder(config: Config) -> dict[str, Any]:
    """Our encoder for a VFE section, its voxels in the published order."""
    _check_name("VFE", config, "DynamicVoxelVFE")
    return openpcdet.encoder({**config, "NAME": "DynamicVoxelVFE"}, None, None) | {"x_major": True}


def backbone(config: Config) -> dict[str, Any]:
    """The configuration of our `ScatterFormer` for a BACKBONE_3D section."""
    _check_name("BACKBONE_3D", config, "ScatterFormer")
    _need(config, ("FEATURE_DIM", "WIN_SIZE"), "backbone")
    return {
        "name": "ScatterFormer",
        "channels": config["FEATURE_DIM"],
        "window": config["WIN_SIZE"],
        "nonnegative_query": True,
    }


def bev_backbone(config: Config) -> dict[str, Any]:
    """The configuration of our `CascadeDEDBackbone` for a BACKBONE_2D section."""
    _check_name("BACKBONE_2D", config, "CascadeDEDBackbone")
    keys = ("NUM_LAYERS", "NUM_SBB", "DOWN_STRIDES", "FEATURE_DIM")
    _need(config, keys, "2-D backbone")
    return {"name": "CascadeDEDBackbone", **{key.lower(): config[key] for key in keys}}


def head(config: Config, detector: Config) -> dict[str, Any]:
    """The configuration of our head for a DENSE_HEAD section; the whole configuration gives the classes."""
    name = config.get("NAME", "TransFusionHead" if "NUM_PROPOSALS" in config else "CenterHead")
    post_processing = detector.get("POST_PROCESSING", {})
    return openpcdet_heads.head({**config, "NAME": name}, post_processing, detector["CLASS_NAMES"])


def _need(config: Config, keys: tuple[str, ...], what: str) -> None:
    if missing := [key for key in keys if key not in config]:
        given = ", ".join(map(str, config))
        raise ValueError(f"the configuration of the {what} needs {', '.join(missing)}; it has {given}")


def _check_name(section: str, config: Config, known: str) -> None:
    if config.get("NAME", known) != known:
        raise ValueError(f"{section}: {config['NAME']!r} is not in this library; known: {known}")
