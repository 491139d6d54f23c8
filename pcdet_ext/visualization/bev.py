"""A map from above with matplotlib: points, ground truth, detections."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array, Detections, Targets
from pcdet_ext.visualization.scene import TRUTH_COLOUR, Scene, box_corners

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


def view_range(scene: Scene) -> tuple[float, float, float, float]:
    """(xmin, xmax, ymin, ymax) that holds all boxes and 98 % of the points, in metres, at least 20 m wide."""
    parts = []
    if len(scene.points):
        parts.append(np.percentile(scene.points[:, :2], [1, 99], axis=0))
    parts += [b[:, :2] for b in (_boxes(scene.truth), _boxes(scene.detections)) if len(b)]
    if not parts:
        return (-10.0, 10.0, -10.0, 10.0)
    corners = np.concatenate(parts)
    low, high = corners.min(0), corners.max(0)
    grow = np.maximum(20 - (high - low), 4) / 2
    low, high = low - grow, high + grow
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def _boxes(holder: Targets | Detections | None) -> Array:
    boxes = None if holder is None else holder.boxes
    return np.zeros((0, 7), np.float32) if boxes is None else np.asarray(boxes)


def draw_bev(scene: Scene, path: str | Path, dpi: int = 130) -> None:
    """Write a PNG seen from above, x forward (right) and y left (up), in metres.

    Points are coloured by height, ground truth is dashed green, detections are coloured by class with their score; the
    short line from a box's centre shows its heading. Raises ImportError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a map needs matplotlib: pip install 'pcdet_ext[vis]'") from error
    scene = scene.finite()
    xmin, xmax, ymin, ymax = view_range(scene)
    width = 12.0
    height = float(np.clip(width * (ymax - ymin) / (xmax - xmin), 3.5, 16))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot(facecolor="#10141a")
    _draw_points(axes, scene.points)
    handles = _draw_boxes(axes, scene)
    axes.set(xlim=(xmin, xmax), ylim=(ymin, ymax), aspect="equal", xlabel="x forward (m)", ylabel="y left (m)")
    axes.set_title(scene.title)
    if handles:
        axes.legend(handles=handles, loc="upper right", framealpha=0.9)
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def _draw_points(axes: Axes, points: Array) -> None:
    if len(points) == 0:
        return
    height = points[:, 2]
    low, high = np.percentile(height, [2, 98])
    order = np.argsort(height)
    axes.scatter(
        points[order, 0],
        points[order, 1],
        c=height[order],
        s=0.6,
        linewidths=0,
        cmap="viridis",
        vmin=low,
        vmax=high + 1e-3,
    )


def _draw_boxes(axes: Axes, scene: Scene) -> list[Line2D]:
    from matplotlib.lines import Line2D

    handles = []
    truth = _boxes(scene.truth)
    if len(truth):
        _outline(axes, truth, TRUTH_COLOUR, "--", 2.4)
        handles.append(Line2D([], [], color=TRUTH_COLOUR, linestyle="--", label=f"ground truth ({len(truth)})"))
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
    return handles


def _outline(axes: Axes, boxes: Array, colour: str, style: str, width: float) -> None:
    from matplotlib.collections import LineCollection

    corners = box_corners(boxes)[:, :4, :2]
    loops = np.concatenate([corners, corners[:, :1]], 1)
    noses = np.stack([corners.mean(1), corners[:, :2].mean(1)], 1)
    axes.add_collection(LineCollection(list(loops), colors=colour, linestyles=style, linewidths=width))
    axes.add_collection(LineCollection(list(noses), colors=colour, linewidths=width))
