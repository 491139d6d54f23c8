"""Maps of nuScenes (the map expansion, version 1.3): layers as polygons and lines, drawn around a vehicle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.raster import fill_polygon, near_line
from pcdet_ext.evaluation.nuscenes_files import read_json
from pcdet_ext.files import DataError
from pcdet_ext.scenes import MAP_LAYERS, Scope, cells_of
from pcdet_ext.structures import Array

FOLDER = "maps/expansion"
# Tables of the file that each layer is drawn from.
AREAS = {name: (name,) for name in ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area")}
LINES = {"divider": ("road_divider", "lane_divider")}
HALF_WIDTH = 0.5  # metres to each side of a line that belong to it


@dataclass(frozen=True, eq=False)
class CityMap:
    """The map of a place. areas: polygons by layer, each a list of rings float64 [N, 2] (outline first) in the world,
    metres; lines: float64 [N, 2] by layer; corners: of each polygon and line, float64 [P, 4], to find near ones."""

    areas: Mapping[str, Sequence[Sequence[Array]]]
    lines: Mapping[str, Sequence[Array]]
    corners: Mapping[str, Array]

    @staticmethod
    def read(path: Path) -> CityMap:
        """A file of the map expansion. Raises DataError that names it and what is missing or wrong in it."""
        content = read_json(path)
        if not isinstance(content, Mapping):
            raise DataError(f"{path}: expected a mapping of tables")
        try:
            return _city(content)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{path}: damaged map ({type(error).__name__}: {error})") from error

    def masks(self, place: Array, layers: Sequence[str], x: Scope, y: Scope) -> Array:
        """Which cells around a place belong to each layer, uint8 [L, Y, X].

        Args:
            place: float64 [3, 3], takes (x, y, 1) in the world into the frame of the grid.
            layers: names of `scenes.MAP_LAYERS`.
            x: the columns of the grid in that frame.
            y: its rows.
        """
        middle = np.array([(x[0] + x[1]) / 2, (y[0] + y[1]) / 2, 1.0])
        radius = np.hypot(x[1] - x[0], y[1] - y[0]) / 2 / np.sqrt(abs(np.linalg.det(place[:2, :2])))
        centre = (np.linalg.inv(place) @ middle)[:2]
        found = np.zeros((len(layers), cells_of(y), cells_of(x)), np.uint8)
        for mask, layer in zip(found, layers, strict=True):
            low, high = self.corners[layer][:, :2], self.corners[layer][:, 2:]
            near = ((low <= centre + radius) & (high >= centre - radius)).all(axis=1)
            for number in np.flatnonzero(near).tolist():
                if layer in AREAS:
                    rings = [_placed(ring, place) for ring in self.areas[layer][number]]
                    mask |= fill_polygon(rings, x, y)
                else:
                    mask |= near_line(_placed(self.lines[layer][number], place), HALF_WIDTH, x, y)
        return found


def check_layers(layers: Sequence[str]) -> None:
    """Raise ValueError for a layer that no map has."""
    for name in layers:
        if name not in MAP_LAYERS:
            raise ValueError(f"map_layers: there is no layer {name!r}{suggest(name, MAP_LAYERS)}")


def _placed(points: Array, place: Array) -> Array:
    return points @ place[:2, :2].T + place[:2, 2]


def _city(content: Mapping[str, Any]) -> CityMap:
    nodes = {node["token"]: (float(node["x"]), float(node["y"])) for node in content["node"]}

    def ring(tokens: Sequence[str]) -> Array:
        return np.array([nodes[token] for token in tokens], np.float64).reshape(-1, 2)

    polygons = {
        row["token"]: [ring(row["exterior_node_tokens"]), *(ring(hole["node_tokens"]) for hole in row["holes"])]
        for row in content["polygon"]
    }
    lines = {row["token"]: ring(row["node_tokens"]) for row in content["line"]}
    areas = {
        layer: [polygons[token] for table in tables for row in content[table] for token in _polygons(row)]
        for layer, tables in AREAS.items()
    }
    drawn = {layer: [lines[row["line_token"]] for t in tables for row in content[t]] for layer, tables in LINES.items()}
    corners = {layer: _corners([rings[0] for rings in found]) for layer, found in areas.items()}
    return CityMap(areas, drawn, corners | {layer: _corners(found) for layer, found in drawn.items()})


def _polygons(row: Mapping[str, Any]) -> Sequence[str]:
    """Tokens of a row's polygons: the drivable area has several, everything else one."""
    tokens: Sequence[str] = row["polygon_tokens"] if "polygon_tokens" in row else [row["polygon_token"]]
    return tokens


def _corners(parts: Sequence[Array]) -> Array:
    """x, y minimum and maximum of each, float64 [P, 4]; of one without points nothing is near."""
    none = np.array([np.inf, np.inf, -np.inf, -np.inf])
    return np.array([np.r_[p.min(axis=0), p.max(axis=0)] if len(p) else none for p in parts]).reshape(-1, 4)


def locations(folder: Path) -> dict[str, str]:
    """The place of each scene, by its name, out of the tables in a folder. Raises DataError that names the table."""
    logs, scenes = (read_json(folder / f"{name}.json") for name in ("log", "scene"))
    try:
        places = {log["token"]: str(log["location"]) for log in logs}
        return {scene["name"]: places[scene["log_token"]] for scene in scenes}
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder}: scene.json and log.json do not say where scenes are ({error!r})") from error
