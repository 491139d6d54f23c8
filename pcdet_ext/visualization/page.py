"""A picture page: one HTML file with a viewer for one frame or several, which needs no network and no package."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from pcdet_ext.files import atomic_write
from pcdet_ext.sketch import CLASS_COLOURS, TRUTH_COLOUR, class_colours
from pcdet_ext.structures import Array
from pcdet_ext.visualization.layers import FORECAST_COLOUR, PLAN_COLOUR
from pcdet_ext.visualization.levels import layer_colours
from pcdet_ext.visualization.page_frames import (
    Frame,
    box_rows,
    forecast_row,
    map_rows,
    names_of,
    path_rows,
    prepared,
    track_rows,
)
from pcdet_ext.visualization.page_points import COORDINATE_BYTES, Blob, Colouring, colourings, point_bytes, point_rows
from pcdet_ext.visualization.scene import (
    FOUND_TRACK_COLOUR,
    Scene,
    boxes_in,
)

SCRIPTS = ("data.js", "camera.js", "gl.js", "shapes.js", "panel.js", "main.js")
PAGE_BYTES = 20_000_000
VIEWER_BYTES = 100_000  # all but what it shows
MOST_POINTS = 120_000  # of a frame
FEWEST_POINTS = 200  # that a frame is to keep
MOST_DETECTIONS = 40_000  # in a page
COLOURS = {
    "truth": TRUTH_COLOUR,
    "found_track": FOUND_TRACK_COLOUR,
    "matched": "#2f9e6e",
    "false": "#e5484d",
    "missed": "#f59f00",
    "plain": "#8a94a0",
    "forecast": FORECAST_COLOUR,
    "plan": PLAN_COLOUR,
}


def write_page(scenes: Scene | Iterable[Scene], path: str | Path, score: float = 0.3) -> None:
    """Write one HTML file under 20 MB that shows a scene, or plays several, in any browser with WebGL 2.

    Points are coloured by class, age, height, range, intensity or another column, boxes by class, by track, or by what
    was matched and missed. Detections are matched by `pairing.pair`. Each scene is shown in its own LiDAR frame.

    Args:
        scenes: one, or several in the order of time, with all their detections.
        path: the file.
        score: detections that score less are hidden at first.

    Raises:
        ValueError: there are so many frames that hardly a point of each could be shown.
        OSError: the file cannot be written.
    """
    text = page_text([scenes] if isinstance(scenes, Scene) else scenes, score)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_text(scenes: Iterable[Scene], score: float = 0.3) -> str:
    """The HTML of a page; see `write_page`."""
    viewer = files("pcdet_ext.visualization") / "viewer"
    data, blob = page_data(scenes, score)
    frames: list[dict[str, Any]] = data["frames"]
    title = frames[0]["title"] if len(frames) == 1 else f"{frames[0]['title']} and {len(frames) - 1} more"
    return Template((viewer / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        style=(viewer / "style.css").read_text(encoding="utf-8"),
        script="\n".join((viewer / name).read_text(encoding="utf-8") for name in SCRIPTS),
        data=_json(data),
        blob=base64.b64encode(gzip.compress(blob, 6, mtime=0)).decode(),
    )


def _json(data: Any) -> str:
    """JSON that no text in it can end the script of."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def page_data(scenes: Iterable[Scene], score: float = 0.3) -> tuple[dict[str, Any], bytes]:
    """What the viewer reads: a description in plain types, and the numbers of points and cells as bytes."""
    frames = _collected(scenes)
    ways = colourings(frames)
    data = _description(frames, score)
    room = PAGE_BYTES - len(_json(data)) - VIEWER_BYTES - sum(_cell_bytes(frame) for frame in frames)
    most = int(room * 3 / 4 / point_bytes(ways) / len(frames))
    if most < FEWEST_POINTS:
        raise ValueError(
            f"{len(frames)} frames are too many for one page; take every N-th of them with A:B:N, or fewer"
        )
    blob = Blob()
    for frame, description in zip(frames, data["frames"], strict=True):
        _write_points(frame.thinned(most), description, ways, blob)
    return {**data, "colourings": [way.description for way in ways]}, blob.bytes()


def _collected(scenes: Iterable[Scene]) -> list[Frame]:
    """All frames, with fewer points the more there are, so that they need not be held whole."""
    frames: list[Frame] = []
    most = MOST_POINTS
    for scene in scenes:
        frames.append(prepared(scene).thinned(most))
        if sum(len(frame.points) for frame in frames) * COORDINATE_BYTES > 2 * PAGE_BYTES:
            most //= 2
            frames = [frame.thinned(most) for frame in frames]
    if not frames:
        raise ValueError("a page needs at least one frame")
    return frames


def _cell_bytes(frame: Frame) -> int:
    occupancy = frame.scene.layers.occupancy
    return 0 if occupancy is None else len(occupancy.cells()) * 8 * 4 // 3


def _write_points(frame: Frame, description: dict[str, Any], ways: Sequence[Colouring], blob: Blob) -> None:
    description["points"] = point_rows(frame, ways, blob)
    description["note"] = frame.note + description["note"]
    occupancy = frame.scene.layers.occupancy
    if occupancy is not None:
        description["occupancy"]["at"] = blob.add(occupancy.cells().astype("<u2"))


def _description(frames: Sequence[Frame], score: float) -> dict[str, Any]:
    """All but the points."""
    found_names = dict.fromkeys(name for f in frames if f.scene.detections for name in f.scene.detections.class_names)
    names = list(dict.fromkeys([*found_names, *(name for f in frames for name in names_of(f.scene.truth))]))
    colours = class_colours(names)
    lowest, scores = _lowest_score(frames), _score_range(frames)
    ground = _ground(frames)
    map_colours = layer_colours([name for f in frames if f.scene.layers.map for name in f.scene.layers.map.names])
    rows = [_frame(frame, names, lowest, ground, map_colours) for frame in frames]
    everything = [(row, box) for row in rows for box in row["boxes"]]
    ids = any(box[13] >= 0 for _, box in everything)
    colour_by = [*(["match"] if any(row["matched"] for row in rows) else []), "class", *(["track"] if ids else [])]
    bounds = np.array([frame.bounds for frame in frames])
    return {
        "frames": rows,
        "score": min(max(score, scores[0]), scores[1]),
        "scores": scores,
        "classes": [{"name": name, "colour": colours[name]} for name in names],
        "map_classes": [{"name": name, "colour": colour} for name, colour in map_colours.items()],
        "occupancy_classes": _cell_classes(frames),
        "colours": COLOURS,
        "track_colours": CLASS_COLOURS,
        "box_colourings": colour_by,
        "has": {
            "found": any(frame.scene.detections is not None for frame in frames),
            "truth": any(len(boxes_in(frame.scene.truth)) for frame in frames),
            "ids": ids,
        },
        "layers": _layers(rows),
        "off": _off(frames, ids),
        "extent": [*bounds[:, 0].min(keepdims=True), bounds[:, 1].max(), bounds[:, 2].min(), bounds[:, 3].max()],
        "ground": ground,
        "point_size": 2,
    }


def _frame(
    frame: Frame, names: Sequence[str], lowest: float, ground: float, map_colours: dict[str, str]
) -> dict[str, Any]:
    scene = frame.scene
    boxes, matched = box_rows(frame, names, lowest)
    layers = scene.layers
    occupancy = layers.occupancy
    return {
        "title": scene.title,
        "note": f"; detections below {lowest:.3g} are left out" if lowest > -np.inf else "",
        "boxes": boxes,
        "matched": matched,
        "tracks": [
            *track_rows(scene.truth_tracks, scene, names, found=False),
            *track_rows(scene.found_tracks, scene, names, found=True),
        ],
        "forecasts": [forecast_row(forecast, names, ground) for forecast in layers.forecasts],
        "plans": [{"found": plan.found, "path": path_rows(plan.path, ground)} for plan in layers.plans],
        "map": map_rows(layers.map, map_colours),
        "occupancy": None
        if occupancy is None
        else {
            "low": list(occupancy.low),
            "size": list(occupancy.cell),
            "grid": list(occupancy.labels.shape),
            "count": len(occupancy.cells()),
            "classes": _coloured(occupancy.class_names),
        },
    }


def _coloured(names: Sequence[str]) -> list[dict[str, str]]:
    return [{"name": name, "colour": colour} for name, colour in layer_colours(names).items()]


def _cell_classes(frames: Sequence[Frame]) -> list[dict[str, str]]:
    grids = [frame.scene.layers.occupancy for frame in frames]
    return _coloured([name for grid in grids if grid is not None for name in grid.class_names])


def _layers(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What can be switched on and off."""
    boxes = [box for row in rows for box in row["boxes"]]
    there = {
        "rings": True,
        "labels": bool(boxes),
        "velocity": any(box[7] is not None for box in boxes),
        "tracks": any(row["tracks"] for row in rows),
        "forecasts": any(row["forecasts"] for row in rows),
        "map": any(row["map"] for row in rows),
        "occupancy": any(row["occupancy"] for row in rows),
        "plan": any(row["plans"] for row in rows),
    }
    return [name for name, is_there in there.items() if is_there]


def _off(frames: Sequence[Frame], ids: bool) -> list[str]:
    """What is not shown until it is switched on: cells that would hide the points, and labels that tell no track."""
    has_points = any(len(frame.points) for frame in frames)
    return [*(["occupancy"] if has_points else []), *([] if ids else ["labels"])]


def _all_scores(frames: Sequence[Frame]) -> Array:
    scores = [np.asarray(f.scene.detections.scores, np.float64) for f in frames if f.scene.detections is not None]
    return np.concatenate([np.zeros(0), *scores])


def _lowest_score(frames: Sequence[Frame]) -> float:
    """From which score on detections are kept: no more than a page can hold."""
    scores = _all_scores(frames)
    return -np.inf if len(scores) <= MOST_DETECTIONS else float(np.sort(scores)[-MOST_DETECTIONS])


def _score_range(frames: Sequence[Frame]) -> list[float]:
    """Between which scores the page's slider goes: 0 to 1, or wider where scores are no probabilities."""
    scores = _all_scores(frames)
    return [float(np.floor(min(0.0, scores.min(initial=0.0)))), float(np.ceil(max(1.0, scores.max(initial=1.0))))]


def _ground(frames: Sequence[Frame]) -> float:
    """About how high the ground is: the median of the labelled boxes' floors, else the lowest twentieth of points."""
    boxes = np.concatenate([boxes_in(frame.scene.truth)[:, :7] for frame in frames])
    if len(boxes):
        return round(float(np.median(boxes[:, 2] - boxes[:, 5] / 2)), 2)
    heights = np.concatenate([frame.points[:, 2] for frame in frames])
    return round(float(np.percentile(heights, 5)), 2) if len(heights) else 0.0
