"""The map of a simulated street in the form of nuScenes' map expansion (version 1.3): areas and lines with tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pcdet_ext.data.simulation.drive import Drive
from pcdet_ext.data.simulation.scene import CROSSING_HALF
from pcdet_ext.structures import Array

STEP = 2.0  # metres between the nodes along the street
CROSS_STREET = 95.0  # metres to each side that the crossing street is long
ZEBRA = (-7.0, -4.4)  # where people cross, along the street from the middle of the crossing
STOP = 8.0  # metres before and behind the middle of the crossing, where lines to stop at are
STOP_DEPTH = 1.2  # metres along the street of such a line
EMPTY_TABLES = ("road_segment", "road_block", "lane", "lane_connector", "traffic_light")
Token = Callable[..., str]


def map_tables(street: Drive, offset: Array, extent: Array, token: Token) -> dict[str, Any]:
    """The tables of the map of a drive.

    Args:
        street: the drive.
        offset: float64 [2+], from the drive's coordinates to those of the map.
        extent: float64 [2], size of the map in metres.
        token: makes a token of some words and numbers.
    """
    made = _Tables(street, np.asarray(offset[:2]), token)
    made.areas()
    made.lines()
    size = [float(extent[1]), float(extent[0])]
    return {"version": "1.3", "canvas_edge": size, **made.tables, "arcline_path_3": {}, "connectivity": {}}


@dataclass
class _Tables:
    """Tables of a map in the making."""

    street: Drive
    offset: Array
    token: Token
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("node", "polygon", "line", "drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area")
        self.tables = {name: [] for name in (*names, "road_divider", "lane_divider", *EMPTY_TABLES)}
        road = self.street.street
        self.start, self.end = road.start, road.start + (len(road.nodes) - 1) * 0.5

    def areas(self) -> None:
        """Everything that is a polygon."""
        half, crossing = self.street.half_width, self.street.crossing
        whole = [self._strip(self.start, self.end, -half, half)]
        if crossing is not None:
            whole.append(self._strip(crossing - CROSSING_HALF, crossing + CROSSING_HALF, -CROSS_STREET, CROSS_STREET))
        self._row("drivable_area", polygon_tokens=whole)
        for low, high in self.street.walkways:
            inner = (half, low) if low > 0 else (high, -half)
            for start, end in self._between(CROSSING_HALF):
                self._area("walkway", start, end, low, high)
                self._area("carpark_area", start, end, *inner, orientation=0.0, road_block_token="")
        if crossing is None:
            return
        self._area("ped_crossing", crossing + ZEBRA[0], crossing + ZEBRA[1], -half, half, road_segment_token="")
        for way, sides in ((1, (-half, 0.0)), (-1, (0.0, half))):
            middle = crossing - way * STOP
            ends = (middle - STOP_DEPTH / 2, middle + STOP_DEPTH / 2)
            self._area("stop_line", *ends, *sides, stop_line_type="TRAFFIC_LIGHT")

    def lines(self) -> None:
        """What divides lanes, and the two ways of the road."""
        half = self.street.half_width
        lanes = self.street.lanes
        for start, end in self._between(STOP):
            self._line("road_divider", start, end, 0.0, road_segment_token="")
            for number in range(1, lanes):
                for side in (-1, 1):
                    self._line("lane_divider", start, end, side * number * half / lanes, lane_divider_segments=[])

    def _between(self, gap: float) -> Sequence[tuple[float, float]]:
        """The parts of the street before and behind the crossing, so far away from its middle."""
        crossing = self.street.crossing
        if crossing is None:
            return [(self.start, self.end)]
        return [(self.start, crossing - gap), (crossing + gap, self.end)]

    def _area(self, layer: str, start: float, end: float, low: float, high: float, **columns: Any) -> None:
        self._row(layer, polygon_token=self._strip(start, end, low, high), **columns)

    def _strip(self, start: float, end: float, low: float, high: float) -> str:
        """A polygon along a part of the street, between two distances to its left; its token."""
        along = np.linspace(start, end, max(2, int((end - start) / STEP) + 1))
        outline = np.concatenate([along, along[::-1]])
        sides = np.repeat([low, high], len(along))
        nodes = self._nodes(outline, sides)
        return self._row("polygon", exterior_node_tokens=nodes, holes=[])

    def _line(self, layer: str, start: float, end: float, across: float, **columns: Any) -> None:
        along = np.linspace(start, end, max(2, int((end - start) / STEP) + 1))
        own = self._row("line", node_tokens=self._nodes(along, np.full(len(along), across)))
        self._row(layer, line_token=own, **columns)

    def _nodes(self, along: Array, across: Array) -> list[str]:
        x, y, _ = self.street.street.at(along, across)
        return [
            self._row("node", x=float(a + self.offset[0]), y=float(b + self.offset[1]))
            for a, b in zip(x, y, strict=True)
        ]

    def _row(self, table: str, **columns: Any) -> str:
        own = self.token("map", table, len(self.tables[table]))
        self.tables[table].append({"token": own, **columns})
        return own
