"""A map from above with matplotlib: points, ground truth, detections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pcdet_ext.files import atomic_write
from pcdet_ext.sketch import TRUTH_COLOUR
from pcdet_ext.structures import Array
from pcdet_ext.visualization.bev_layers import draw_ground, draw_paths
from pcdet_ext.visualization.levels import Levels, levels
from pcdet_ext.visualization.scene import (
    FOUND_TRACK_COLOUR,
    Scene,
    Track,
    box_corners,
    boxes_in,
    velocity_arrows,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


OTHER_COLOUR = "#8a8f98"  # of labelled objects that the detector does not look for
LEGEND_ROWS = 4.5  # per inch of the picture's height


def view_range(scene: Scene) -> tuple[float, float, float, float]:
    """(xmin, xmax, ymin, ymax) that holds all boxes and 98 % of the points, in metres, at least 20 m wide."""
    parts = []
    if len(scene.points):
        parts.append(np.percentile(scene.points[:, :2], [1, 99], axis=0))
    parts += [b[:, :2] for b in (boxes_in(scene.truth), boxes_in(scene.detections)) if len(b)]
    if not parts:
        return (-10.0, 10.0, -10.0, 10.0)
    corners = np.concatenate(parts)
    low, high = corners.min(0), corners.max(0)
    grow = np.maximum(20 - (high - low), 4) / 2
    low, high = low - grow, high + grow
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def draw_bev(scene: Scene, path: str | Path, dpi: int = 130) -> None:
    """Write a PNG seen from above, x to the right and y up, in metres; see `bev_figure`.

    Args:
        scene: what is shown.
        path: the file.
        dpi: pixels per inch; the picture is 12 inches wide.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = bev_figure(scene)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def bev_figure(scene: Scene, view: tuple[float, float, float, float] | None = None) -> Figure:
    """A figure seen from above, x to the right and y up, in metres.

    Ground truth is dashed green, or thin and grey where the detector does not know its class; detections are coloured
    by class with their score; the short line from a box's centre shows its heading, an arrow where the object is after
    one second, and a thin line its track. Points are coloured by height, by class where they have labels, or by age
    where they come from several sweeps. Below lie a map and occupied cells, where the scene has some, above predicted
    and planned paths.

    Args:
        scene: what is shown.
        view: (xmin, xmax, ymin, ymax) of the picture in metres, by default what holds all boxes and most points.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a map needs matplotlib: pip install 'pcdet_ext[vis]'") from error
    scene = scene.finite()
    xmin, xmax, ymin, ymax = view or view_range(scene)
    width = 12.0
    height = float(np.clip(width * (ymax - ymin) / (xmax - xmin), 3.5, 16))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot(facecolor="#10141a")
    handles = draw_ground(axes, scene.layers) + _draw_points(axes, scene) + _draw_boxes(axes, scene)
    handles += draw_paths(axes, scene.layers)
    axes.set(xlim=(xmin, xmax), ylim=(ymin, ymax), aspect="equal", xlabel="x (m)", ylabel="y (m)")
    axes.set_title(scene.title)
    if handles:
        columns = math.ceil(len(handles) / (height * LEGEND_ROWS))
        legend = axes.legend(handles=handles, loc="upper right", framealpha=0.9, ncols=columns, fontsize=8)
        legend.set_in_layout(False)  # a long one does not push the picture together
    FigureCanvasAgg(figure)
    return figure


def _draw_points(axes: Axes, scene: Scene) -> list[Line2D]:
    points = scene.points
    if len(points) == 0:
        return []
    told = levels(scene)
    if told is not None:
        key = points[:, 2] if scene.point_labels is not None else -told.level  # the highest, or the newest, on top
        order = np.argsort(key, kind="stable")
        colours = np.array(told.colours)[told.level[order]]
        axes.scatter(points[order, 0], points[order, 1], c=colours, s=0.6, linewidths=0)
        return _level_handles(told)
    order = np.argsort(points[:, 2])
    height = points[order, 2]
    low, high = np.percentile(height, [2, 98])
    axes.scatter(
        points[order, 0], points[order, 1], c=height, s=0.6, linewidths=0, cmap="viridis", vmin=low, vmax=high + 1e-3
    )
    return []


def _level_handles(told: Levels) -> list[Line2D]:
    """A line of the legend for each level that occurs."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=told.colours[i], marker="o", markersize=4, linestyle="", label=told.labels[i])
        for i in np.unique(told.level).tolist()
    ]


def _draw_boxes(axes: Axes, scene: Scene) -> list[Line2D]:
    from matplotlib.lines import Line2D

    handles = []
    truth, sought = boxes_in(scene.truth), _sought(scene)
    for boxes, colour, width, label in (
        (truth[sought], TRUTH_COLOUR, 2.4, "ground truth"),
        (truth[~sought], OTHER_COLOUR, 1.0, "other classes"),
    ):
        if len(boxes):
            _outline(axes, boxes, colour, "--", width)
            line = Line2D([], [], color=colour, linestyle="--", linewidth=width, label=f"{label} ({len(boxes)})")
            handles.append(line)
    handles += _draw_tracks(axes, scene.truth_tracks, TRUTH_COLOUR, "tracks of ground truth")
    if scene.detections is None:
        return handles
    found = scene.detections
    names = np.array(found.names)
    for name, colour in scene.colours().items():
        chosen = found.select(names == name) if len(names) else found
        if len(chosen) == 0:
            continue
        _outline(axes, np.asarray(chosen.boxes), colour, "-", 1.2)
        for box, score in zip(chosen.boxes, chosen.scores, strict=True):
            text = axes.text(box[0], box[1] + 1.6, f"{score:.2f}", color=colour, fontsize=7, ha="center")
            text.set_clip_on(True)
        handles.append(Line2D([], [], color=colour, label=f"{name} ({len(chosen)})"))
    return handles + _draw_tracks(axes, scene.found_tracks, FOUND_TRACK_COLOUR, "tracks of detections")


def _sought(scene: Scene) -> Array:
    """Which labelled boxes, bool [M], are of classes that the detector knows; all of them where none is told."""
    known = () if scene.detections is None else scene.detections.class_names
    if scene.truth is None or scene.truth.labels is None or not known:
        return np.ones(len(boxes_in(scene.truth)), bool)
    return np.array([name in known for name in scene.truth.names], bool)


def _outline(axes: Axes, boxes: Array, colour: str, style: str, width: float) -> None:
    from matplotlib.collections import LineCollection

    corners = box_corners(boxes)[:, :4, :2]
    loops = np.concatenate([corners, corners[:, :1]], 1)
    noses = np.stack([corners.mean(1), corners[:, :2].mean(1)], 1)
    arrows = velocity_arrows(boxes)[..., :2].reshape(-1, 2, 2)
    axes.add_collection(LineCollection(list(loops), colors=colour, linestyles=style, linewidths=width))
    axes.add_collection(LineCollection([*noses, *arrows], colors=colour, linewidths=width))


def _draw_tracks(axes: Axes, tracks: Sequence[Track], colour: str, label: str) -> list[Line2D]:
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    if not tracks:
        return []
    lines = [track.positions[:, :2] for track in tracks]
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.8, alpha=0.8))
    return [Line2D([], [], color=colour, linewidth=0.8, label=f"{label} ({len(tracks)})")]
