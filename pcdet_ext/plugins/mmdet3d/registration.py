"""Entries in mmdetection3d's registry, and what follows for a part from the sections around it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch

from pcdet_ext.config import ConfigError
from pcdet_ext.ops import grid_size
from pcdet_ext.plugins.imports import after_import
from pcdet_ext.plugins.mmdet3d.parts import (
    FlatFormer,
    PcdetExtBackbone,
    PcdetExtHead,
    PcdetExtMiddleEncoder,
    PcdetExtVoxelEncoder,
)

PARTS = (PcdetExtVoxelEncoder, PcdetExtMiddleEncoder, FlatFormer, PcdetExtBackbone, PcdetExtHead)
BY_TYPE = {part.__name__: part for part in PARTS}
PREFIXES = ("", "pts_")  # of the sections of detectors of one stage, and of those for several sensors
TOLERANCE = 1e-2  # of a voxel, for ranges and sizes that no binary number has exactly
# Widths of mmdetection3d's voxel encoders, which it does not derive: a setting, and its default.
WIDTHS = {
    "PillarFeatureNet": ("feat_channels", [64]),
    "DynamicPillarFeatureNet": ("feat_channels", [64]),
    "DynamicVFE": ("feat_channels", []),
    "HardVFE": ("feat_channels", []),
    "HardSimpleVFE": ("num_features", 4),
    "DynamicSimpleVFE": ("num_features", 4),
}


def register() -> None:
    """Enter this library's components into `mmdet3d.registry.MODELS`: at once, or as soon as it is imported."""
    after_import("mmengine.registry", _derive_before_building)  # mmengine's Runner builds through its own registry
    after_import("mmdet3d.registry", _enter)


def _enter(module: ModuleType) -> None:
    models: Any = module.__dict__["MODELS"]
    for part in PARTS:
        if models.module_dict.get(part.__name__) is not part:
            models.register_module(name=part.__name__, module=part)
    _derive_before_building(module)


def _derive_before_building(module: ModuleType) -> None:
    """Let a registry `MODELS` fill in what follows before it builds a model."""
    models: Any = module.__dict__["MODELS"]
    build = models.build
    if hasattr(build, "__wrapped__"):
        return

    @functools.wraps(build)
    def build_with_derived(cfg: Any, *arguments: Any, **more: Any) -> Any:
        if isinstance(cfg, Mapping):
            derive(cfg)
        return build(cfg, *arguments, **more)

    models.build = build_with_derived


def derive(model: Any) -> None:
    """Fill in what follows for our parts, and for the backbone behind them, in the configuration of a detector.

    Raises ConfigError, with the section, where the user wrote something else.
    """
    for prefix in PREFIXES:
        sections = {name: model.get(f"{prefix}{name}") for name in SECTIONS}
        ours = [name for name, section in sections.items() if isinstance(section, Mapping) and is_ours(section)]
        if ours:
            for name in ours:
                _say(sections[name], "section", f"{prefix}{name}", f"{prefix}{name}")
            _derive(prefix, sections, _geometry(model))


SECTIONS = ("voxel_encoder", "middle_encoder", "backbone", "neck", "bbox_head")


def is_ours(section: Mapping[str, Any] | None) -> bool:
    """Whether a section of a detector names one of our parts."""
    return section is not None and section.get("type") in (*BY_TYPE, *PARTS)


def _geometry(model: Mapping[str, Any]) -> dict[str, Any]:
    """Voxel size and range as the data preprocessor has them."""
    layer = (model.get("data_preprocessor") or {}).get("voxel_layer") or {}
    found = {name: list(layer[name]) for name in ("voxel_size", "point_cloud_range") if name in layer}
    if len(found) == 2:
        _check_whole_cells(**found)
    return found


def _check_whole_cells(voxel_size: Sequence[float], point_cloud_range: Sequence[float]) -> None:
    """Raise ConfigError, with an end that would fit, for a range that does not hold a whole number of voxels."""
    for axis, start, end, size in zip("xyz", point_cloud_range[:3], point_cloud_range[3:], voxel_size, strict=True):
        cells = (end - start) / size
        if abs(cells - round(cells)) > TOLERANCE:
            raise ConfigError(
                f"data_preprocessor.voxel_layer.point_cloud_range: {start:g} to {end:g} along {axis} holds {cells:g} "
                f"voxels of voxel_size {size:g}, which must be a whole number; {axis} up to "
                f"{start + round(cells) * size:g} fits"
            )


def _derive(prefix: str, sections: dict[str, Any], geometry: dict[str, Any]) -> None:
    encoder, middle, backbone, neck, head = (sections[name] for name in SECTIONS)
    for name in ("voxel_encoder", "middle_encoder", "bbox_head"):
        if is_ours(sections[name]) and sections[name]["type"] not in ("FlatFormer", FlatFormer):
            for key, value in geometry.items():
                _say(sections[name], key, value, f"{prefix}{name}")
    width, stride = _encoder_width(encoder), None
    if is_ours(middle):
        if width is not None:
            _say(middle, "in_channels", width, f"{prefix}middle_encoder")
        if len(geometry) == 2:
            cells = list(grid_size(geometry["point_cloud_range"], geometry["voxel_size"])[::-1])
            _check_shape(middle, cells, f"{prefix}middle_encoder")
        made = _made(middle)
        width, stride = made.out_channels, made.stride
    else:
        width, stride = None, 1 if middle is not None and middle["type"] == "PointPillarsScatter" else None
    if backbone is not None and width is not None:
        _say(backbone, "in_channels", width, f"{prefix}backbone")
    if is_ours(head):
        _derive_head(f"{prefix}bbox_head", head, backbone, neck, stride)


def _derive_head(where: str, head: Any, backbone: Any, neck: Any, stride: int | None) -> None:
    """Channels and stride of the map that one of our heads reads."""
    if is_ours(backbone):
        made = _made(backbone)
        channels: int | None = made.out_channels
        stride = None if stride is None else int(stride * made.stride)
    elif neck is not None and neck.get("type") == "SECONDFPN":
        channels = sum(neck["out_channels"])
        first, back = backbone.get("layer_strides", (2, 2, 2))[0], neck.get("upsample_strides", (1, 2, 4))[0]
        stride = None if stride is None else int(stride * first / back)
    else:
        return
    _say(head, "in_channels", channels, where)
    if stride is not None:
        _say(head, "stride", stride, where)


def _encoder_width(encoder: Any) -> int | None:
    """Channels of voxels, or None where they do not follow."""
    if encoder is None:
        return None
    if is_ours(encoder):
        return int(_made(encoder).network.out_channels)
    setting, default = WIDTHS.get(encoder.get("type"), (None, None))
    found = None if setting is None else encoder.get(setting, default)
    return found[-1] if isinstance(found, Sequence) and found else found or None


def _made(section: Mapping[str, Any]) -> Any:
    """One of our parts, built to be asked for its sizes; what is drawn at random for it is drawn again."""
    arguments = {key: value for key, value in section.items() if key != "type"}
    kind = BY_TYPE.get(section["type"], section["type"])
    with torch.random.fork_rng(devices=[]):
        return kind(**arguments)


def _check_shape(middle: Any, cells: list[int], where: str) -> None:
    """The grid of a middle encoder must be that of the data preprocessor; FlatFormer's is (x, y, z), as published."""
    published = middle["type"] in ("FlatFormer", FlatFormer)
    expected = cells[::-1] if published else cells
    _say(middle, "sparse_shape", expected, where, "voxel_layer's point_cloud_range and voxel_size make")


def _say(section: Any, key: str, value: Any, where: str, source: str = "the sections before make") -> None:
    """Enter a value that follows, unless the user wrote it. Raises ConfigError where the user wrote another."""
    if section.get(key) is None:
        section[key] = value
        return
    written = section[key]
    same = list(written) == list(value) if isinstance(value, list) else written == value
    if not same:
        raise ConfigError(f"{where}.{key} is {written!r}, but {source} {value!r}; leave it out, and it follows")
