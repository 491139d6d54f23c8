"""nuScenes tracking metrics: AMOTA, AMOTP and the numbers at the best threshold (Caesar et al., CVPR 2020).

The numbers are those of the official devkit's `tracking_nips_2019` configuration, with its quirks: in a hole of a track
of several samples the interpolated places are mirrored in time, and distances come from expanded squares. Nothing of
the devkit is needed to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcdet_ext.evaluation.base import Plot
from pcdet_ext.evaluation.nuscenes import Boxes, Samples, within_range
from pcdet_ext.structures import Array

CLASS_RANGES = {
    "bicycle": 40.0, "bus": 50.0, "car": 50.0, "motorcycle": 40.0, "pedestrian": 40.0, "trailer": 50.0, "truck": 50.0,
}  # fmt: skip
CLASSES = tuple(CLASS_RANGES)
RECALLS = np.linspace(0.1, 1, 40).round(12)
LIMIT = 2.0  # metres between centres from which a pair is impossible
SAMPLE_PERIOD = 0.5  # seconds
MOSTLY, HARDLY = 0.8, 0.2  # shares of a track's boxes: mostly tracked from, mostly lost below
METRICS = (
    "amota", "amotp", "recall", "motar", "gt", "mota", "motp", "mt", "ml", "faf", "tp", "fp", "fn", "ids", "frag",
    "tid", "lgd",
)  # fmt: skip
AT_THRESHOLD = METRICS[2:]
SUMMED = ("mt", "ml", "tp", "fp", "fn", "ids", "frag")  # over the classes; the others are averaged
WORST = {"amota": 0.0, "amotp": 2.0, "recall": 0.0, "motar": 0.0, "mota": 0.0, "motp": 2.0, "mt": 0.0, "tp": 0.0}
WORST |= {"faf": 500.0, "tid": 20.0, "lgd": 20.0}
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Tracks:
    """Boxes that belong to tracks. boxes: see `nuscenes.Boxes`; track: unicode [N], id of each box's track."""

    boxes: Boxes
    track: Array

    def __len__(self) -> int:
        return len(self.track)

    def select(self, keep: Array) -> Tracks:
        """The boxes that `keep` (bool [N] or int64 [K]) picks."""
        return Tracks(self.boxes.select(keep), self.track[keep])


@dataclass(frozen=True, eq=False)
class Sequences:
    """When and where the samples were: samples, and for each of them its scene (unicode [S]) and time in µs [S]."""

    samples: Samples
    scene: Array
    timestamp: Array


@dataclass(frozen=True, eq=False)
class ClassTracking:
    """Numbers of a class.

    thresholds: float64 [40], scores at the recalls 1, …, 0.1, NaN where a recall is not reached; at_threshold: float64
    [40] by metric; best: the summary by metric.
    """

    thresholds: Array
    at_threshold: Mapping[str, Array]
    best: Mapping[str, float]


@dataclass(frozen=True)
class TrackingResult:
    """All numbers of the official tool, by class."""

    classes: Mapping[str, ClassTracking]

    def overall(self, metric: str) -> float:
        """Over the classes that have objects: sums of counts, and means of the others."""
        values = np.array([found.best[metric] for found in self.classes.values()])
        if np.isnan(values).all():
            return NAN
        return float(np.nansum(values) if metric in SUMMED else np.nanmean(values))

    @property
    def score(self) -> float:
        """What "better" means: the AMOTA."""
        return self.overall("amota")

    @property
    def values(self) -> dict[str, float]:
        """The overall numbers by name."""
        return {metric.upper(): self.overall(metric) for metric in METRICS}

    def table(self) -> str:
        """One row for each class, and the overall numbers."""
        rows = {**{name: found.best for name, found in self.classes.items()}}
        rows["overall"] = {metric: self.overall(metric) for metric in METRICS}
        lines = [f"{'':<12}" + "".join(f" {metric.upper():>9}" for metric in METRICS)]
        for name, row in rows.items():
            cells = (f"{row[m]:.0f}" if m in SUMMED or m == "gt" else f"{row[m]:.3f}" for m in METRICS)
            lines.append(f"{name:<12}" + "".join(f" {cell:>9}" for cell in cells))
        return "\n".join(lines)

    def plots(self) -> Sequence[Plot]:
        """MOTAR and MOTP over recall, of each class."""
        recalls = RECALLS[::-1]
        return [
            Plot(m, "recall", m.upper(), {name: (recalls, c.at_threshold[m]) for name, c in self.classes.items()})
            for m in ("motar", "motp")
        ]

    def to_json(self) -> dict[str, Any]:
        """All numbers and lists over the thresholds; NaN is null."""
        labels = {m: {name: _plain(found.best[m]) for name, found in self.classes.items()} for m in METRICS}
        details = {
            name: {
                "confidence": [_plain(v) for v in found.thresholds],
                **{m: [_plain(v) for v in found.at_threshold[m]] for m in AT_THRESHOLD},
            }
            for name, found in self.classes.items()
        }
        overall = {metric: _plain(self.overall(metric)) for metric in METRICS}
        return {**overall, "label_metrics": labels, "details": details}


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def evaluate(truth: Tracks, found: Tracks, sequences: Sequences) -> TrackingResult:
    """The official tracking metrics.

    Args:
        truth: annotated tracks.
        found: predicted tracks, whose scores are those of single boxes.
        sequences: the samples and scenes that both belong to.
    """
    sides = []
    for tracks in (truth, found):
        kept = tracks.select(within_range(tracks.boxes, sequences.samples, CLASS_RANGES))
        sides.append(_filled(kept, sequences))
    classes = {name: _class_tracking(*(side.of(name) for side in sides)) for name in CLASSES}
    return TrackingResult(classes)


@dataclass(frozen=True, eq=False)
class _Filled:
    """Boxes of tracks without holes, in the order of frames (scene after scene, by time).

    starts: int64 [F + 1], rows of each frame; name: unicode [N]; track: int64 [N], unique over all scenes; xy: float64
    [N, 2]; score: float64 [N].
    """

    starts: Array
    name: Array
    track: Array
    xy: Array
    score: Array

    def of(self, name: str) -> _Filled:
        """The boxes of one class."""
        keep = self.name == name
        starts = np.r_[0, np.cumsum(keep)][self.starts]
        columns = (column[keep] for column in (self.name, self.track, self.xy, self.score))
        return _Filled(starts, *columns)


def _filled(tracks: Tracks, sequences: Sequences) -> _Filled:
    """Tracks with a box in every sample between their first and last one.

    At time t between boxes L and R the right one weighs (tR - t) / (tR - tL), as published; class and track are R's.
    Every box has the mean score of its track's own boxes.
    """
    order = np.lexsort((sequences.timestamp, sequences.scene))  # frames: scene after scene, by time
    frame_of_sample = np.empty_like(order)
    frame_of_sample[order] = np.arange(len(order))
    time = sequences.timestamp[order].astype(np.float64)
    frame = frame_of_sample[tracks.boxes.sample]
    scene = sequences.scene[tracks.boxes.sample]
    _, number = np.unique(np.stack([scene, tracks.track], 1), axis=0, return_inverse=True)
    number = number.reshape(-1)
    by_track = np.lexsort((frame, number))
    left, right = by_track[:-1], by_track[1:]
    holes = (number[left] == number[right]) & (frame[right] > frame[left] + 1)
    left, right = left[holes], right[holes]
    gaps = frame[right] - frame[left] - 1
    row = np.repeat(np.arange(len(left)), gaps)
    step = np.arange(len(row)) - np.repeat(np.cumsum(gaps) - gaps, gaps) + 1
    left, right = left[row], right[row]
    between = frame[left] + step
    share = (time[frame[right]] - time[between]) / (time[frame[right]] - time[frame[left]])
    xy, score = tracks.boxes.translation[:, :2], _mean_scores(tracks.boxes.score, number, by_track)
    all_frames = np.concatenate([frame, between])
    inside = np.argsort(all_frames, kind="stable")
    return _Filled(
        starts=np.searchsorted(all_frames[inside], np.arange(len(order) + 1)),
        name=np.concatenate([tracks.boxes.name, tracks.boxes.name[right]])[inside],
        track=np.concatenate([number, number[right]])[inside],
        xy=np.concatenate([xy, (1 - share)[:, None] * xy[left] + share[:, None] * xy[right]])[inside],
        score=np.concatenate([score, (1 - share) * score[left] + share * score[right]])[inside],
    )


def _mean_scores(score: Array, track: Array, by_track: Array) -> Array:
    """Mean score of each box's track; a threshold is one of these means, so that the last bit counts."""
    starts = np.flatnonzero(np.r_[True, np.diff(track[by_track]) != 0]) if len(track) else np.zeros(0, np.int64)
    mean = np.empty_like(score)
    for rows in np.split(by_track, starts[1:]):
        mean[rows] = np.mean(score[rows]) if len(rows) else 0.0
    return mean


def _class_tracking(truth: _Filled, found: _Filled) -> ClassTracking:
    """Metrics of a class at each threshold, and the summary."""
    nothing = {metric: np.full(len(RECALLS), np.nan) for metric in AT_THRESHOLD}
    empty = np.full(len(RECALLS), np.nan)
    if not len(truth.track):
        return ClassTracking(empty, nothing, dict.fromkeys(METRICS, NAN))
    thresholds = _thresholds(truth, found)
    if np.isnan(thresholds).all():
        tracks = len(np.unique(truth.track))
        worst = {**WORST, "gt": float(len(truth.track)), "ml": float(tracks), "fn": float(len(truth.track))}
        best = {metric: worst.get(metric, NAN) for metric in METRICS}
        return ClassTracking(thresholds, {m: np.full(len(RECALLS), best[m]) for m in AT_THRESHOLD}, best)
    rows = {value: _at_threshold(truth, found, value) for value in np.unique(thresholds[~np.isnan(thresholds)])}
    none = dict.fromkeys(AT_THRESHOLD, NAN)
    table = [rows.get(value, none) for value in thresholds]
    at = {metric: np.array([row[metric] for row in table]) for metric in AT_THRESHOLD}
    place = int(np.nanargmax(at["mota"]))
    best = {metric: float(at[metric][place]) for metric in AT_THRESHOLD}
    best["amota"] = float(np.nan_to_num(at["motar"], nan=WORST["amota"]).mean())
    best["amotp"] = float(np.nan_to_num(at["motp"], nan=WORST["amotp"]).mean())
    return ClassTracking(thresholds, at, best)


def _thresholds(truth: _Filled, found: _Filled) -> Array:
    """Scores [40] at which the recalls 1, …, 0.1 are reached, NaN beyond the highest that is."""
    state, partner, *_ = _paired(truth, found, np.ones(len(found.track), bool))
    from pcdet_ext.evaluation.compiled import MATCH

    scores = np.sort(found.score[partner[state == MATCH]])[::-1]
    if not len(scores):
        return np.full(len(RECALLS), np.nan)
    recall = np.arange(1, len(scores) + 1) / len(truth.track)
    thresholds = np.interp(RECALLS, recall, scores, right=0)
    thresholds[recall.max() < RECALLS] = np.nan
    return thresholds[::-1]


def _paired(truth: _Filled, found: _Filled, there: Array) -> tuple[Array, Array, Array, Array, int, int]:
    from pcdet_ext.evaluation.compiled import pair_tracks

    tracks = int(truth.track.max()) + 1
    return pair_tracks(truth.starts, truth.track, truth.xy, found.starts, found.track, found.xy, there, tracks, LIMIT)


def _at_threshold(truth: _Filled, found: _Filled, threshold: float) -> dict[str, float]:
    from pcdet_ext.evaluation.compiled import MATCH, MISS, SWITCH, track_histories

    state, _, distance, frame, false, frames = _paired(truth, found, found.score >= threshold)
    tracks = int(truth.track.max()) + 1
    total, paired, fragments, waiting, longest = track_histories(truth.track, state, frame, tracks)
    own = total > 0
    share, tracked = paired[own] / total[own], paired > 0
    matches, switches, misses = (int((state == kind).sum()) for kind in (MATCH, SWITCH, MISS))
    objects, detections = len(state), matches + switches
    errors, r = switches + false + misses, matches / len(state)
    motar = 1 - (errors - (1 - r) * objects) / (r * objects) if r else NAN
    return {
        "recall": detections / objects,
        "motar": max(0.0, motar) if r else NAN,
        "gt": float(objects),
        "mota": max(0.0, 1 - errors / objects),
        "motp": float(distance.sum()) / detections if detections else NAN,
        "mt": float((share >= MOSTLY).sum()),
        "ml": float((share < HARDLY).sum()),
        "faf": 100 * false / frames,
        "tp": float(matches),
        "fp": float(false),
        "fn": float(misses),
        "ids": float(switches),
        "frag": float(fragments.sum()),
        "tid": float(waiting[tracked].mean()) * SAMPLE_PERIOD if tracked.any() else NAN,
        "lgd": float(longest[tracked].mean()) * SAMPLE_PERIOD if tracked.any() else NAN,
    }
