"""What the points of a picture are told apart by: their class where there are labels of points, else their age."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pcdet_ext.structures import Array
from pcdet_ext.visualization.ages import ages
from pcdet_ext.visualization.scene import Scene

UNLABELLED_COLOUR = "#5a5f66"
POINT_COLOURS = (
    *("#4c8bf5", "#f2b134", "#d9534f", "#b05cc8", "#38c9c0", "#ff6fae", "#ff9155", "#8f6bff", "#c77dbb", "#f7e08a"),
    *("#8d5a97", "#a08c5b", "#d8c3a5", "#b97a57", "#4caf50", "#8b5e3c", "#9ccc65", "#e8e8e8", "#e53935", "#00897b"),
)


@dataclass(frozen=True, eq=False)
class Levels:
    """Points sorted into levels. level: int64 [N]; labels and colours ("#rrggbb"): one of each level; title: of all."""

    level: Array
    labels: Sequence[str]
    colours: Sequence[str]
    title: str


def levels(scene: Scene) -> Levels | None:
    """The points of a scene by class or by age; None where nothing tells either, so that their height may."""
    if scene.point_labels is not None:
        labels = np.asarray(scene.point_labels.labels)
        names = scene.point_labels.class_names
        colours = point_colours(len(names))
        return Levels(np.where(labels < 0, len(names), labels), (*names, "no label"), colours, "points by class")
    aged = ages(scene)
    return None if aged is None else Levels(aged.level, aged.labels, aged.colours, "points by age")


def point_colours(classes: int) -> list[str]:
    """Colours "#rrggbb" of so many classes of points, and last that of points without a label."""
    return [*(POINT_COLOURS[i % len(POINT_COLOURS)] for i in range(classes)), UNLABELLED_COLOUR]


def layer_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour "#rrggbb" for each class of a map or of occupied cells."""
    return {name: POINT_COLOURS[i % len(POINT_COLOURS)] for i, name in enumerate(dict.fromkeys(names))}
