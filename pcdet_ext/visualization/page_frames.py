"""Frames as the picture page reads them: numbers of points in bytes, all others as plain lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pcdet_ext.ops import points_in_boxes
from pcdet_ext.structures import Array, Detections, Targets, tensor_of
from pcdet_ext.visualization.ages import TIME_COLUMNS, ages, point_times
from pcdet_ext.visualization.bev import view_range
from pcdet_ext.visualization.layers import Forecast, MapLayer, rectangles
from pcdet_ext.visualization.pairing import pair
from pcdet_ext.visualization.scene import Scene, Track, boxes_in

FARTHEST = 1000.0  # metres from the middle of the points: one point far off would leave all others in one place
LEVELS = 255  # what a byte can tell apart
UNKNOWN, NO_PARTNER = -2, -1
UNNAMED = "object"  # the class of boxes without a label
MILLIMETRE = 3  # decimals of a metre


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame, ready to be written.

    scene: without its points; points: float32 [N, 3]; columns: float [N] by name, what points can be coloured by;
    labels: int64 [N], the class of each point in `label_names`, -1 for none, or None where nothing tells it; count: how
    many points there were; far: how many others were too far off; bounds: (xmin, xmax, ymin, ymax) of what is to see;
    hit: bool, one per labelled box, whether there is a point in it.
    """

    scene: Scene
    points: Array
    columns: dict[str, Array]
    labels: Array | None
    label_names: tuple[str, ...]
    count: int
    far: int
    bounds: tuple[float, float, float, float]
    hit: Array

    def thinned(self, most: int) -> Frame:
        """The same with at most so many of the points, evenly spread over their order."""
        if len(self.points) <= most:
            return self
        rows = np.linspace(0, len(self.points) - 1, most).astype(np.int64)
        columns = {name: column[rows] for name, column in self.columns.items()}
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, points=self.points[rows], columns=columns, labels=labels)

    @property
    def age_unit(self) -> str:
        """What ages count in."""
        return next(unit for name, unit in TIME_COLUMNS.items() if name in self.scene.point_features)

    @property
    def note(self) -> str:
        """How many points are shown."""
        shown = len(self.points)
        text = f"{self.count} points" if shown == self.count else f"{shown} of {self.count} points, thinned evenly"
        return text + (f"; {self.far} farther off than {FARTHEST:g} m are left out" if self.far else "")


def prepared(scene: Scene) -> Frame:
    """A frame of a scene, without what is not finite or farther off than 1000 m."""
    scene = scene.finite()
    places = scene.points[:, :3]
    middle = np.median(places, 0) if len(places) else np.zeros(3)
    near: Array = np.abs(places - middle).max(1, initial=0) < FARTHEST
    far = int(np.sum(~near))
    scene = scene.select_points(near) if far else scene
    told = scene.point_labels
    labels = None if told is None else np.asarray(told.labels, np.int64)
    names = () if told is None else told.class_names
    points = scene.points[:, :3].astype(np.float32)
    rest = replace(scene, points=scene.points[:0], point_labels=None)
    hit = _hit(points, boxes_in(scene.truth))
    return Frame(rest, points, _columns(scene), labels, names, len(points), far, view_range(scene), hit)


def _hit(points: Array, boxes: Array) -> Array:
    """bool [M]: whether there is a point in each box; all are taken to be hit where there is no point at all."""
    if not len(points) or not len(boxes):
        return np.ones(len(boxes), bool)
    inside = points_in_boxes(tensor_of(points), tensor_of(boxes[:, :7].astype(np.float32))).numpy()
    return np.bincount(inside[inside >= 0], minlength=len(boxes)) > 0


def _columns(scene: Scene) -> dict[str, Array]:
    """The columns of the points that are no coordinate, by name; ages where points of several sweeps have them."""
    names = list(scene.point_features)[3 : scene.points.shape[1]]
    columns = {name: scene.points[:, i + 3] for i, name in enumerate(names) if name not in TIME_COLUMNS}
    times = point_times(scene)
    if times is not None and ages(scene) is not None:
        columns["age"] = times[0]
    return columns


def box_rows(frame: Frame, classes: Sequence[str], lowest: float) -> tuple[list[list[Any]], bool]:
    """The boxes of a frame, labelled ones first, as the page reads them, and whether they could be paired.

    A row is x, y, z, dx, dy, dz, heading, vx, vy (None where not known), score (None for labelled ones), class, 1 for
    a detection, the row of its partner (-1 for none, -2 for labelled boxes that nobody can be blamed for missing: of
    classes that are not looked for, or without a point), and the track (-1 for none).

    Args:
        frame: with or without detections and ground truth.
        classes: of the page.
        lowest: score below which detections are left out.
    """
    truth, found = frame.scene.truth, frame.scene.detections
    found = None if found is None else found.above(lowest)
    truth_boxes, truth_names = boxes_in(truth), names_of(truth)
    rows = _rows(truth_boxes, truth_names, classes, None, _tracks_of(truth))
    if found is None:
        return rows, False
    scores = np.asarray(found.scores, np.float64)
    rows += _rows(boxes_in(found), found.names, classes, scores, _tracks_of(found))
    matched = truth is not None and truth.boxes is not None
    if matched:
        partner = pair(truth_boxes, truth_names, boxes_in(found), found.names, scores)
        counted = [name in found.class_names and hit for name, hit in zip(truth_names, frame.hit.tolist(), strict=True)]
        _write_partners(rows, partner, counted)
    return rows, matched


def _write_partners(rows: list[list[Any]], partner: Array, counted: Sequence[bool]) -> None:
    count = len(counted)
    for row, known in zip(rows, counted, strict=False):
        row[12] = NO_PARTNER if known else UNKNOWN
    for i, other in enumerate(partner.tolist()):
        rows[count + i][12] = other
        if other >= 0:
            rows[other][12] = count + i


def _rows(
    boxes: Array, names: Sequence[str], classes: Sequence[str], scores: Array | None, tracks: Array
) -> list[list[Any]]:
    number = {name: i for i, name in enumerate(classes)}
    places = np.round(boxes[:, :7].astype(np.float64), MILLIMETRE).tolist()
    ways = _velocities(boxes)
    values = [None] * len(boxes) if scores is None else np.round(scores, 4).tolist()
    kind = int(scores is not None)
    return [
        [*place, *way, value, number[name], kind, UNKNOWN, track]
        for place, way, value, name, track in zip(places, ways, values, names, tracks.tolist(), strict=True)
    ]


def _velocities(boxes: Array) -> list[list[float | None]]:
    if boxes.shape[1] < 9:
        return [[None, None]] * len(boxes)
    known = np.isfinite(boxes[:, 7:9]).all(1)
    rounded = np.round(boxes[:, 7:9].astype(np.float64), 2).tolist()
    return [row if good else [None, None] for row, good in zip(rounded, known.tolist(), strict=True)]


def names_of(holder: Targets | Detections | None) -> Sequence[str]:
    """The class name of each box."""
    if holder is None:
        return ()
    return (UNNAMED,) * len(holder) if holder.labels is None else holder.names


def _tracks_of(holder: Targets | Detections | None) -> Array:
    if holder is None or holder.track_ids is None:
        return np.full(0 if holder is None else len(holder), -1, np.int64)
    return np.asarray(holder.track_ids, np.int64)


def track_rows(tracks: Sequence[Track], scene: Scene, classes: Sequence[str], found: bool) -> list[dict[str, Any]]:
    """Tracks as the page reads them, those of detections with the score in this frame.

    Args:
        tracks: of the frame's sequence.
        scene: the frame.
        classes: class names, whose positions the page knows.
        found: whether the tracks are of detections, and not labelled.
    """
    held = scene.detections
    scores: dict[int, float] = {}
    if found and held is not None and held.track_ids is not None:
        scores = dict(zip(np.asarray(held.track_ids).tolist(), np.asarray(held.scores).tolist(), strict=True))
    return [
        {
            "id": track.track_id,
            "found": found,
            "label": classes.index(track.name) if track.name in classes else -1,
            "score": scores.get(track.track_id),
            "path": np.round(track.positions, 2).tolist(),
        }
        for track in tracks
    ]


def forecast_row(forecast: Forecast, classes: Sequence[str], ground: float) -> dict[str, Any]:
    """A forecast as the page reads it.

    Args:
        forecast: of one object.
        classes: class names, whose positions the page knows.
        ground: z in metres of paths without a height.
    """
    return {
        "label": classes.index(forecast.name) if forecast.name in classes else -1,
        "found": forecast.score is not None,
        "score": forecast.score,
        "track": forecast.track_id,
        "modes": [path_rows(path, ground) for path in forecast.paths],
        "probabilities": np.round(forecast.weights, 4).tolist(),
    }


def path_rows(path: Array, ground: float) -> list[list[float]]:
    """Places [T, 2 or 3] as lists of x, y, z."""
    places = np.asarray(path, np.float64)
    if places.shape[1] == 2:
        places = np.column_stack([places, np.full(len(places), ground)])
    rows: list[list[float]] = np.round(places, 2).tolist()
    return rows


def map_rows(layer: MapLayer | None, colours: dict[str, str]) -> list[dict[str, Any]]:
    """A map as the page reads it: for each class rectangles that are covered, and lines."""
    if layer is None:
        return []
    parts = []
    for name in layer.names:
        cells: list[list[float]] = []
        if layer.masks is not None and name in layer.class_names:
            cells = _in_metres(rectangles(layer.masks[layer.class_names.index(name)]), layer)
        lines = [np.round(line, 2).tolist() for line in layer.lines.get(name, ())]
        parts.append({"name": name, "colour": colours[name], "cells": cells, "lines": lines})
    return parts


def _in_metres(cells: Array, layer: MapLayer) -> list[list[float]]:
    xmin, ymin, xmax, ymax = layer.extent
    height, width = layer.masks.shape[1:] if layer.masks is not None else (1, 1)
    step = np.array([(xmax - xmin) / width, (ymax - ymin) / height] * 2)
    rows: list[list[float]] = np.round(cells * step + np.array([xmin, ymin] * 2), MILLIMETRE).tolist()
    return rows
