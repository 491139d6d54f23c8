"""What a detector takes from the section `data` of its configuration, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pcdet_ext.config import ConfigError, Node, setting


def range_of(data: Node) -> Sequence[float]:
    """Where points are looked at. Raises ConfigError where that is not said, or is no range."""
    if "point_cloud_range" not in data:
        raise ConfigError(f"{data.where()}: a detector needs 'point_cloud_range' here")
    limits: Sequence[float] = setting(data, "point_cloud_range", Sequence[float])
    if message := wrong_range(limits):
        raise ConfigError(f"{data.where('point_cloud_range')}: {message}")
    return limits


def wrong_range(limits: Sequence[float]) -> str:
    """What is wrong with a range of points; empty where nothing is."""
    right = len(limits) == 6 and all(low < high for low, high in zip(limits[:3], limits[3:], strict=True))
    return "" if right else f"point_cloud_range must be x, y, z minimum, then maximum, got {list(limits)}"


def classes_of(data: Node) -> Sequence[str]:
    """The classes that a detector finds. Raises ConfigError where there is none, or an empty or repeated name."""
    if "classes" not in data:
        raise ConfigError(f"{data.where()}: a detector needs 'classes' here")
    classes: Sequence[str] = setting(data, "classes", Sequence[str])
    if not classes or not all(classes) or len(set(classes)) < len(classes):
        raise ConfigError(f"{data.where('classes')}: classes must be one or more different names, got {list(classes)}")
    return classes


def check_whole_voxels(encoder: Any, data: Mapping[str, Any]) -> None:
    """Refuse a range that ends inside of a voxel: points at its end would be lost, or the map be larger than it says.

    Pillars have no voxels along z. Raises ConfigError that names the axis and the nearest ends that fit.
    """
    low, high = encoder.point_cloud_range[:3], encoder.point_cloud_range[3:]
    axes = "xy" if getattr(encoder, "pillars", False) else "xyz"
    for axis, start, end, size in zip(axes, low, high, encoder.voxel_size, strict=False):
        cells = (end - start) / size
        if abs(cells - round(cells)) > 1e-3:
            fits = " or ".join(f"{start + count * size:g}" for count in (math.floor(cells), math.ceil(cells)))
            where = data.where("point_cloud_range") if isinstance(data, Node) else "point_cloud_range"
            raise ConfigError(
                f"{where}: {start:g} to {end:g} along {axis} is no whole number of voxels of {size:g} m "
                f"({cells:g}); {axis} up to {fits} fits"
            )
