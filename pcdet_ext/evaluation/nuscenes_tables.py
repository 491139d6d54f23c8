"""Ground truth of nuScenes out of the released tables, as the official evaluation takes it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.evaluation.nuscenes import Boxes, Samples
from pcdet_ext.evaluation.nuscenes_files import read_json
from pcdet_ext.evaluation.nuscenes_tracking import CLASSES as TRACKED_CLASSES
from pcdet_ext.evaluation.nuscenes_tracking import Sequences, Tracks
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array

LIDAR = "LIDAR_TOP"
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


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of a release that ground truth needs, rows by token.

    folder: where they lie, for messages.
    """

    folder: Path
    sample: Mapping[str, Any]
    scene: Mapping[str, Any]
    annotation: Mapping[str, Any]
    instance: Mapping[str, Any]
    category: Mapping[str, Any]
    attribute: Mapping[str, Any]
    ego_pose: Mapping[str, Any]
    key_frame: Mapping[str, Any]  # of the lidar, by the token of its sample


def is_tables(path: Path) -> bool:
    """Whether a folder holds the tables of a release, directly or in one folder v1.0-*."""
    return path.is_dir() and _folder_of(path) is not None


def _folder_of(path: Path) -> Path | None:
    found = [folder for folder in (path, *sorted(path.glob("v1.0-*"))) if (folder / "sample.json").is_file()]
    return found[0] if found else None


def read_tables(path: str | Path) -> Tables:
    """Tables of a release. Raises DataError for a table that is missing or damaged, and for more than one release."""
    folder = _folder_of(Path(path))
    if folder is None:
        raise DataError(f"{path}: no tables of nuScenes (sample.json and the others, or one folder v1.0-* with them)")
    releases = sorted(f.name for f in Path(path).glob("v1.0-*") if (f / "sample.json").is_file())
    if len(releases) > 1:
        raise DataError(f"{path}: holds several releases ({', '.join(releases)}); name one of their folders")

    def table(name: str) -> dict[str, Any]:
        rows = read_json(folder / f"{name}.json")
        try:
            return {row["token"]: row for row in rows}
        except (TypeError, KeyError) as error:
            raise DataError(f"{folder / name}.json: not a table of rows with tokens ({error!r})") from error

    sensors, calibrated = table("sensor"), table("calibrated_sensor")
    path_of_data = folder / "sample_data.json"
    try:
        lidar = {
            token
            for token, row in calibrated.items()
            if sensors[row["sensor_token"]]["channel"] == LIDAR  # of every vehicle and day its own calibration
        }
        key_frame = {
            row["sample_token"]: row
            for row in table("sample_data").values()
            if row["is_key_frame"] and row["calibrated_sensor_token"] in lidar
        }
    except KeyError as error:
        raise DataError(f"{path_of_data}: a row without {error}, or that names what is not there") from error
    return Tables(
        folder=folder,
        sample=table("sample"),
        scene=table("scene"),
        annotation=table("sample_annotation"),
        instance=table("instance"),
        category=table("category"),
        attribute=table("attribute"),
        ego_pose=table("ego_pose"),
        key_frame=key_frame,
    )


def tokens_of_scenes(tables: Tables, scenes: Collection[str] | None, samples: Collection[str]) -> tuple[str, ...]:
    """Tokens of all samples of some scenes, by name; None: of the scenes that the given samples are in.

    Raises DataError for scenes that are not there, and for samples of which none is in the tables.
    """
    if scenes is None:
        known = [tables.sample[token]["scene_token"] for token in samples if token in tables.sample]
        if samples and not known:
            raise DataError(f"{tables.folder}: has none of the samples of the results, such as {min(samples)}")
        chosen = set(known)
    else:
        by_name = {row["name"]: token for token, row in tables.scene.items()}
        missing = [name for name in scenes if name not in by_name]
        if missing:
            raise DataError(f"{tables.folder}: has no scene {missing[0]!r}; it has {len(by_name)}")
        chosen = {by_name[name] for name in scenes}
    return tuple(token for token, row in tables.sample.items() if row["scene_token"] in chosen)


def detection_truth(tables: Tables, tokens: Sequence[str]) -> tuple[Boxes, Samples]:
    """Annotations of samples as classes of the detection benchmark, and the samples."""
    rows, samples = _rows(tables, tokens)
    kept = [(i, row, DETECTION_CLASSES[name]) for i, row, name in rows if name in DETECTION_CLASSES]
    return _boxes(tables, kept), samples


def tracking_truth(tables: Tables, tokens: Sequence[str]) -> tuple[Tracks, Sequences]:
    """Annotations of samples as tracks of the tracking benchmark, and when and where the samples were."""
    rows, samples = _rows(tables, tokens)
    kept = [(i, row, DETECTION_CLASSES.get(name, "")) for i, row, name in rows]
    kept = [entry for entry in kept if entry[2] in TRACKED_CLASSES]
    track = np.array([row["instance_token"] for _, row, _ in kept], np.str_)
    scene = [tables.scene[tables.sample[token]["scene_token"]]["name"] for token in tokens]
    time = [tables.sample[token]["timestamp"] for token in tokens]
    sequences = Sequences(samples, np.array(scene, np.str_), np.array(time, np.int64))
    return Tracks(_boxes(tables, kept), track), sequences


Row = tuple[int, Mapping[str, Any], str]  # number of the sample, annotation, name of its category or class


def _rows(tables: Tables, tokens: Sequence[str]) -> tuple[list[Row], Samples]:
    """Annotations of samples with their categories, in the order of the samples and of the table."""
    number = {token: i for i, token in enumerate(tokens)}
    try:
        found = list(_annotations(tables, number))
        ego = [tables.ego_pose[tables.key_frame[token]["ego_pose_token"]]["translation"] for token in tokens]
    except KeyError as error:
        raise DataError(f"{tables.folder}: the tables do not fit each other: nothing has the token {error}") from error
    found.sort(key=lambda row: row[0])
    racks = _boxes(tables, [row for row in found if row[2] == RACK])
    return found, Samples(tuple(tokens), np.array(ego, np.float64).reshape(-1, 3), racks)


def _annotations(tables: Tables, number: Mapping[str, int]) -> Iterator[Row]:
    for row in tables.annotation.values():
        if row["sample_token"] in number:
            category = tables.category[tables.instance[row["instance_token"]]["category_token"]]["name"]
            yield number[row["sample_token"]], row, category


def _boxes(tables: Tables, rows: Sequence[Row]) -> Boxes:
    count = len(rows)

    def column(key: str, width: int) -> Array:
        values = np.array([row[key] for _, row, _ in rows], np.float64).reshape(count, width)
        for i in np.flatnonzero(~np.isfinite(values).all(1)).tolist():
            raise DataError(f"{tables.folder}/sample_annotation.json: {rows[i][1]['token']}: {key} is not finite")
        return values

    return Boxes(
        sample=np.array([sample for sample, _, _ in rows], np.int64),
        name=np.array([name for _, _, name in rows], np.str_),
        attribute=np.array([_attribute(tables, row) for _, row, _ in rows], np.str_),
        translation=column("translation", 3),
        size=column("size", 3),
        rotation=column("rotation", 4),
        velocity=np.array([velocity(tables, row) for _, row, _ in rows], np.float64).reshape(count, 2),
        score=np.full(count, -1.0),
        num_points=np.array([row["num_lidar_pts"] + row["num_radar_pts"] for _, row, _ in rows], np.int64),
    )


def _attribute(tables: Tables, row: Mapping[str, Any]) -> str:
    tokens = row["attribute_tokens"]
    if len(tokens) > 1:
        raise DataError(
            f"{tables.folder}/sample_annotation.json: {row['token']}: {len(tokens)} attributes, one at most"
        )
    return str(tables.attribute[tokens[0]]["name"]) if tokens else ""


def velocity(tables: Tables, row: Mapping[str, Any]) -> tuple[float, float]:
    """(vx, vy) in m/s of an annotation from its neighbours in time, NaN where there is none or it is too far."""
    first = tables.annotation[row["prev"]] if row["prev"] else row
    last = tables.annotation[row["next"]] if row["next"] else row
    if first is last:
        return (np.nan, np.nan)
    times = [SECONDS * tables.sample[r["sample_token"]]["timestamp"] for r in (first, last)]  # rounds as officially
    gap = times[1] - times[0]
    if gap > LONGEST_GAP * (2 if row["prev"] and row["next"] else 1):
        return (np.nan, np.nan)
    x, y = ((last["translation"][i] - first["translation"][i]) / gap for i in (0, 1))
    return (x, y)
