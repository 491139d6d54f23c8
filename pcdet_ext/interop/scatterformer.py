"""ScatterFormer (github.com/skyhehe123/ScatterFormer): its configurations and checkpoints in this library."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pcdet_ext.interop import openpcdet, openpcdet_heads
from pcdet_ext.interop.openpcdet_settings import Config
from pcdet_ext.interop.parameters import first_prefix
from pcdet_ext.interop.settings import given
from pcdet_ext.mixers.linear_attention import LinearAttention
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.backbones.scatterformer import CrossWindowInteraction, PillarPooling, ScatterFormerStage
from pcdet_ext.models.bev import BEV_BACKBONES
from pcdet_ext.models.detector import VoxelDetector
from pcdet_ext.models.encoders import ENCODERS

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
    module, rename = build(config)
    if state_dict is not None:
        openpcdet.load_official(module, state_dict.get("model_state", state_dict), rename)
    return module.eval()


def build(config: Config) -> tuple[nn.Module, Callable[[str], str]]:
    """The untrained module, and how its published parameter names become ours."""
    for key, (make, rename) in PARTS.items():
        if key in config:
            return make(config), rename
    given = ", ".join(map(str, config))
    raise ValueError(f"the configuration needs one of {', '.join(PARTS)} to tell what it is of; it has {given}")


def _attention(config: Config) -> nn.Module:
    _need(config, ("dim", "num_heads"), "attention layer")
    return LinearAttention(config["dim"], config["num_heads"], config.get("qkv_bias", False))


def _cross_window(config: Config) -> nn.Module:
    _need(config, ("embed_dim", "conv_size"), "cross-window layer")
    side = config["conv_size"] - 1
    return CrossWindowInteraction(config["embed_dim"], (None, side, side))


def _block(config: Config) -> nn.Module:
    keys = ("embed_dim", "win_size", "num_layers", "nhead")
    _need(config, keys, "block")
    channels, side, layers, heads = (config[key] for key in keys)
    return ScatterFormerStage(channels, (None, side, side), layers, heads)


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


ATTENTION = {"proj.": "out_proj."}
INTERACTION = {
    "bn.": "norm.",
    "conv_k.": "cube.",
    "conv_h.": "along_x.",
    "conv_w.": "along_y.",
    "bn2.": "feed.0.",
    "fc1.": "feed.1.",
    "fc2.": "feed.3.",
}
POOLING = {"self_attn.": "attention.", "pos_embedding.": "position."}
BACKBONE = {
    "cpe.": "stem.",
    "stage1.1.": "norms.0.",
    "stage1.2.": "halve.",
    "stage2.1.": "norms.1.",
}


def attention_name(name: str) -> str:
    """Our name for a published parameter of the attention layer."""
    return first_prefix(ATTENTION, name)


def interaction_name(name: str) -> str:
    """Our name for a published parameter of the interaction across windows."""
    return first_prefix(INTERACTION, name)


def pooling_name(name: str) -> str:
    """Our name for a published parameter of the pillar pooling."""
    return first_prefix(POOLING, name)


def stage_name(name: str) -> str:
    """Our name for a published parameter of a block of layers."""
    if found := re.match(r"(norm|attn|cffn)_layers\.(\d+)\.", name):
        rest = name[found.end() :]
        ours = {
            "norm": f"attention.{found[2]}.mix.norm.{rest}",
            "attn": f"attention.{found[2]}.mix.module.{attention_name(rest)}",
            "cffn": f"interaction.{found[2]}.{interaction_name(rest)}",
        }
        return ours[found[1]]
    return name


def backbone_name(name: str) -> str:
    """Our name for a published parameter of the backbone."""
    if found := re.match(r"stage([12])\.0\.", name):
        return f"stages.{int(found[1]) - 1}.{stage_name(name[found.end() :])}"
    if name.startswith("app."):
        return f"pool.{pooling_name(name.removeprefix('app.'))}"
    return first_prefix(BACKBONE, name)


def detector_name(name: str) -> str:
    """Our name for a published parameter of a detector."""
    prefix, _, rest = name.partition(".")
    return f"backbone.{backbone_name(rest)}" if prefix == "backbone_3d" else openpcdet.our_name(name)


# What can be built and how its parameters are renamed, by the setting that only its configuration has.
PARTS: dict[str, tuple[Callable[[Config], nn.Module], Callable[[str], str]]] = {
    "BACKBONE_3D": (_detector, detector_name),
    "WIN_SIZE": (_backbone, backbone_name),
    "NUM_SBB": (_bev_backbone, openpcdet.our_name),
    "NUM_FILTERS": (_encoder, openpcdet.our_name),
    "nhead": (_block, stage_name),
    "conv_size": (_cross_window, interaction_name),
    "pillar_size": (_pooling, pooling_name),
    "num_heads": (_attention, attention_name),
}


def encoder(config: Config) -> dict[str, Any]:
    """Our encoder for a VFE section, its voxels in the published order."""
    _check_name("VFE", config, "DynamicVoxelVFE")
    return openpcdet.encoder(given(config, NAME="DynamicVoxelVFE"), None, None) | {"x_major": True}


def backbone(config: Config) -> dict[str, Any]:
    """The configuration of our `ScatterFormer` for a BACKBONE_3D section."""
    _check_name("BACKBONE_3D", config, "ScatterFormer")
    _need(config, ("FEATURE_DIM", "WIN_SIZE"), "backbone")
    return {
        "name": "ScatterFormer",
        "channels": config["FEATURE_DIM"],
        "window": [None, config["WIN_SIZE"], config["WIN_SIZE"]],
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
    return openpcdet_heads.head(given(config, NAME=name), post_processing, detector["CLASS_NAMES"])


def _need(config: Config, keys: tuple[str, ...], what: str) -> None:
    if missing := [key for key in keys if key not in config]:
        given = ", ".join(map(str, config))
        raise ValueError(f"the configuration of the {what} needs {', '.join(missing)}; it has {given}")


def _check_name(section: str, config: Config, known: str) -> None:
    if config.get("NAME", known) != known:
        raise ValueError(f"{section}: {config['NAME']!r} is not in this library; known: {known}")
