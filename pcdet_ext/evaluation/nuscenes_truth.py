"""Ground truth of nuScenes out of the released tables, as the official evaluation takes it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pcdet_ext.evaluation.nuscenes import Boxes, Samples
from pcdet_ext.evaluation.nuscenes_tables import NONE, UNKNOWN, Tables
from pcdet_ext.evaluation.nuscenes_tracking import CLASSES as TRACKED_CLASSES
from pcdet_ext.evaluation.nuscenes_tracking import Sequences, Tracks
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array

RACK = "static_object.bicycle_rack"
# The class that each category is measured as; all others are not.
DETECTION_CLASSES = {
    "vehicle.car": "car", "vehicle.truck": "truck", "vehicle.trailer": "trailer", "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus", "vehicle.construction": "construction_vehicle", "vehicle.bicycle": "bicycle",
    "vehicle.motorcycle": "motorcycle", "human.pedestrian.adult": "pedestrian", "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian", "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone", "movable_object.barrier": "barrier",
}  # fmt: skip
LONGEST_GAP = 1.5  # seconds between two annotations that a velocity is taken from; twice that with both neighbours
SECONDS = 1e-6  # of a timestamp


def tokens_of_scenes(tables: Tables, scenes: Collection[str] | None, samples: Collection[str]) -> tuple[str, ...]:
    """Tokens of all samples of some scenes, by name; None: of the scenes that the given samples are in.

    Raises DataError for scenes that are not there, and for samples of which none is in the tables.
    """
    names = tables.scene_names
    if scenes is None:
        chosen = {names[tables.sample.row[token]] for token in samples if token in tables.sample.row}
        if samples and not chosen:
            raise DataError(f"{tables.folder}: has none of the samples of the results, such as {min(samples)}")
    else:
        known = set(tables.scene.texts["name"])
        missing = [name for name in scenes if name not in known]
        if missing:
            raise DataError(f"{tables.folder}: has no scene {missing[0]!r}; it has {len(known)}")
        chosen = set(scenes)
    return tuple(token for token, name in zip(tables.sample.tokens, names, strict=True) if name in chosen)


def detection_truth(tables: Tables, tokens: Sequence[str]) -> tuple[Boxes, Samples]:
    """Annotations of samples as classes of the detection benchmark, and the samples."""
    rows, number = _annotations(tables, tokens)
    classes = np.array([DETECTION_CLASSES.get(name, "") for name in tables.categories[rows]], np.str_)
    kept = classes != ""
    return _boxes(tables, rows[kept], number[kept], classes[kept]), _samples(tables, tokens, rows, number)


def tracking_truth(tables: Tables, tokens: Sequence[str]) -> tuple[Tracks, Sequences]:
    """Annotations of samples as tracks of the tracking benchmark, and when and where the samples were."""
    rows, number = _annotations(tables, tokens)
    classes = np.array([DETECTION_CLASSES.get(name, "") for name in tables.categories[rows]], np.str_)
    kept = np.isin(classes, TRACKED_CLASSES)
    instances = tables.annotation.texts["instance_token"]
    track = np.array([instances[i] for i in rows[kept].tolist()], np.str_)
    place = _rows_of_samples(tables, tokens)
    scene = np.array([tables.scene_names[i] for i in place.tolist()], np.str_)
    samples = _samples(tables, tokens, rows, number)
    sequences = Sequences(samples, scene, tables.sample.whole("timestamp")[place])
    return Tracks(_boxes(tables, rows[kept], number[kept], classes[kept]), track), sequences


def _rows_of_samples(tables: Tables, tokens: Sequence[str]) -> Array:
    rows = tables.sample.find(tokens)
    for i in np.flatnonzero(rows < 0).tolist():
        raise DataError(f"{tables.sample.path}: has no sample {tokens[i]!r}")
    return rows


def _annotations(tables: Tables, tokens: Sequence[str]) -> tuple[Array, Array]:
    """Rows of the annotations of samples, and the position of each one's sample, in the order of samples and table."""
    number = np.full(len(tables.sample), NONE)
    number[_rows_of_samples(tables, tokens)] = np.arange(len(tokens))
    of_annotation = number[tables.sample.rows(tables.annotation, "sample_token")]
    rows = np.flatnonzero(of_annotation != NONE)
    rows = rows[np.argsort(of_annotation[rows], kind="stable")]
    return rows, of_annotation[rows]


def _samples(tables: Tables, tokens: Sequence[str], rows: Array, number: Array) -> Samples:
    poses = tables.ego_pose.rows(tables.lidar, "ego_pose_token")[tables.key_frame[_rows_of_samples(tables, tokens)]]
    ego = tables.ego_pose.check_finite("translation", poses)
    racks = tables.categories[rows] == RACK
    names = np.full(int(racks.sum()), RACK)
    return Samples(tuple(tokens), ego, _boxes(tables, rows[racks], number[racks], names))


def _boxes(tables: Tables, rows: Array, number: Array, names: Array) -> Boxes:
    table = tables.annotation
    return Boxes(
        sample=number,
        name=np.array(names, np.str_),
        attribute=attributes(tables, rows),
        translation=table.check_finite("translation", rows),
        size=table.check_finite("size", rows),
        rotation=table.check_finite("rotation", rows),
        velocity=velocities(tables)[rows, :2],
        score=np.full(len(rows), -1.0),
        num_points=(table.whole("num_lidar_pts") + table.whole("num_radar_pts"))[rows],
    )


def attributes(tables: Tables, rows: Array) -> Array:
    """Name of the attribute of annotations, "" where they have none. Raises DataError for several, or unknown ones."""
    table, known, names = tables.annotation, tables.attribute, tables.attribute.texts["name"]
    found = []
    for i in rows.tolist():
        tokens = table.lists["attribute_tokens"][i]
        if len(tokens) > 1:
            raise DataError(f"{table.path}: {table.tokens[i]}: {len(tokens)} attributes, one at most")
        row = known.row.get(tokens[0], UNKNOWN) if tokens else NONE
        if row == UNKNOWN:
            raise DataError(f"{table.path}: {table.tokens[i]}: attribute {tokens[0]!r} is not in {known.path.name}")
        found.append(names[row] if row >= 0 else "")
    return np.array(found, np.str_)


def velocities(tables: Tables) -> Array:
    """float64 [N, 3]: global velocity of every annotation in m/s, NaN where it is not known.

    From the neighbours of the same object in time, the annotation itself standing for one that is missing; not known
    without any neighbour, or where the time between them exceeds 1.5 s (3 s with both).
    """
    table = tables.annotation
    times = (
        SECONDS * tables.sample.numbers["timestamp"][tables.sample.rows(table, "sample_token")]
    )  # rounds as officially
    return _velocities(table.numbers["translation"], times, table.rows(table, "prev"), table.rows(table, "next"))


def _velocities(places: Array, times: Array, before: Array, after: Array) -> Array:
    own = np.arange(len(places))
    first, last = np.where(before == NONE, own, before), np.where(after == NONE, own, after)
    gap = times[last] - times[first]
    limit = np.where((before != NONE) & (after != NONE), 2 * LONGEST_GAP, LONGEST_GAP)
    known = (first != last) & (gap <= limit) & (gap != 0)
    moved = np.where(known[:, None], places[last] - places[first], np.nan)
    return np.asarray(moved / np.where(known, gap, 1.0)[:, None])
