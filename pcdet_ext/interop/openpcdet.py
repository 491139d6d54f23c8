"""Detectors of OpenPCDet: their configurations and checkpoints in this library."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.interop import openpcdet_heads
from pcdet_ext.interop.openpcdet_backbones import backbone, bev_backbone, pillarnet_neck
from pcdet_ext.interop.openpcdet_settings import Config, known_name
from pcdet_ext.interop.parameters import in_spconv_2_order, renamed
from pcdet_ext.models.bev import PillarNetNeck
from pcdet_ext.models.detector import VoxelDetector

PREFIXES = {"vfe": "encoder", "backbone_3d": "backbone", "backbone_2d": "bev_backbone", "dense_head": "head"}
OF_GROUP = re.compile(r"^(rpn_heads\.\d+)\.(?=(?:de)?blocks\.)")  # a backbone of a group of anchors, which is its head
ON_SITES = ("SparseCenterHead", "VoxelNeXtHead")  # heads that read no map
WITHOUT_PARAMETERS = ("global_step",)  # entries of official state dicts that are no parameter


def from_official(config: Config, state_dict: Mapping[str, Any] | None = None) -> VoxelDetector:
    """An OpenPCDet detector with its parameters, in eval mode.

    config: `model` (the MODEL section; also `model_cfg`), `class_names`, `point_cloud_range`, `voxel_size`,
    `num_point_features`, and for encoders with hard voxels `voxel_processor` (MAX_POINTS_PER_VOXEL,
    MAX_NUMBER_OF_VOXELS) or `voxelize` (max_points, max_voxels; also max_num_points_per_voxel, max_num_voxels).
    state_dict: parameters, or a checkpoint with them under "model_state".
    Raises ValueError for what this library does not have or that does not fit.
    """
    detector = detector_from_config(
        one_of(config, "model", "model_cfg"),
        one_of(config, "class_names"),
        one_of(config, "point_cloud_range"),
        one_of(config, "voxel_size"),
        one_of(config, "num_point_features"),
        *_voxel_caps(config),
        channel_divisor=config.get("channel_div", 1),
    )
    if state_dict is not None:
        load_official(detector, state_dict.get("model_state", state_dict))
    return detector.eval()


def one_of(config: Config, *names: str) -> Any:
    """The setting with the first of these names that the configuration has. Raises ValueError where it has none."""
    for name in names:
        if name in config:
            return config[name]
    raise ValueError(f"the configuration needs {names[0]!r}, it has {', '.join(map(str, config))}")


def _voxel_caps(config: Config) -> tuple[int | None, int | tuple[int, int] | None]:
    """Points per voxel, and voxels per frame (in training and in testing), or None where there is no limit."""
    processor, voxelize = config.get("voxel_processor") or {}, config.get("voxelize") or {}
    if voxelize:
        points = one_of(voxelize, "max_num_points_per_voxel", "max_points")
        return points, one_of(voxelize, "max_num_voxels", "max_voxels")
    if "MAX_POINTS_PER_VOXEL" not in processor:
        return None, None
    voxels = processor["MAX_NUMBER_OF_VOXELS"]
    return processor["MAX_POINTS_PER_VOXEL"], (voxels["train"], voxels["test"])


def detector_from_config(
    model_cfg: Config,
    class_names: Sequence[str],
    point_cloud_range: Sequence[float],
    voxel_size: Sequence[float],
    num_point_features: int,
    max_points: int | None = None,
    max_voxels: int | tuple[int, int] | None = None,
    channel_divisor: int = 1,
) -> VoxelDetector:
    """The untrained detector that an official MODEL section describes.

    Args:
        model_cfg: the section.
        class_names: in order.
        point_cloud_range: x, y and z minimum, then their maximum, in metres.
        voxel_size: along x, y and z, in metres.
        num_point_features: columns of a point.
        max_points: of a voxel, where the encoder has hard ones.
        max_voxels: of a frame, a number or a pair (training, testing), likewise.
        channel_divisor: makes the 3-D backbone so many times as narrow.

    Raises:
        ValueError: a component or setting is not in this library.
    """
    _check_one_stage(model_cfg)
    nodes: dict[str, Any] = {
        "encoder": encoder(_section(model_cfg, "VFE"), max_points, max_voxels),
        "backbone": backbone(model_cfg.get("BACKBONE_3D"), channel_divisor),
        "bev_backbone": map_backbone(model_cfg),
        "head": openpcdet_heads.head(
            _section(model_cfg, "DENSE_HEAD"), model_cfg.get("POST_PROCESSING", {}), class_names
        ),
    }
    detector = VoxelDetector(class_names, point_cloud_range, num_point_features, voxel_size, **nodes)
    published = openpcdet_heads.stride(model_cfg["DENSE_HEAD"])
    if detector.stride != published:
        raise ValueError(f"the head is set to a stride of {published}, but its map has {detector.stride}")
    return detector


def _check_one_stage(model_cfg: Config) -> None:
    """Raise ValueError for a detector with a second stage, or whose boxes come from single points."""
    for section in ("ROI_HEAD", "POINT_HEAD", "PFE"):
        if section in model_cfg:
            part, whole = model_cfg[section].get("NAME"), model_cfg.get("NAME")
            raise ValueError(
                f"{section}: {part!r} is not in this library, which has detectors of one stage on voxels: {whole!r} is "
                "of two stages, or reads single points"
            )


def map_backbone(model_cfg: Config) -> dict[str, Any] | None:
    """Our 2-D backbone for an official MODEL section; heads on occupied cells have none."""
    if "BACKBONE_2D" not in model_cfg and _section(model_cfg, "DENSE_HEAD")["NAME"] in ON_SITES:
        return None
    section = _section(model_cfg, "BACKBONE_2D")
    if section["NAME"] != "BaseBEVBackboneV1":
        return bev_backbone(section)
    return pillarnet_neck(section, (model_cfg.get("BACKBONE_3D") or {}).get("NAME"))


def _section(model_cfg: Config, name: str) -> Config:
    """A section that every detector of voxels has."""
    section = model_cfg.get(name)
    if not isinstance(section, Mapping):
        raise ValueError(f"model: a detector needs the section {name}, it has {', '.join(map(str, model_cfg))}")
    return section


ENCODERS = {
    "PillarVFE": "PillarVFE",
    "MeanVFE": "MeanVFE",
    "DynPillarVFE": "DynamicPillarVFE",
    "DynamicPillarVFE": "DynamicPillarVFE",
    "DynamicPillarVFESimple2D": "DynamicPillarVFESimple2D",
    "DynamicVoxelVFE": "DynamicVoxelVFE",
    "DynPillarVFE3D": "DynamicVoxelVFE",
    "DynMeanVFE": "DynamicMeanVFE",
    "DynamicMeanVFE": "DynamicMeanVFE",
}


def encoder(config: Config, max_points: int | None, max_voxels: int | tuple[int, int] | None) -> dict[str, Any]:
    """Our encoder for a VFE section.

    Args:
        config: the section.
        max_points: of a voxel, where the encoder has hard ones.
        max_voxels: of a frame, a number or a pair (training, testing), likewise.

    Raises:
        ValueError: the encoder is not in this library, or the limits are missing.
    """
    name = known_name("VFE", config["NAME"], ENCODERS)
    node: dict[str, Any] = {"name": name}
    if name in ("PillarVFE", "MeanVFE"):
        if max_points is None or max_voxels is None:
            raise ValueError(f"{config['NAME']} needs MAX_POINTS_PER_VOXEL and MAX_NUMBER_OF_VOXELS in voxel_processor")
        node |= {"max_points": max_points, "max_voxels": max_voxels}
    if name == "PillarVFE":
        node["count_padding"] = True  # checkpoints were trained so
    if "NUM_FILTERS" in config:
        node |= {
            "num_filters": config["NUM_FILTERS"],
            "with_distance": config.get("WITH_DISTANCE", False),
            "use_absolute_xyz": config["USE_ABSLOTE_XYZ"],
            "use_norm": config["USE_NORM"],
        }
    return node


def load_official(
    detector: nn.Module, state_dict: Mapping[str, Tensor], rename: Callable[[str], str] | None = None
) -> None:
    """Load an official state dict into a detector, every entry of it. Arguments as in `official_state`, and the same
    errors.
    """
    detector.load_state_dict(official_state(detector, state_dict, rename))


def official_state(
    detector: nn.Module, state_dict: Mapping[str, Tensor], rename: Callable[[str], str] | None = None
) -> dict[str, Tensor]:
    """An official state dict in the names and shapes of a detector; differentiable.

    Args:
        detector: for whose state dict.
        state_dict: published tensors by name; weights of sparse convolutions are brought into our layout, see
            `our_value`.
        rename: our name for a published one; by default only the prefixes differ, see `our_name`.

    Raises:
        ValueError: entries are missing, have no place or another shape; the message names them.
    """
    parameters = {name: value for name, value in state_dict.items() if name not in WITHOUT_PARAMETERS}
    neck = isinstance(getattr(detector, "bev_backbone", None), PillarNetNeck)
    return renamed(detector, parameters, rename or (pillarnet_name if neck else our_name), our_value)


def pillarnet_name(name: str) -> str:
    """Our name for a parameter of PillarNet, whose dense stage stands in its 3-D backbone there."""
    return our_name(name.replace("backbone_3d.conv5.", "backbone_2d.conv5.", 1))


def our_name(name: str) -> str:
    """Our name for a published parameter of a detector whose parts have the published names inside."""
    prefix, _, rest = name.partition(".")
    inside = OF_GROUP.sub(r"\1.bev_backbone.", rest)
    return f"{PREFIXES.get(prefix, prefix)}.{inside}"


def our_value(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """A published tensor in the layout of ours, where it is the weight of a sparse convolution.

    spconv 1 has the order [(kz,) ky, kx, in, out] instead of [out, (kz,) ky, kx, in]; sparse convolutions in two
    dimensions have no kz; and where a kernel has one cell, spconv reads the memory of the weight as [in, out] whatever
    its shape says, so that trained weights are to be read so.

    Args:
        name: ours.
        value: the published tensor.
        shape: ours.
    """
    if len(shape) != 5 or value.ndim not in (4, 5):
        return value
    if value.ndim == 4 and math.prod(shape[1:4]) == 1 and value.numel() == math.prod(shape):
        return value.reshape(shape[4], shape[0]).t().reshape(shape)
    if value.ndim == 4:
        planar = torch.Size((shape[0], *shape[2:]))
        return (value.movedim(-1, 0) if value.shape != planar else value).unsqueeze(1)
    return in_spconv_2_order(name, value, shape)
