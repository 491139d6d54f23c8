"""A self-contained HTML page with plotly: turn the scene, filter detections by score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array
from pcdet_ext.visualization.levels import levels
from pcdet_ext.visualization.scene import (
    FOUND_TRACK_COLOUR,
    TRUTH_COLOUR,
    Scene,
    Track,
    box_edges,
    boxes_in,
    velocity_arrows,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MAX_POINTS = 120_000
SCORE_STEPS = np.round(np.arange(0.0, 1.0, 0.05), 2)


def write_page(scene: Scene, path: str | Path, score: float = 0.3) -> None:
    """Write one HTML file that needs no network; see `page_figure`.

    Args:
        scene: what is shown.
        path: the file.
        score: detections below it are hidden at first.

    Raises:
        ImportError: plotly is not installed.
    """
    figure = page_figure(scene, score)
    with atomic_write(path) as temporary:
        figure.write_html(temporary, include_plotlyjs=True, full_html=True)


def page_figure(scene: Scene, score: float = 0.3) -> Figure:
    """Points by height (with labels by class, of several sweeps by age), boxes as lines with arrows, and tracks.

    A slider for the lowest score shown stands at `score` at first. Clouds over 120,000 points are thinned evenly.
    """
    go, scene = plotly(), scene.finite()
    fixed = [*_point_traces(go, scene), *_truth_traces(go, scene)]
    start = int(np.abs(SCORE_STEPS - score).argmin())
    levels = [_detection_traces(go, scene.above(s)) for s in SCORE_STEPS] if scene.detections is not None else []
    for level, traces in enumerate(levels):
        for trace in traces:
            trace.visible = level == start
    figure = go.Figure([*fixed, *(t for traces in levels for t in traces)])
    eye = {"eye": {"x": -0.9, "y": 0.0, "z": 0.6}, "up": {"x": 0, "y": 0, "z": 1}}
    figure.update_layout(
        title=scene.title,
        template="plotly_dark",
        margin={"l": 0, "r": 0, "t": 40, "b": 0},
        legend={"itemsizing": "constant", "groupclick": "toggleitem"},
        scene={"aspectmode": "data", "camera": eye},
        sliders=_slider(len(fixed), [len(t) for t in levels], start) if levels else [],
    )
    return figure


def plotly() -> ModuleType:
    """Plotly's figures. Raises ImportError that says how to install it."""
    try:
        import plotly.graph_objects
    except ImportError as error:
        raise ImportError("a page needs plotly: pip install 'pcdet_ext[vis]'") from error
    return plotly.graph_objects


def thinned(points: Array, most: int) -> Array:
    """At most so many of the points, evenly spread over their order."""
    return points[chosen_rows(len(points), most)]


def chosen_rows(count: int, most: int) -> Array:
    """int64 [K]: at most so many of `count` rows, evenly spread over their order."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def _point_traces(go: ModuleType, scene: Scene) -> list[Any]:
    """One trace by height, or one for each class or age that occurs."""
    scene = scene.select_points(chosen_rows(len(scene.points), MAX_POINTS))
    told = levels(scene)
    if told is None:
        return [_point_trace(go, scene.points, _by_height(scene.points[:, 2]), "points")]
    return [
        _point_trace(go, scene.points[told.level == i], {"color": told.colours[i]}, told.labels[i], told.title)
        for i in np.unique(told.level).tolist()
    ]


def _by_height(height: Array) -> dict[str, Any]:
    """Colours of points between the 2nd and 98th percentile of their height."""
    low, high = np.percentile(height, [2, 98]) if len(height) else (0.0, 1.0)
    return {"color": height, "colorscale": "Viridis", "cmin": float(low), "cmax": float(high) + 1e-3}


def _point_trace(go: ModuleType, points: Array, colours: Mapping[str, Any], name: str, title: str | None = None) -> Any:
    return go.Scatter3d(
        x=points[:, 0],
        y=points[:, 1],
        z=points[:, 2],
        mode="markers",
        marker={"size": 1.2, **colours},
        name=name,
        hoverinfo="skip",
        legendgroup="points",
        legendgrouptitle=None if title is None else {"text": title},
    )


def _truth_traces(go: ModuleType, scene: Scene) -> list[Any]:
    truth, traces = scene.truth, []
    if truth is not None and len(truth):
        boxes = boxes_in(truth)
        traces.append(_box_trace(go, boxes, truth.names, TRUTH_COLOUR, f"ground truth ({len(truth)})"))
        traces += _arrow_traces(go, boxes, TRUTH_COLOUR, "velocity of ground truth")
    return traces + _track_traces(go, scene.truth_tracks, TRUTH_COLOUR, "tracks of ground truth")


def _detection_traces(go: ModuleType, scene: Scene) -> list[Any]:
    """One trace per class, of all classes, then arrows where boxes have velocities, and tracks where there are some."""
    found = scene.detections
    if found is None:
        return []
    names = np.array(found.names, dtype=object)
    traces = []
    for name, colour in scene.colours().items():
        chosen = found.select(np.flatnonzero(names == name))
        texts = [f"{name} {s:.2f}" for s in chosen.scores]
        traces.append(_box_trace(go, np.asarray(chosen.boxes), texts, colour, f"{name} ({len(chosen)})"))
    traces += _arrow_traces(go, np.asarray(found.boxes), FOUND_TRACK_COLOUR, "velocity of detections")
    return traces + _track_traces(go, scene.found_tracks, FOUND_TRACK_COLOUR, "tracks of detections")


def _arrow_traces(go: ModuleType, boxes: Array, colour: str, name: str) -> list[Any]:
    arrows = velocity_arrows(boxes)
    lines = with_gaps(arrows.reshape(-1, 2, 3))
    return [_line_trace(go, lines, colour, f"{name} ({len(arrows)})", width=3)] if boxes.shape[1] > 7 else []


def _track_traces(go: ModuleType, tracks: Sequence[Track], colour: str, name: str) -> list[Any]:
    if not tracks:
        return []
    lines = [with_gaps(track.positions[None]) for track in tracks]
    texts = [f"{track.name} {track.track_id}" for track in tracks]
    hover = np.repeat(np.array(texts, dtype=object), [len(line) for line in lines])
    return [_line_trace(go, np.concatenate(lines), colour, f"{name} ({len(tracks)})", hover, width=2)]


def _box_trace(go: ModuleType, boxes: Array, texts: Sequence[str], colour: str, name: str) -> Any:
    """All boxes as one line with gaps; hovering over a line shows class and score."""
    lines = with_gaps(box_edges(boxes).reshape(-1, 2, 3))
    hover = np.repeat(np.array(list(texts), dtype=object), 13 * 3)
    return _line_trace(go, lines, colour, name, hover)


def with_gaps(lines: Array) -> Array:
    """Lines [K, P, 3] one after the other [K * (P + 1), 3], with a row of NaN after each."""
    gaps = np.full((len(lines), 1, 3), np.nan, np.float32)
    return np.concatenate([lines.astype(np.float32), gaps], 1).reshape(-1, 3)


def _line_trace(
    go: ModuleType, lines: Array, colour: str, name: str, hover: Array | None = None, width: int = 4
) -> Any:
    return go.Scatter3d(
        x=lines[:, 0],
        y=lines[:, 1],
        z=lines[:, 2],
        mode="lines",
        line={"color": colour, "width": width},
        name=name,
        text=hover,
        hoverinfo="text" if hover is not None else "skip",
    )


def _slider(fixed: int, counts: list[int], start: int) -> list[dict[str, Any]]:
    steps = []
    for level, score in enumerate(SCORE_STEPS):
        visible = [True] * fixed + [i == level for i, count in enumerate(counts) for _ in range(count)]
        steps.append({"label": f"{score:.2f}", "method": "restyle", "args": [{"visible": visible}]})
    return [{"active": start, "currentvalue": {"prefix": "score at least "}, "pad": {"t": 10}, "steps": steps}]
