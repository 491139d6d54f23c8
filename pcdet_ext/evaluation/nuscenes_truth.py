"""Ground truth of nuScenes out of the released tables, as the official evaluation takes it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from pcdet_ext.evaluation.nuscenes import Boxes, Samples
from pcdet_ext.evaluation.nuscenes_columns import LARGEST, NONE, UNKNOWN, Table
from pcdet_ext.evaluation.nuscenes_tables import Tables
from pcdet_ext.evaluation.nuscenes_tracking import CLASSES as TRACKED_CLASSES
from pcdet_ext.evaluation.nuscenes_tracking import Sequences, Tracks
from pcdet_ext.evaluation.quaternions import no_rotations, why_no_rotation
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
# Further categories of the releases, none of which is measured.
OTHER_CATEGORIES = (
    "animal", "human.pedestrian.personal_mobility", "human.pedestrian.stroller", "human.pedestrian.wheelchair",
    "movable_object.debris", "movable_object.pushable_pullable", RACK, "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
)  # fmt: skip
LONGEST_SIZE = 1000.0  # metres; nothing on a road is longer
LONGEST_GAP = 1.5  # seconds between two annotations that a velocity is taken from; twice that with both neighbours
SECONDS = 1e-6  # of a timestamp

_log = logging.getLogger(__name__)


def tokens_of_scenes(tables: Tables, scenes: Collection[str] | None, samples: Collection[str]) -> tuple[str, ...]:
    """Tokens of all samples of some scenes.

    Args:
        tables: of the release.
        scenes: names; None for the scenes that the given samples are in.
        samples: tokens of the samples of the results.

    Raises:
        DataError: a scene is not there, or none of the samples is in the tables.
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
    return detection_truth_rows(tables, tokens)[1:]


def detection_truth_rows(tables: Tables, tokens: Sequence[str]) -> tuple[Array, Boxes, Samples]:
    """As `detection_truth`, after the row of each box in the table of annotations, int64 [N]."""
    rows, number, categories = _annotations(tables, tokens)
    classes = np.array([DETECTION_CLASSES.get(name, "") for name in categories], np.str_)
    kept = classes != ""
    samples = _samples(tables, tokens, rows[categories == RACK], number[categories == RACK])
    return rows[kept], _boxes(tables, rows[kept], number[kept], classes[kept]), samples


def tracking_truth(tables: Tables, tokens: Sequence[str]) -> tuple[Tracks, Sequences]:
    """Annotations of samples as tracks of the tracking benchmark, and when and where the samples were."""
    rows, number, categories = _annotations(tables, tokens)
    classes = np.array([DETECTION_CLASSES.get(name, "") for name in categories], np.str_)
    kept = np.isin(classes, TRACKED_CLASSES)
    instances = tables.annotation.texts["instance_token"]
    track = np.array([instances[i] for i in rows[kept].tolist()], np.str_)
    place = _rows_of_samples(tables, tokens)
    scene = np.array([tables.scene_names[i] for i in place.tolist()], np.str_)
    samples = _samples(tables, tokens, rows[categories == RACK], number[categories == RACK])
    sequences = Sequences(samples, scene, tables.sample.whole("timestamp", place))
    return Tracks(_boxes(tables, rows[kept], number[kept], classes[kept]), track), sequences


def check_categories(path: object, names: Iterable[str]) -> None:
    """Warn of categories of objects that no release of nuScenes has: their objects are not measured.

    path: where the categories were read; names: the category of each object. Raises DataError where all are such.
    """
    found = Counter(names)
    others = {name: n for name, n in found.items() if name not in DETECTION_CLASSES and name not in OTHER_CATEGORIES}
    if not others:
        return
    example, count = next(iter(others.items())), sum(others.values())
    what = f"{count} of {sum(found.values())} objects are of categories that nuScenes does not have, as {example[0]!r}"
    if len(others) == len(found):
        raise DataError(f"{path}: {what}; a car, for example, is 'vehicle.car'")
    _log.warning("%s: %s; they are not measured", path, what)


def _rows_of_samples(tables: Tables, tokens: Sequence[str]) -> Array:
    rows = tables.sample.find(tokens)
    for i in np.flatnonzero(rows < 0).tolist():
        raise DataError(f"{tables.sample.path}: has no sample {tokens[i]!r}")
    return rows


def _annotations(tables: Tables, tokens: Sequence[str]) -> tuple[Array, Array, Array]:
    """Rows of the annotations of samples, the position of each one's sample, and its category.

    They come in the order of samples and table.
    """
    number = np.full(len(tables.sample), NONE)
    number[_rows_of_samples(tables, tokens)] = np.arange(len(tokens))
    of_annotation = number[samples_of_annotations(tables)]
    rows = np.flatnonzero(of_annotation != NONE)
    rows = rows[np.argsort(of_annotation[rows], kind="stable")]
    categories = tables.categories(rows)
    check_categories(tables.category.path, categories.tolist())
    return rows, of_annotation[rows], categories


def samples_of_annotations(tables: Tables) -> Array:
    """int64: the row of each annotation's sample. Raises DataError where it has none, or one that is not there."""
    table = tables.annotation
    found = tables.sample.find(table.texts["sample_token"])
    for i in np.flatnonzero(found < 0).tolist():
        token = table.texts["sample_token"][i]
        what = f"sample_token {token!r} is not in {tables.sample.path.name}" if token else "sample_token is empty"
        raise DataError(f"{table.path}: row {i} ({table.tokens[i]}): {what}")
    return found


def _samples(tables: Tables, tokens: Sequence[str], racks: Array, number: Array) -> Samples:
    """The samples, with the annotations of bicycle racks in them and the position of each one's sample."""
    keys = tables.key_frame[_rows_of_samples(tables, tokens)]
    ego = tables.ego_pose.check_finite("translation", tables.ego_pose.rows(tables.lidar, "ego_pose_token", keys))
    return Samples(tuple(tokens), ego, _boxes(tables, racks, number, np.full(len(racks), RACK)))


def _boxes(tables: Tables, rows: Array, number: Array, names: Array) -> Boxes:
    table = tables.annotation
    return Boxes(
        sample=number,
        name=np.array(names, np.str_),
        attribute=attributes(tables, rows),
        translation=table.check_finite("translation", rows),
        size=sizes(table, rows),
        rotation=rotations(table, rows),
        velocity=velocities(tables, rows)[:, :2],
        score=np.full(len(rows), -1.0),
        num_points=table.counts("num_lidar_pts", rows) + table.counts("num_radar_pts", rows),
    )


def rotations(table: Table, rows: Array) -> Array:
    """Quaternions [K, 4] of some rows. Raises DataError for one whose length is far from 1."""
    found = table.check_finite("rotation", rows)
    for i in no_rotations(found).tolist():
        raise DataError(f"{table.path}: {table.tokens[rows[i]]}: {why_no_rotation(found[i])}")
    return found


def sizes(table: Table, rows: Array) -> Array:
    """Sizes [K, 3] of some rows in metres. Raises DataError for one that is not positive, or longer than 1 km."""
    found = table.check_finite("size", rows, LONGEST_SIZE)
    for i in np.flatnonzero((found <= 0).any(axis=1)).tolist():
        raise DataError(f"{table.path}: {table.tokens[rows[i]]}: size must be positive, is {found[i].tolist()}")
    return found


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


def velocities(tables: Tables, rows: Array) -> Array:
    """float64 [K, 3]: global velocity of some annotations in m/s, NaN where it is not known.

    From the neighbours of the same object in time, the annotation itself standing for one that is missing; not known
    without any neighbour, or where the time between them exceeds 1.5 s (3 s with both), or where a neighbour's own
    place is not known. Raises DataError where `prev` is not earlier, or `next` not later.
    """
    table = tables.annotation
    before, after = (table.optional_rows(table, name, rows) for name in ("prev", "next"))
    neighbours = {"prev": np.where(before == NONE, rows, before), "next": np.where(after == NONE, rows, after)}
    own = _times(tables, rows)
    times = {name: _times(tables, found) for name, found in neighbours.items()}
    for name, found in neighbours.items():
        order = own - times[name] if name == "prev" else times[name] - own
        for i in np.flatnonzero((order <= 0) & (found != rows)).tolist():
            when = "earlier" if name == "prev" else "later"
            raise DataError(f"{table.path}: {table.tokens[rows[i]]}: {name} is of a sample that is not {when}")
    first, last = (np.array(table.numbers["translation"][found]) for found in neighbours.values())
    for places in (first, last):
        places[~(np.abs(places) <= LARGEST).all(axis=1)] = np.nan
    limit = np.where((before != NONE) & (after != NONE), 2 * LONGEST_GAP, LONGEST_GAP)
    gap = times["next"] - times["prev"]
    known = (neighbours["prev"] != neighbours["next"]) & (gap <= limit)
    moved = np.where(known[:, None], last - first, np.nan)
    return np.asarray(moved / np.where(known, gap, 1.0)[:, None])


def _times(tables: Tables, rows: Array) -> Array:
    """Seconds, float64 [K]: when the samples of some annotations were. Rounded as officially."""
    tokens = tables.annotation.texts["sample_token"]
    samples = tables.sample.find(tokens[i] for i in rows.tolist())
    return SECONDS * tables.sample.whole("timestamp", samples).astype(np.float64)
