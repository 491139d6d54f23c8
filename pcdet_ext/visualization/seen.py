"""What the heads of a detector found, and what is labelled, as what a picture shows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from pcdet_ext.scenes import MAP_LAYERS, OCCUPANCY_CLASSES, Forecasts, MapLayers, OccupancyGrid, PlannedPath, Scope
from pcdet_ext.structures import Array, Detections, Found, PointLabels, Predictions, Targets
from pcdet_ext.visualization.layers import Forecast, Layers, MapLayer, OccupancyLayer, Plan
from pcdet_ext.visualization.scene import Scene, with_detections, with_point_labels

Grid = tuple[Scope, Scope]  # its axes x and y

SURE = 0.5  # from which probability a cell is said to belong to a layer of the map
OCCUPANCY_HEIGHTS = (-1.0, 5.4)  # metres, of the published grids
OCCUPANCY_SIDE = 40.0  # metres on each side of the vehicle, of labelled grids
MAP_SIDE = 50.0  # the same of labelled maps


@dataclass(frozen=True, eq=False)
class Seen:
    """What was found in one frame: boxes, classes of points, and layers; arrays."""

    boxes: Detections | None = None
    labels: PointLabels | None = None
    layers: Layers = field(default_factory=Layers)


def seen(found: Found | Predictions | None) -> Seen:
    """What all heads found in one frame; of two heads that tell the same, the first.

    Raises ValueError for forecasts without the boxes that they follow.
    """
    if found is None:
        return Seen()
    whole = (found if isinstance(found, Predictions) else Predictions({"head": found})).numpy()
    parts = list(whole.heads.values())
    boxes = whole.detections if any(isinstance(part, Detections) for part in parts) else None
    labels = next((part for part in parts if isinstance(part, PointLabels)), None)
    return Seen(boxes, labels, _layers(whole))


def with_seen(scene: Scene, found: Seen) -> Scene:
    """A scene with what was found in it. Raises ValueError where labels and finite points differ in number."""
    scene = scene if found.labels is None else with_point_labels(scene, found.labels)
    scene = scene if found.boxes is None else with_detections(scene, found.boxes)
    return replace(scene, layers=found.layers)


def _layers(found: Predictions) -> Layers:
    parts = list(found.heads.values())
    maps = [_map_layer(part) for part in parts if isinstance(part, MapLayers)]
    grids = [_occupancy_layer(part) for part in parts if isinstance(part, OccupancyGrid)]
    forecasts = [one for part in parts if isinstance(part, Forecasts) for one in _forecasts(part, found)]
    plans = [Plan(_from_here(np.asarray(part.path))) for part in parts if isinstance(part, PlannedPath)]
    return Layers(forecasts, maps[0] if maps else None, grids[0] if grids else None, plans)


def _map_layer(found: MapLayers) -> MapLayer:
    extent = (found.x[0], found.y[0], found.x[1], found.y[1])
    return MapLayer(np.asarray(found.probabilities) >= SURE, extent, found.names)


def _occupancy_layer(found: OccupancyGrid) -> OccupancyLayer:
    """A grid whose last class is free space."""
    labels = np.asarray(found.labels).astype(np.int64)
    low, high = OCCUPANCY_HEIGHTS
    cell = (found.x[2], found.y[2], (high - low) / labels.shape[2])
    return OccupancyLayer(labels, (found.x[0], found.y[0], low), cell, found.class_names[:-1])


def _forecasts(found: Forecasts, whole: Predictions) -> list[Forecast]:
    boxes = whole.followed_by(found)
    logits = np.asarray(found.scores, np.float64)
    weights = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
    weights /= weights.sum(1, keepdims=True)
    tracks = np.full(len(boxes), -1) if boxes.track_ids is None else np.asarray(boxes.track_ids)
    starts = np.asarray(boxes.boxes)[:, :2]
    return [
        Forecast(name, _from(start, paths), weight, float(score), int(track))
        for name, start, paths, weight, score, track in zip(
            boxes.names, starts, np.asarray(found.paths), weights, np.asarray(boxes.scores), tracks, strict=True
        )
    ]


def _from(start: Array, paths: Array) -> Array:
    """Paths [K, T, 2] that begin at a place [2]: [K, T + 1, 2]."""
    return np.concatenate([np.broadcast_to(start, (len(paths), 1, 2)), paths], 1)


def _from_here(path: Array) -> Array:
    """A path [T, 2] that begins where the vehicle is: [T + 1, 2]."""
    return np.concatenate([np.zeros((1, 2)), path])


def labelled_layers(targets: Targets | None, found: Layers) -> Layers:
    """What is labelled, beside or instead of what was found.

    Labelled futures and the way that was driven are shown beside what was found; a labelled map and labelled cells only
    where none were found, as one would hide the other. Labels that do not say where their cells are reach 40 m to each
    side, as those of Occ3D do, and maps 50 m.
    """
    if targets is None:
        return found
    plans = [*_labelled_plan(targets), *found.plans]
    layers = replace(found, forecasts=[*_labelled_futures(targets), *found.forecasts], plans=plans)
    if found.occupancy is None and targets.occupancy is not None:
        layers = replace(layers, occupancy=_labelled_cells(np.asarray(targets.occupancy), targets.occupancy_grid))
    if found.map is None and targets.map_masks is not None:
        layers = replace(layers, map=_labelled_map(np.asarray(targets.map_masks), targets.map_grid))
    return layers


def _labelled_futures(targets: Targets) -> list[Forecast]:
    if targets.boxes is None or targets.futures is None or targets.future_mask is None:
        return []
    steps, mask = np.asarray(targets.futures), np.asarray(targets.future_mask).astype(bool)
    starts = np.asarray(targets.boxes)[:, :2]
    lengths = np.cumprod(mask, axis=1).sum(1)  # what comes behind a step that is not known is not known
    names = targets.names or ("object",) * len(targets)
    return [
        Forecast(name, _from(start, (start + own[:length].cumsum(0))[None]))
        for name, start, own, length in zip(names, starts, steps, lengths.tolist(), strict=True)
        if length and np.isfinite(start).all()
    ]


def _labelled_plan(targets: Targets) -> list[Plan]:
    if targets.plan is None:
        return []
    known = int(np.cumprod(np.asarray(targets.plan.mask).astype(bool)).sum())
    path = np.asarray(targets.plan.steps)[:known].cumsum(0)
    return [Plan(_from_here(path), found=False)] if known else []


def _labelled_cells(labels: Array, grid: Grid | None) -> OccupancyLayer:
    x, y = grid or _around(OCCUPANCY_SIDE, labels.shape[:2])
    low, high = OCCUPANCY_HEIGHTS
    cell = (x[2], y[2], (high - low) / labels.shape[2])
    return OccupancyLayer(labels.astype(np.int64), (x[0], y[0], low), cell, OCCUPANCY_CLASSES[:-1])


def _labelled_map(masks: Array, grid: Grid | None) -> MapLayer:
    x, y = grid or _around(MAP_SIDE, masks.shape[:0:-1])
    names = MAP_LAYERS if len(masks) == len(MAP_LAYERS) else tuple(f"layer {i}" for i in range(len(masks)))
    return MapLayer(masks.astype(bool), (x[0], y[0], x[1], y[1]), names)


def _around(side: float, cells: tuple[int, ...]) -> Grid:
    """The axes x and y of a grid of so many cells that reaches so far to each side."""
    x, y = ((-side, side, 2 * side / count) for count in cells)
    return x, y
