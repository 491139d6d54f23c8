"""A self-contained HTML page with plotly: turn the scene, filter detections by score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array
from pcdet_ext.visualization.scene import TRUTH_COLOUR, Scene, box_edges

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MAX_POINTS = 120_000
SCORE_STEPS = np.round(np.arange(0.0, 1.0, 0.05), 2)


def write_page(scene: Scene, path: str | Path, score: float = 0.3) -> None:
    """Write one HTML file that needs no network; see `page_figure`. Raises ImportError without plotly."""
    figure = page_figure(scene, score)
    with atomic_write(path) as temporary:
        figure.write_html(temporary, include_plotlyjs=True, full_html=True)


def page_figure(scene: Scene, score: float = 0.3) -> Figure:
    """Points by height, boxes as lines, and a slider for the lowest score shown, which stands at `score` at first.

    Clouds over 120,000 points are thinned evenly.
    """
    go, scene = _plotly(), scene.finite()
    fixed = [_point_trace(go, scene)]
    if scene.truth is not None and scene.truth.boxes is not None and len(scene.truth):
        fixed.append(_box_trace(go, np.asarray(scene.truth.boxes), scene.truth.names, TRUTH_COLOUR, "ground truth"))
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
        scene={"aspectmode": "data", "camera": eye},
        sliders=_slider(len(fixed), [len(t) for t in levels], start) if levels else [],
    )
    return figure


def _plotly() -> ModuleType:
    try:
        import plotly.graph_objects
    except ImportError as error:
        raise ImportError("a page needs plotly: pip install 'pcdet_ext[vis]'") from error
    return plotly.graph_objects


def _point_trace(go: ModuleType, scene: Scene) -> Any:
    points = scene.points
    if len(points) > MAX_POINTS:
        points = points[np.linspace(0, len(points) - 1, MAX_POINTS).astype(np.int64)]
    height = points[:, 2]
    low, high = np.percentile(height, [2, 98]) if len(height) else (0.0, 1.0)
    marker = {"size": 1.2, "color": height, "colorscale": "Viridis", "cmin": float(low), "cmax": float(high) + 1e-3}
    return go.Scatter3d(
        x=points[:, 0], y=points[:, 1], z=height, mode="markers", marker=marker, name="points", hoverinfo="skip"
    )


def _detection_traces(go: ModuleType, scene: Scene) -> list[Any]:
    """One trace per class, always all classes, so that every level of the slider has the same count."""
    found = scene.detections
    if found is None:
        return []
    names = np.array(found.names, dtype=object)
    traces = []
    for name, colour in scene.colours().items():
        chosen = found.select(np.flatnonzero(names == name))
        texts = [f"{name} {s:.2f}" for s in chosen.scores]
        traces.append(_box_trace(go, np.asarray(chosen.boxes), texts, colour, f"{name} ({len(chosen)})"))
    return traces


def _box_trace(go: ModuleType, boxes: Array, texts: Sequence[str], colour: str, name: str) -> Any:
    """All boxes as one line with gaps; hovering over a line shows class and score."""
    edges = box_edges(boxes)
    gaps = np.full((*edges.shape[:2], 1, 3), np.nan, np.float32)
    lines = np.concatenate([edges, gaps], 2).reshape(-1, 3)
    hover = np.repeat(np.array(list(texts), dtype=object), 13 * 3)
    return go.Scatter3d(
        x=lines[:, 0],
        y=lines[:, 1],
        z=lines[:, 2],
        mode="lines",
        line={"color": colour, "width": 4},
        name=name,
        text=hover,
        hoverinfo="text",
    )


def _slider(fixed: int, counts: list[int], start: int) -> list[dict[str, Any]]:
    steps = []
    for level, score in enumerate(SCORE_STEPS):
        visible = [True] * fixed + [i == level for i, count in enumerate(counts) for _ in range(count)]
        steps.append({"label": f"{score:.2f}", "method": "restyle", "args": [{"visible": visible}]})
    return [{"active": start, "currentvalue": {"prefix": "score at least "}, "pad": {"t": 10}, "steps": steps}]
