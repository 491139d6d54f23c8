"""A tour of a scene: one self-contained HTML page that plays frame after frame, seen from above or at an angle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array
from pcdet_ext.visualization.ages import age_colours, age_label, point_times
from pcdet_ext.visualization.bev import view_range
from pcdet_ext.visualization.levels import levels, point_colours
from pcdet_ext.visualization.page import plotly, thinned, with_gaps
from pcdet_ext.visualization.scene import (
    FOUND_TRACK_COLOUR,
    TRUTH_COLOUR,
    Scene,
    Track,
    box_corners,
    boxes_in,
    class_colours,
    velocity_arrows,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PAGE = """<!DOCTYPE html>
<html style="height: 100%"><head><meta charset="utf-8"><title>{frames} frames</title><script>{script}</script></head>
<body style="height: 100%; margin: 0; background: #111">{body}</body></html>
"""
PAGE_BYTES = 20_000_000
OTHER_BYTES = 100_000  # what the page holds beside plotly's script and the frames
FRAME_BYTES = 3_000  # the names of a frame's traces, its title and its step of the slider
POINT_BYTES = (3 * 2 + 1) * 4 / 3  # three int16 and a colour of one byte, in base64
ROW_BYTES = 3 * 4 * 4 / 3  # a vertex of a line: float32, as gaps between lines are NaN
UNITS = 100  # the page counts in centimetres, so that two bytes are enough for a coordinate
FARTHEST = 327.0  # metres
TICK = 20  # metres between the numbers at an axis
FEWEST_POINTS = 200  # that a frame is to keep
SHADES = 255
MOST_POINTS = 60_000  # of a frame: more cannot be played smoothly
FRAME_MILLISECONDS = 200
# A box in one stroke: from the middle of the floor to the front (8, 9), around the floor, and up around the top.
STROKE = (8, 9, 0, 3, 2, 1, 0, 4, 5, 1, 5, 6, 2, 6, 7, 3, 7, 4)
ARROW = (0, 1, 3, 1, 5)  # an arrow in one stroke through the ends of its three segments
# Both in perspective: plotly loses what is drawn when a button changes the kind of projection.
ABOVE = {"eye": {"x": 0, "y": 0, "z": 2.3}, "up": {"x": 0, "y": 1, "z": 0}}
ANGLE = {"eye": {"x": -1.1, "y": 0, "z": 0.6}, "up": {"x": 0, "y": 0, "z": 1}}


@dataclass(frozen=True, eq=False)
class _Frame:
    """One frame, ready to be written: points [N, 3], their value that is coloured [N], lines [K, 3] by trace name."""

    points: Array
    values: Array
    lines: dict[str, Array]
    title: str
    count: int
    bounds: tuple[float, float, float, float]

    @property
    def line_bytes(self) -> float:
        return sum(map(len, self.lines.values())) * ROW_BYTES


def write_tour(scenes: Iterable[Scene], count: int, path: str | Path) -> None:
    """Write one HTML file under 20 MB that needs no network; see `tour_figure`.

    Args:
        scenes: one per frame, in the order of time.
        count: how many there are.
        path: the file.
    """
    figure = tour_figure(scenes, count)
    body = figure.to_html(include_plotlyjs=False, full_html=False, auto_play=False)
    # Plotly escapes each "/" of base64, which makes it longer; "<" is still escaped, so no script can be ended early.
    body = body.replace(r"\u002f", "/")
    with atomic_write(path) as temporary:
        temporary.write_text(PAGE.format(frames=len(figure.frames), script=_script(), body=body), encoding="utf-8")


def tour_figure(scenes: Iterable[Scene], count: int) -> Figure:
    """An animation of scenes with a slider, a play button, and a choice of view: from above, or at an angle.

    Each scene is shown in its own LiDAR frame, with ground truth, detections, arrows of velocity and tracks. Points are
    coloured by class where they have labels, by age where a scene's points tell it, else by height. They are thinned
    evenly so that the page stays under 20 MB; its title says how many are left.

    Args:
        scenes: one by one, with those detections alone that are to be shown.
        count: how many there are.

    Raises:
        ValueError: there are so many frames that hardly a point of each could be shown.
        ImportError: plotly is not installed.
    """
    go = plotly()
    room: float = PAGE_BYTES - len(_script().encode()) - OTHER_BYTES - count * FRAME_BYTES
    most = min(MOST_POINTS, int(room / POINT_BYTES / (count + 1)))  # the page holds the first frame twice
    _check_room(most, count)
    shading, frames, classes = _Shading(), [], []
    for scene in scenes:
        scene = scene.finite()
        shading = _shading(scene) if shading == _Shading() else shading
        classes += [name for name in _class_names(scene) if name not in classes]
        frames.append(_prepared(scene, most))
    room -= sum(frame.line_bytes for frame in (frames[0], *frames))
    most = min(most, int(room / POINT_BYTES / (count + 1)))
    _check_room(most, count)
    return _figure(go, frames, most, shading, _colours(classes))


def _script() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _check_room(most: int, count: int) -> None:
    if most < FEWEST_POINTS:
        raise ValueError(f"{count} frames are too many for one page; take every N-th of them with A:B:N, or fewer")


@dataclass(frozen=True)
class _Shading:
    """What points are coloured by: their class, their age in a unit, or without either their height."""

    unit: str = ""
    classes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return "class" if self.classes else "age" if self.unit else "height"

    def scale(self) -> str | list[list[Any]]:
        """The colours from the lowest value to the highest."""
        colours = point_colours(len(self.classes)) if self.classes else age_colours(5)
        steps = [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]
        return steps if self.classes or self.unit else "Viridis"

    def ticks(self, low: float, high: float) -> dict[str, Any]:
        """Where the legend has a text, in shades, and which."""
        if self.classes:
            names = [*self.classes, "no label"]
            return {"tickvals": np.linspace(0, SHADES, len(names)), "ticktext": names}
        values = np.linspace(low, high, 6)
        texts = [age_label(float(f"{v:.3g}"), self.unit) if self.unit else f"{v:.1f} m" for v in values]
        return {"tickvals": np.linspace(0, SHADES, 6), "ticktext": texts}


def _shading(scene: Scene) -> _Shading:
    if scene.point_labels is not None:
        return _Shading(classes=scene.point_labels.class_names)
    found = point_times(scene)
    return _Shading("" if found is None else found[1])


def _class_names(scene: Scene) -> Sequence[str]:
    return () if scene.detections is None else scene.detections.class_names


def _colours(classes: Sequence[str]) -> dict[str, str]:
    """The colour of each trace of lines."""
    return {
        "ground truth": TRUTH_COLOUR,
        "tracks of ground truth": TRUTH_COLOUR,
        **class_colours(classes),
        "tracks of detections": FOUND_TRACK_COLOUR,
    }


def _prepared(scene: Scene, most: int) -> _Frame:
    """A frame with at most so many points."""
    scene = scene.select_points((np.abs(scene.points[:, :3]) < FARTHEST).all(1))
    points = thinned(scene.points, most)
    times, told = point_times(scene), levels(scene)
    values = scene.points[:, 2] if times is None else times[0]
    if scene.point_labels is not None and told is not None:
        values = told.level
    lines = {
        "ground truth": _box_lines(boxes_in(scene.truth)),
        "tracks of ground truth": _track_lines(scene.truth_tracks),
        "tracks of detections": _track_lines(scene.found_tracks),
    }
    if scene.detections is not None:
        names = np.array(scene.detections.names, dtype=object)
        boxes = np.asarray(scene.detections.boxes)
        lines |= {name: _box_lines(boxes[names == name]) for name in scene.detections.class_names}
    bounds = view_range(scene)
    return _Frame(points[:, :3], thinned(values, most), lines, scene.title, len(scene.points), bounds)


def _box_lines(boxes: Array) -> Array:
    """Boxes with their arrows as lines [K, 3]."""
    corners = box_corners(boxes)
    floor, front = corners[:, :4].mean(1, keepdims=True), corners[:, :2].mean(1, keepdims=True)
    strokes = np.concatenate([corners, floor, front], 1)[:, np.array(STROKE)]
    arrows = velocity_arrows(boxes).reshape(-1, 6, 3)[:, np.array(ARROW)]
    return np.concatenate([with_gaps(strokes), with_gaps(arrows)])


def _track_lines(tracks: Sequence[Track]) -> Array:
    return np.concatenate([np.zeros((0, 3), np.float32), *(with_gaps(track.positions[None]) for track in tracks)])


def _figure(go: ModuleType, frames: Sequence[_Frame], most: int, shading: _Shading, colours: dict[str, str]) -> Figure:
    # What no frame has needs no trace.
    colours = {name: c for name, c in colours.items() if any(len(f.lines.get(name, ())) for f in frames)}
    low, high = _extent([frame.values for frame in frames], shading)
    traces = [[_points(go, f, most, low, high), *_lines(go, f, colours)] for f in frames]
    figure = go.Figure(_styled(traces[0], shading, low, high, colours))
    titles = [_title(frame, most) for frame in frames]
    names = [str(i) for i in range(len(frames))]
    figure.frames = [
        go.Frame(data=data, name=name, layout={"title": {"text": title}})
        for data, name, title in zip(traces, names, titles, strict=True)
    ]
    figure.update_layout(
        title={"text": titles[0]},
        template="plotly_dark",
        margin={"l": 0, "r": 0, "t": 60, "b": 0},
        legend={"itemsizing": "constant"},
        scene=_axes(frames),
        sliders=[_slider(names)],
        updatemenus=[_player(), _views()],
    )
    return figure


def _extent(values: Sequence[Array], shading: _Shading) -> tuple[float, float]:
    """Between which values the colours go: all classes and ages, but only the 2nd to 98th percentile of heights."""
    if shading.classes:
        return 0.0, float(len(shading.classes))
    joined = np.concatenate(values)
    if not len(joined):
        return 0.0, 1.0
    low, high = (0.0, float(joined.max())) if shading.unit else np.percentile(joined, [2, 98])
    return float(low), max(float(high), float(low) + 1e-3)


def _points(go: ModuleType, frame: _Frame, most: int, low: float, high: float) -> Any:
    points, values = thinned(frame.points, most), thinned(frame.values, most)
    shade = (np.clip((values - low) / (high - low), 0, 1) * SHADES).round().astype(np.uint8)
    return _trace(go, (points * UNITS).round().astype(np.int16), {"marker": {"color": shade}})


def _lines(go: ModuleType, frame: _Frame, colours: dict[str, str]) -> list[Any]:
    nothing = np.zeros((0, 3), np.float32)
    return [_trace(go, (frame.lines.get(name, nothing) * UNITS).astype(np.float32), {}) for name in colours]


def _trace(go: ModuleType, rows: Array, more: dict[str, Any]) -> Any:
    # A trace without any row is left out of the picture by plotly, and then not brought back by a later frame.
    rows = rows if len(rows) else np.full((1, 3), np.nan, np.float32)
    return go.Scatter3d(x=rows[:, 0], y=rows[:, 1], z=rows[:, 2], **more)


def _styled(traces: Sequence[Any], shading: _Shading, low: float, high: float, colours: dict[str, str]) -> list[Any]:
    """Copies of the first frame's traces with what stays the same in all frames."""
    points, *lines = (type(trace)(trace) for trace in traces)
    bar = {"title": shading.title, "x": 0, "len": 0.5, "thickness": 12, **shading.ticks(low, high)}
    marker = {"size": 1.2, "cmin": 0, "cmax": SHADES, "colorscale": shading.scale(), "colorbar": bar}
    points.update(mode="markers", name="points", hoverinfo="skip", marker=marker)
    for line, (name, colour) in zip(lines, colours.items(), strict=True):
        width = 2 if name.startswith("tracks") else 4
        line.update(mode="lines", name=name, hoverinfo="name", line={"color": colour, "width": width}, showlegend=True)
    return [points, *lines]


def _title(frame: _Frame, most: int) -> str:
    shown = f"{frame.count} points" if frame.count <= most else f"{most} of {frame.count} points, thinned evenly"
    return f"{frame.title}<br><sub>{shown}</sub>"


def _axes(frames: Sequence[_Frame]) -> dict[str, Any]:
    """The same axes for all frames, to scale, so that nothing jumps."""
    bounds = np.array([frame.bounds for frame in frames])
    height = np.concatenate([frame.points[:, 2] for frame in frames])
    z = np.percentile(height, [0.5, 99.5]) if len(height) else np.array([-2.0, 2.0])
    ranges = {
        "x": (bounds[:, 0].min(), bounds[:, 1].max()),
        "y": (bounds[:, 2].min(), bounds[:, 3].max()),
        "z": (z[0] - 1, z[1] + 1),
    }
    longest = max(high - low for low, high in ranges.values())
    axes = {f"{axis}axis": _axis(axis, low, high) for axis, (low, high) in ranges.items()}
    ratio = {axis: 2 * float((high - low) / longest) for axis, (low, high) in ranges.items()}
    # uirevision: a view that was turned by hand stays so in the next frame.
    return {**axes, "aspectmode": "manual", "aspectratio": ratio, "camera": ABOVE, "uirevision": "tour"}


def _axis(name: str, low: float, high: float) -> dict[str, Any]:
    ticks = np.arange(np.ceil(low / TICK) * TICK, high, TICK)
    labels = {"tickvals": ticks * UNITS, "ticktext": [f"{tick:g}" for tick in ticks]}
    return {"title": {"text": f"{name} (m)"}, "range": [float(low) * UNITS, float(high) * UNITS], **labels}


def _slider(names: Sequence[str]) -> dict[str, Any]:
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    steps = [{"label": str(i + 1), "method": "animate", "args": [[name], now]} for i, name in enumerate(names)]
    value = {"prefix": "frame ", "suffix": f" of {len(names)}"}
    return {"active": 0, "currentvalue": value, "pad": {"t": 10, "b": 10, "l": 20, "r": 20}, "steps": steps}


def _player() -> dict[str, Any]:
    play = {"fromcurrent": True, "frame": {"duration": FRAME_MILLISECONDS, "redraw": True}}
    pause = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}}
    buttons: list[dict[str, Any]] = [
        {"label": "play", "method": "animate", "args": [None, {**play, "transition": {"duration": 0}}]},
        {"label": "pause", "method": "animate", "args": [[None], {**pause, "transition": {"duration": 0}}]},
    ]
    return _buttons(buttons, x=0.0)


def _views() -> dict[str, Any]:
    views = {"from above": ABOVE, "at an angle": ANGLE}
    buttons: list[dict[str, Any]] = [
        {"label": label, "method": "relayout", "args": [{"scene.camera": camera}]} for label, camera in views.items()
    ]
    return _buttons(buttons, x=0.2)


def _buttons(buttons: list[dict[str, Any]], x: float) -> dict[str, Any]:
    place = {"x": x, "y": 1.0, "xanchor": "left", "yanchor": "top"}
    return {"type": "buttons", "direction": "left", "showactive": False, "buttons": buttons, **place}
