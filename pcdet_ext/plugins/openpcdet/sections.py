"""Sections of OpenPCDet's MODEL configuration as nodes of ours, so that our schema checks them and names theirs.

A section is either `{NAME: PcdetExt, CONFIG: {name: LION, …}}` with our keys, or one that stands so in the published
forks: `NAME: LION3DBackboneOneStride` and the like, or that under CONFIG.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pcdet_ext.config import ConfigError, Node, Registry, suggest
from pcdet_ext.interop import dsvt, lion, openpcdet, openpcdet_backbones, scatterformer
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.bev import BEV_BACKBONES
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.heads import HEADS
from pcdet_ext.plugins.nodes import node_at, plain

NAME = "PcdetExt"  # by which OpenPCDet's configurations ask for components of this library
CONFIG = "CONFIG"
Reader = Callable[[Mapping[str, Any]], dict[str, Any]]


def _dynamic_encoder(config: Mapping[str, Any]) -> dict[str, Any]:
    return openpcdet.encoder(config, None, None) | {"x_major": True}


def _lion(config: Mapping[str, Any]) -> dict[str, Any]:
    return lion.backbone(config) | {"in_channels": config["FEATURE_DIM"]}


def _dsvt(config: Mapping[str, Any]) -> dict[str, Any]:
    return dsvt.backbone(config) | {"grid": list(dsvt.grid(config))}


# Published sections that OpenPCDet itself does not know, and ours for them.
ENCODER_READERS: dict[str, Reader] = dict.fromkeys(
    ("DynPillarVFE3D", "DynamicPillarVFE", "DynamicMeanVFE"), _dynamic_encoder
)
BACKBONE_READERS: dict[str, Reader] = {
    **dict.fromkeys(lion.FORMS, _lion),
    "ScatterFormer": scatterformer.backbone,
}
BEV_READERS: dict[str, Reader] = {"CascadeDEDBackbone": scatterformer.bev_backbone}
# Published sections that OpenPCDet knows under the same name: ours under CONFIG.
TWINS: dict[str, dict[str, Reader]] = {
    "VFE": dict.fromkeys(
        ("DynPillarVFE", "DynMeanVFE", "DynamicVoxelVFE", "DynamicPillarVFESimple2D"), _dynamic_encoder
    ),
    "BACKBONE_3D": {
        "DSVT": _dsvt,
        **dict.fromkeys(openpcdet_backbones.SECOND, lambda config: openpcdet_backbones.backbone(config, 1) or {}),
    },
    "BACKBONE_2D": dict.fromkeys(openpcdet_backbones.BEV_BACKBONES, openpcdet_backbones.bev_backbone),
    "DENSE_HEAD": {},
}
READERS: dict[str, dict[str, Reader]] = {
    "VFE": ENCODER_READERS,
    "BACKBONE_3D": BACKBONE_READERS,
    "BACKBONE_2D": BEV_READERS,
    "DENSE_HEAD": {},
}
REGISTRIES: dict[str, Registry] = {
    "VFE": ENCODERS,
    "BACKBONE_3D": BACKBONES,
    "BACKBONE_2D": BEV_BACKBONES,
    "DENSE_HEAD": HEADS,
}
INPUT = {"in_channels": "voxels with channels", "grid": "a grid (z, y, x) of"}
# What OpenPCDet reads of a section itself, and what the plugin does, besides NAME and CONFIG.
OTHER_KEYS = {"DENSE_HEAD": ("CLASS_AGNOSTIC", "STRIDE")}


def build(section: str, model_cfg: Mapping[str, Any], **context: Any) -> Any:
    """The component of this library that a section of MODEL describes.

    Args:
        section: "VFE", "BACKBONE_3D", "BACKBONE_2D" or "DENSE_HEAD".
        model_cfg: the section.
        context: what the component gets from OpenPCDet: channels, grid, range and so on.

    Raises:
        ConfigError: for a wrong or missing key, and a component that does not fit; the message names the section.
    """
    return REGISTRIES[section].build(node(section, model_cfg, context), **context)


def node(section: str, model_cfg: Mapping[str, Any], context: Mapping[str, Any] | None = None) -> Node:
    """The node of ours that a section describes, named as the section in messages; see `build`.

    Args:
        section: its name.
        model_cfg: the section.
        context: what it gets; what published sections say of their input is compared with it.

    Raises:
        ConfigError: the section cannot be read, or says something else of its input.
    """
    found = _read(section, plain(model_cfg))
    for key in ("in_channels", "grid"):
        said = found.pop(key, None)
        if context is not None and key in context and said not in (None, plain(context[key])):
            raise ConfigError(
                f"{found.where()}: the section is set to {INPUT[key]} {said}, but what comes before it makes "
                f"{plain(context[key])}"
            )
    return found


def _read(section: str, settings: Mapping[str, Any]) -> Node:
    if settings.get("NAME") != NAME:
        return _published(section, settings, f"MODEL.{section}")
    allowed = ("NAME", CONFIG, *OTHER_KEYS.get(section, ()))
    for key in settings:
        if key not in allowed:
            raise ConfigError(f"MODEL.{section}.{key}: {NAME} has no such key{suggest(key, allowed)}")
    config = settings.get(CONFIG)
    if not isinstance(config, Mapping):
        names = ", ".join(REGISTRIES[section].names())
        raise ConfigError(f"MODEL.{section}: {NAME} needs {CONFIG}: {{name: …}}, with a name out of {names}")
    if "NAME" in config:
        return _published(section, config, f"MODEL.{section}.{CONFIG}")
    return node_at(f"MODEL.{section}.{CONFIG}", config)


def _published(section: str, settings: Mapping[str, Any], where: str) -> Node:
    """Our node for a published section, every setting of which must be known."""
    readers = READERS[section] | TWINS[section]
    name = settings.get("NAME")
    if name not in readers:
        raise ConfigError(f"{where}.NAME: {name!r} is not in this library{suggest(str(name), readers)}")
    try:
        with every_setting_counts({"MODEL": {section: dict(settings)}}) as view:
            found = readers[name](view["MODEL"][section])
    except KeyError as error:
        raise ConfigError(f"{where}: the published section has no {error}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return node_at(where, found)


def whole_cells(point_cloud_range: Sequence[float], voxel_size: Sequence[float], grid_size: Sequence[int]) -> None:
    """Check that OpenPCDet's grid is what its range holds of its voxels.

    Args:
        point_cloud_range: x, y and z minimum, then their maximum, in metres.
        voxel_size: along x, y and z, in metres.
        grid_size: cells along x, y and z.

    Raises:
        ConfigError: it is not; the message names both settings, and the ends that would fit.
    """
    low, high = list(map(float, point_cloud_range[:3])), list(map(float, point_cloud_range[3:]))
    for axis, start, end, size, cells in zip("xyz", low, high, map(float, voxel_size), grid_size, strict=True):
        found = (end - start) / size
        if abs(found - int(cells)) > 1e-2:
            raise ConfigError(
                f"DATA_CONFIG.POINT_CLOUD_RANGE: {start:g} to {end:g} along {axis} holds {found:g} voxels of "
                f"VOXEL_SIZE {size:g} (DATA_CONFIG.DATA_PROCESSOR, transform_points_to_voxels), but the grid has "
                f"{int(cells)}; {axis} up to {start + int(cells) * size:g} fits"
            )
