"""Frames as sensors give them: those of the data set that a configuration names, simulated where it is not there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pcdet_ext import config
from pcdet_ext.config import ConfigError, Node, section
from pcdet_ext.data.base import collate
from pcdet_ext.data.formats import FRAME_SOURCES, build_dataset
from pcdet_ext.data.prepare import prepare
from pcdet_ext.data.simulation.layouts import SIMULATIONS
from pcdet_ext.structures import PointBatch

# The layout of each data set that can be simulated, and the number of scans and the resolution of its own sensors.
# Without a number of frames there are as many as a sample joins (`max_sweeps`).
LAYOUTS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "KittiDataset": ("kitti", {"frames": 1}),
        "NuScenesDataset": ("nuscenes", {"frames": 2, "scenes": 1}),  # the second key frame has all of its sweeps
        "WaymoDataset": ("waymo", {"scenes": 1, "azimuths": 2650}),
    }
)


def usual_frame(settings: Node) -> tuple[PointBatch, str]:
    """The last frame of a configuration's validation split, and where it comes from in words.

    The data set is read where it has been prepared; otherwise a frame of its layout is simulated, in a folder that is
    deleted again, and read by the data set's own reader. Raises ConfigError where the layout cannot be simulated.
    """
    data = section(settings, "data")
    if (Path(data["root"]) / "pcdet_ext" / "index_val.parquet").exists():
        return _last_frame(data), f"a frame of {data['root']}"
    if data["name"] not in LAYOUTS:
        raise ConfigError(
            f"{data.where('name')}: there is no simulation of a {data['name']}, only of {', '.join(LAYOUTS)}; "
            "data.root must be a prepared folder"
        )
    layout, fixed = LAYOUTS[data["name"]]
    options = {"frames": config.setting(data, "max_sweeps", int, 1)} | dict(fixed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / layout
        SIMULATIONS.get(layout)(**options).write(root, val_fraction=1.0, workers=1)
        source = config.from_plain({"name": layout, "root": str(root)}, "simulation")
        prepare(FRAME_SOURCES.build(source), splits=["val"], database=[], progress=False)
        return _last_frame(Node(dict(data) | {"root": str(root)}, data.key_path, data.sources)), "a simulated frame"


def _last_frame(data: Node) -> PointBatch:
    dataset = build_dataset(data, "val", training=False)
    return collate([dataset[len(dataset) - 1]], dataset.classes)
