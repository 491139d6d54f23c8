"""A recording of frames for the viewer of Rerun (https://rerun.io), one file .rrd; needs the extra `rerun`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pcdet_ext.files import atomic_write
from pcdet_ext.sketch import TRUTH_COLOUR, VIRIDIS, class_colours
from pcdet_ext.structures import Array, Detections, Targets
from pcdet_ext.visualization.layers import FORECAST_COLOUR, PLAN_COLOUR, Layers, OccupancyLayer, rectangles
from pcdet_ext.visualization.levels import layer_colours, levels
from pcdet_ext.visualization.page_frames import names_of
from pcdet_ext.visualization.scene import FOUND_TRACK_COLOUR, Scene, Track, boxes_in, velocity_arrows

APPLICATION = "pcdet_ext"
TIMELINE = "frame"
WORLD = "world"
POINT_METRES, LINE_METRES = 0.03, 0.05  # radii of points and lines


def write_recording(scenes: Iterable[Scene], path: str | Path) -> None:
    """Write an .rrd file: points, boxes, velocities, tracks and layers of each scene on a timeline "frame".

    Each scene is in its own LiDAR frame. Entities: world/points, world/truth/… and world/found/… with boxes,
    velocities, tracks and forecasts, world/map, world/occupancy, world/plans. What a frame does not have is cleared.

    Args:
        scenes: in the order of time, with those detections that are to be shown.
        path: the file.

    Raises:
        ImportError: rerun-sdk is not installed.
    """
    rerun = _rerun()
    with atomic_write(path) as temporary:
        stream = rerun.RecordingStream(APPLICATION)
        try:
            stream.save(temporary)
            stream.log(WORLD, rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
            for number, scene in enumerate(scenes):
                stream.set_time(TIMELINE, sequence=number)
                for name, entity in _entities(rerun, scene.finite()).items():
                    stream.log(f"{WORLD}/{name}", rerun.Clear(recursive=False) if entity is None else entity)
        finally:
            stream.flush()
            stream.disconnect()


def _rerun() -> ModuleType:
    try:
        import rerun
    except ImportError as error:
        raise ImportError("a recording needs rerun-sdk: pip install 'pcdet_ext[rerun]'") from error
    module: ModuleType = rerun
    return module


def _entities(rerun: ModuleType, scene: Scene) -> dict[str, Any]:
    """What is logged of a scene by its name, None for what the scene does not have."""
    classes = () if scene.detections is None else scene.detections.class_names
    colours = class_colours(list(classes))
    entities = {
        "title": rerun.TextDocument(scene.title),
        "points": _points(rerun, scene),
        **_objects(rerun, "truth", scene.truth, scene.truth_tracks, {}, TRUTH_COLOUR),
        **_objects(rerun, "found", scene.detections, scene.found_tracks, colours, FOUND_TRACK_COLOUR),
    }
    return entities | _layers(rerun, scene.layers)


def _points(rerun: ModuleType, scene: Scene) -> Any:
    if not len(scene.points):
        return None
    told = levels(scene)
    colours = _by_height(scene.points[:, 2]) if told is None else _rgb(told.colours)[told.level]
    return rerun.Points3D(scene.points[:, :3], colors=colours, radii=POINT_METRES)


def _by_height(height: Array) -> Array:
    """uint8 [N, 3]: colours between the 2nd and the 98th percentile of the height."""
    low, high = np.percentile(height, [2, 98])
    ramp = _rgb(VIRIDIS)
    share = np.clip((height - low) / max(high - low, 1e-3), 0, 1) * (len(ramp) - 1)
    return np.stack([np.interp(share, np.arange(len(ramp)), ramp[:, c]) for c in range(3)], 1).astype(np.uint8)


def _objects(
    rerun: ModuleType,
    kind: str,
    held: Targets | Detections | None,
    tracks: Sequence[Track],
    colours: dict[str, str],
    track_colour: str,
) -> dict[str, Any]:
    """Boxes, velocities and tracks; boxes of classes without a colour have that of tracks."""
    boxes, names = boxes_in(held).astype(np.float64), names_of(held)
    arrows = velocity_arrows(boxes)[:, 0]  # from the middle of a box to where it is after a second
    lines = [track.positions for track in tracks]
    named = [f"{track.name} {track.track_id}" for track in tracks]
    return {
        f"{kind}/boxes": _boxes(rerun, boxes, _labels(held), [colours.get(name, track_colour) for name in names]),
        f"{kind}/velocities": rerun.Arrows3D(
            origins=arrows[:, 0], vectors=arrows[:, 1] - arrows[:, 0], colors=_rgb([track_colour]), radii=LINE_METRES
        )
        if len(arrows)
        else None,
        f"{kind}/tracks": _lines(rerun, lines, [track_colour] * len(lines), named),
    }


def _labels(held: Targets | Detections | None) -> list[str]:
    """Class, track and score of each box."""
    if held is None:
        return []
    tracks = [""] * len(held) if held.track_ids is None else [f" {int(i)}" for i in held.track_ids]
    scores = [f" {score:.2f}" for score in held.scores] if isinstance(held, Detections) else [""] * len(held)
    return [name + track + score for name, track, score in zip(names_of(held), tracks, scores, strict=True)]


def _boxes(rerun: ModuleType, boxes: Array, labels: Sequence[str], colours: Sequence[str]) -> Any:
    if not len(boxes):
        return None
    half = boxes[:, 6] / 2
    turned = np.column_stack([np.zeros((len(boxes), 2)), np.sin(half), np.cos(half)])  # x, y, z, w
    return rerun.Boxes3D(
        centers=boxes[:, :3], half_sizes=boxes[:, 3:6] / 2, quaternions=turned, labels=labels, colors=_rgb(colours)
    )


def _lines(rerun: ModuleType, lines: Sequence[Array], colours: Sequence[str], labels: Sequence[str]) -> Any:
    if not lines:
        return None
    return rerun.LineStrips3D(lines, colors=_rgb(colours), labels=list(labels), radii=LINE_METRES, show_labels=False)


def _layers(rerun: ModuleType, layers: Layers) -> dict[str, Any]:
    entities: dict[str, Any] = {}
    for kind in ("truth", "found"):
        own = [one for one in layers.forecasts if (one.score is not None) == (kind == "found")]
        paths = [_in_space(path) for one in own for path in one.paths]
        names = [f"{one.name} {weight:.2f}" for one in own for weight in one.weights]
        colour = FORECAST_COLOUR if kind == "found" else TRUTH_COLOUR
        entities[f"{kind}/forecasts"] = _lines(rerun, paths, [colour] * len(paths), names)
    plans = [_in_space(plan.path) for plan in layers.plans]
    colours = [PLAN_COLOUR if plan.found else TRUTH_COLOUR for plan in layers.plans]
    names = ["planned" if plan.found else "driven" for plan in layers.plans]
    entities["plans"] = _lines(rerun, plans, colours, names)
    entities["occupancy"] = None if layers.occupancy is None else _cells(rerun, layers.occupancy)
    entities["map"] = _map(rerun, layers)
    return entities


def _cells(rerun: ModuleType, layer: OccupancyLayer) -> Any:
    cells = layer.cells()
    size = np.array(layer.cell)
    table = _rgb(list(layer_colours(layer.class_names).values()))
    centres = np.array(layer.low) + (cells[:, :3] + 0.5) * size
    halves = np.broadcast_to(size / 2, centres.shape)
    return rerun.Boxes3D(centers=centres, half_sizes=halves, colors=table[cells[:, 3]], fill_mode="solid")


def _map(rerun: ModuleType, layers: Layers) -> Any:
    """The rectangles that masks cover, as flat boxes."""
    if layers.map is None or layers.map.masks is None:
        return None
    xmin, ymin, xmax, ymax = layers.map.extent
    height, width = layers.map.masks.shape[1:]
    step = np.array([(xmax - xmin) / width, (ymax - ymin) / height] * 2)
    colours = layer_colours(layers.map.names)
    corners, tints, names = [np.zeros((0, 4))], [], []
    for name, mask in zip(layers.map.class_names, layers.map.masks, strict=True):
        own = rectangles(mask) * step + np.array([xmin, ymin] * 2)
        corners.append(own)
        tints += [colours[name]] * len(own)
        names += [name] * len(own)
    found = np.concatenate(corners)
    middle = np.column_stack([(found[:, :2] + found[:, 2:]) / 2, np.zeros(len(found))])
    halves = np.column_stack([(found[:, 2:] - found[:, :2]) / 2, np.zeros(len(found))])
    return rerun.Boxes3D(centers=middle, half_sizes=halves, colors=_rgb(tints), labels=names, show_labels=False)


def _in_space(path: Array) -> Array:
    """Places [T, 2 or 3] as [T, 3], on the plane z = 0 where they have no height."""
    return np.column_stack([path, np.zeros(len(path))]) if path.shape[1] == 2 else path


def _rgb(colours: Sequence[str]) -> Array:
    """uint8 [N, 3] of colours "#rrggbb"."""
    rows = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours]
    return np.array(rows, np.uint8).reshape(-1, 3)
