"""Trackers: whole sequences of the published ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pcdet_ext.conformance.golden import Case, Values, every_setting, runs
from pcdet_ext.evaluation.nuscenes_files import Submission
from pcdet_ext.evaluation.quaternions import yaws
from pcdet_ext.interop.settings import skip
from pcdet_ext.tracking.base import StillBoxes
from pcdet_ext.tracking.greedy import GreedyTracker, Tracks
from pcdet_ext.tracking.kalman import ClassTracks, KalmanTracker
from pcdet_ext.tracking.result_files import read_frames, track_submission

MICROSECOND = 1e-6
HEADING_LAST = [0, 1, 2, 4, 5, 6, 3]  # of x, y, z, yaw, l, w, h
YAW_FOURTH = [0, 1, 2, 6, 3, 4, 5]  # the other way round
UNUSED = {"covariance": "default", "match_type": "bipartite", "motion_model": "kf"}  # settings with one known value

MEASURES = ("iou", "giou", "m_dis")  # whose thresholds a configuration may have; one of them is used


def _frames(case: Case) -> Iterator[tuple[int, int, bool, np.ndarray]]:
    """Scene, number of the frame in it, whether it is the first, and rows of its detections, for each frame."""
    arrays, before, number = case.arrays, -1, 0
    for scene in arrays["in.frame_scene"].tolist():
        number = number + 1 if scene == before else 0
        rows = np.flatnonzero((arrays["in.det_scene"] == scene) & (arrays["in.det_frame"] == number))
        yield scene, number, scene != before, rows
        before = scene


def _boxes(case: Case, rows: np.ndarray) -> StillBoxes:
    """What the greedy tracker reads of the detections; the rest is zero."""
    arrays = case.arrays
    xy = arrays["in.det_xy"] if "in.det_xy" in arrays else arrays["in.det_translation"][:, :2]
    box = np.zeros((len(rows), 7))
    box[:, :2] = xy[rows]
    return StillBoxes(box, arrays["in.det_velocity"][rows], arrays["in.det_class"][rows], arrays["in.det_score"][rows])


@runs("tracking", "greedy_velocity_tracker")
@every_setting
def greedy(case: Case, grads: bool) -> Values:
    """The nuScenes form: tracks that are there, and those kept without being found."""
    config = case.config
    scenes = len(set(case.arrays["in.frame_scene"].tolist()))
    if config.get("n_scenes", scenes) != scenes:
        raise ValueError(f"n_scenes is {config['n_scenes']}, but {scenes} are there")
    limits = {name: limit for name, limit in config["max_distance"].items() if name in config["tracking_names"]}
    assignment = "optimal" if config["hungarian"] else "greedy"
    return _run(case, GreedyTracker(limits, config["max_age"], assignment, published=True), MICROSECOND)


@runs("tracking", "greedy_velocity_tracker_waymo")
@every_setting
def greedy_waymo(case: Case, grads: bool) -> Values:
    """The Waymo form, with a score for births."""
    config = case.config
    tracker = GreedyTracker(
        config["max_distance"], config["max_age"], birth_score=config["score_thresh"], published=True
    )
    return _run(case, tracker, 1.0)


def _run(case: Case, tracker: GreedyTracker, unit: float) -> Values:
    seen: list[tuple[int, int, Tracks]] = []
    kept: list[tuple[int, int, Tracks]] = []
    times = case.arrays["in.frame_timestamp"] * unit
    for time, (scene, frame, first, rows) in zip(times.tolist(), _frames(case), strict=True):
        if first:
            tracker.reset()
        found = tracker.step(_boxes(case, rows), case.config["class_names"], time)
        seen.append((scene, frame, found))
        kept.append((scene, frame, tracker.tracks.select(tracker.tracks.active == 0)))
    values = {f"out.{name}": column for name, column in _columns(seen).items()}
    return values | {f"out.inactive_{name}": column for name, column in _columns(kept).items()}


def _columns(frames: list[tuple[int, int, Tracks]]) -> dict[str, np.ndarray]:
    tracks = Tracks.joined([tracks for *_, tracks in frames])
    counts = [len(tracks) for *_, tracks in frames]
    return {
        "scene": np.repeat([scene for scene, *_ in frames], counts),
        "frame": np.repeat([frame for _, frame, _ in frames], counts),
        "tracking_id": tracks.number,
        "det_index": tracks.row,
        "active": tracks.active,
        "age": tracks.age,
        "ct": tracks.xy,
    }


@runs("tracking", "greedy_velocity_tracker_json")
@every_setting
def greedy_files(case: Case, grads: bool) -> Values:
    """Result files in and out: every field of every box."""
    folder = case.path.parent
    tracker = GreedyTracker(
        max_age=case.config["max_age"], assignment="optimal" if case.config["hungarian"] else "greedy", published=True
    )
    submission = Submission.read(folder / "detections.json")
    frames = read_frames(folder / "frames_meta.json", submission.samples)
    return {"expected": {"tracking_result": track_submission(submission, frames, tracker)}}


@runs("tracking", "simpletrack_iou")
@every_setting
def kalman_overlaps(case: Case, grads: bool) -> Values:
    """Overlaps of pairs of boxes."""
    from pcdet_ext.tracking.compiled_boxes import GIOU, PUBLISHED_IOU, flat_iou_of_rows, overlap_of_rows

    first, second = (case.arrays[f"in.{side}"][:, HEADING_LAST] for side in "ab")
    return {
        "out.iou2d": flat_iou_of_rows(first, second),
        "out.iou3d": overlap_of_rows(first, second, PUBLISHED_IOU),
        "out.giou3d": overlap_of_rows(first, second, GIOU),
    }


@runs("tracking", "simpletrack_sequence")
@every_setting
def kalman(case: Case, grads: bool) -> Values:
    """Whole sequences: every track after every frame, with its life cycle."""
    tracker, names = _kalman(case.config), case.config["class_names"]
    arrays = case.arrays
    times = (arrays["in.frame_timestamp"] * MICROSECOND).tolist()
    found = []
    for time, (scene, frame, first, rows) in zip(times, _frames(case), strict=True):
        if first:
            tracker.reset()
        tracker.step(_whole_boxes(case, rows), names, time)
        for place, name in enumerate(case.config["class_loop"]):
            tracks = tracker.tracks.get(names.index(name), ClassTracks.none())
            box = np.concatenate([tracks.box[:, YAW_FOURTH], tracks.score[:, None]], axis=1)
            where = np.tile([scene, frame, place], (len(tracks), 1))
            state = np.where(tracks.alive, tracks.mode, tracks.hits), np.where(tracks.alive, tracks.missed, -1)
            found.append((where, tracks.number, box, tracks.alive.astype(np.int64), *state))
    where, *columns = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((where[:, 1], where[:, 2], where[:, 0]))  # scene by scene, class by class
    outputs = ("id", "box", "state", "state_a", "state_b")
    values = {f"out.{name}": column[order] for name, column in zip(outputs, columns, strict=True)}
    return values | {f"out.{name}": where[order, i] for i, name in enumerate(("scene", "frame", "cls"))}


def _whole_boxes(case: Case, rows: np.ndarray) -> StillBoxes:
    arrays = case.arrays
    size, heading = arrays["in.det_size"][rows][:, [1, 0, 2]], yaws(arrays["in.det_rotation"][rows])[:, None]
    box = np.concatenate([arrays["in.det_translation"][rows], size, heading], axis=1)
    return StillBoxes(box, arrays["in.det_velocity"][rows], arrays["in.det_class"][rows], arrays["in.det_score"][rows])


def _kalman(config: Mapping[str, Any]) -> KalmanTracker:
    running, redundancy = config["running"], config["redundancy"]
    skip(running, "has_velo")  # no filter measures velocities
    for thresholds in (running["asso_thres"], redundancy["det_score_threshold"], redundancy["det_dist_threshold"]):
        skip(thresholds, *MEASURES)
    if running.get("nms_thres", config["nms_iou"]) != config["nms_iou"]:
        raise ValueError(f"running.nms_thres and nms_iou differ: {running['nms_thres']!r} and {config['nms_iou']!r}")
    for name, value in UNUSED.items():
        if running.get(name, value) != value:
            raise ValueError(f"running.{name} must be {value!r}, got {running[name]!r}")
    if redundancy["mode"] not in ("default", "mm"):
        raise ValueError(f"redundancy.mode must be 'default' or 'mm', got {redundancy['mode']!r}")
    measure = running["asso"]
    return KalmanTracker(
        measure=measure,
        farthest=running["asso_thres"][measure],
        score_threshold=running["score_threshold"],
        max_age=running["max_age_since_update"],
        min_hits=running["min_hits_to_birth"],
        two_stage=redundancy["mode"] == "mm",
        low_score=redundancy["det_score_threshold"][measure],
        redundant=redundancy["det_dist_threshold"][measure],
        nms=config["nms_iou"],
        published=True,
    )
