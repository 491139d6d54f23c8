"""How old each point of a frame is, where its points come from several sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pcdet_ext.structures import Array
from pcdet_ext.visualization.scene import Scene

TIME_COLUMNS = {"timestamp": "s", "time": "s", "frame": "frames"}  # and the unit that they count in
MOST_LEVELS = 12  # distinct ages that a legend lists; more are put into bins of equal width
RAMP = np.array([[0xFF, 0xE4, 0x5C], [0xFB, 0x8C, 0x3C], [0xD1, 0x3C, 0x78], [0x7A, 0x2A, 0xA0], [0x4A, 0x3C, 0xB0]])


@dataclass(frozen=True, eq=False)
class Ages:
    """Points sorted by age.

    level: int64 [N], the level of each point, 0 the newest; labels: what each level means; colours: "#rrggbb" of each,
    from yellow (new) to violet (old).
    """

    level: Array
    labels: Sequence[str]

    @property
    def colours(self) -> list[str]:
        """One colour per level."""
        return age_colours(len(self.labels))


def age_colours(count: int) -> list[str]:
    """Colours "#rrggbb" of so many levels, from yellow (new) to violet (old)."""
    places = np.linspace(0, len(RAMP) - 1, count) if count > 1 else np.zeros(count)
    rows = np.stack([np.interp(places, np.arange(len(RAMP)), RAMP[:, c]) for c in range(3)], 1).round().astype(int)
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in rows]


def point_times(scene: Scene) -> tuple[Array, str] | None:
    """Age of each point, [N] and not negative, and its unit; None where no column tells it."""
    for name, unit in TIME_COLUMNS.items():
        if name in scene.point_features:
            return np.abs(scene.points[:, list(scene.point_features).index(name)].astype(np.float64)), unit
    return None


def ages(scene: Scene) -> Ages | None:
    """The points of a scene by age; None where no column tells it, or where all are equally old."""
    found = point_times(scene)
    if found is None:
        return None
    time, unit = found
    values, level = np.unique(time.round(3), return_inverse=True)
    if len(values) < 2:
        return None
    if len(values) <= MOST_LEVELS:
        return Ages(level, [age_label(value, unit) for value in values])
    edges = np.linspace(0, values[-1], MOST_LEVELS + 1)
    level = np.clip(np.searchsorted(edges, time, side="right") - 1, 0, MOST_LEVELS - 1)
    labels = [f"{low:.3g} to {high:.3g} {unit} ago" for low, high in pairwise(edges)]
    return Ages(level, labels)


def age_label(value: float, unit: str) -> str:
    """An age in words."""
    if value == 0:
        return "now"
    return f"{value:.3g} {unit[:-1] if unit == 'frames' and value == 1 else unit} ago"
