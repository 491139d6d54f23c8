"""KITTI tracking of 2-D boxes: HOTA, CLEAR MOT and identity metrics of cars and pedestrians (as TrackEval has them)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcdet_ext.evaluation.kitti_tracking_files import DONT_CARE, TrackRows
from pcdet_ext.evaluation.multi_object import (
    EPS,
    HOTA_MEANS,
    Numbers,
    Tracked,
    best_pairs,
    clear_mot,
    combine_clear,
    combine_hota,
    combine_identity,
    frame_pairs,
    hota,
    identity,
)
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array

NEIGHBOURS = {"car": "van", "pedestrian": "person"}  # found or not, objects of a class's neighbour do not count
CLASSES = tuple(NEIGHBOURS)
MATCH, MIN_HEIGHT, MAX_OCCLUSION = 0.5, 25.0, 2
COMBINED = "COMBINED_SEQ"
SHOWN = ("HOTA", "DetA", "AssA", "LocA", "MOTA", "MOTP", "IDSW", "Frag", "MT", "ML", "IDF1")


@dataclass(frozen=True, eq=False)
class TrackingNumbers:
    """Numbers of one class in one sequence, or over all: HOTA's lists over the thresholds, and the others by name."""

    hota: Mapping[str, Array]
    clear: Numbers
    identity: Numbers
    count: Mapping[str, int]

    def value(self, name: str) -> float:
        """One number by its name; HOTA's are means over the thresholds."""
        if name in HOTA_MEANS:
            return float(self.hota[name].mean())
        return self.clear[name] if name in self.clear else self.identity[name]

    def to_json(self) -> dict[str, Any]:
        """All numbers under the names of TrackEval."""
        lists = {name: values.tolist() for name, values in self.hota.items()}
        first = {"HOTA(0)": lists["HOTA"][0], "LocA(0)": lists["LocA"][0]}
        first["HOTALocA(0)"] = first["HOTA(0)"] * first["LocA(0)"]
        mean = {name: self.value(name) for name in HOTA_MEANS}
        hota_numbers = {**lists, **first, "mean": mean}
        return {"HOTA": hota_numbers, "CLEAR": self.clear, "Identity": self.identity, "Count": dict(self.count)}


@dataclass(frozen=True, eq=False)
class KittiTrackingResult:
    """Numbers by sequence and class; the sequence COMBINED_SEQ is all of them together."""

    sequences: Mapping[str, Mapping[str, TrackingNumbers]]

    @property
    def score(self) -> float:
        """What "better" means: HOTA, the mean over the classes."""
        return float(np.mean([numbers.value("HOTA") for numbers in self.sequences[COMBINED].values()]))

    @property
    def values(self) -> dict[str, float]:
        """The usual numbers over all sequences, by class and name."""
        found = self.sequences[COMBINED]
        return {f"{name}/{metric}": numbers.value(metric) for name, numbers in found.items() for metric in SHOWN}

    def table(self) -> str:
        """One row for each class, over all sequences; ratios in percent."""
        lines = [f"{'':<12}" + "".join(f"{metric:>8}" for metric in SHOWN)]
        for name, numbers in self.sequences[COMBINED].items():
            cells = []
            for metric in SHOWN:
                value = numbers.value(metric)
                cells.append(f"{value:>8.0f}" if metric in ("IDSW", "Frag", "MT", "ML") else f"{100 * value:>8.2f}")
            lines.append(f"{name:<12}" + "".join(cells))
        return "\n".join(lines)

    def plots(self) -> Sequence[Any]:
        """No diagrams."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """All numbers by sequence and class."""
        return {
            sequence: {name: numbers.to_json() for name, numbers in found.items()}
            for sequence, found in self.sequences.items()
        }


def evaluate(
    truth: Mapping[str, TrackRows],
    found: Mapping[str, TrackRows],
    frames: Mapping[str, int],
    classes: Sequence[str] = CLASSES,
) -> KittiTrackingResult:
    """The metrics of predicted tracks.

    Args:
        truth: boxes of each sequence by its name, DontCare regions included.
        found: predicted boxes of the same sequences.
        frames: how many frames each sequence has.
        classes: "car", "pedestrian".

    Raises:
        DataError: a track id occurs twice in a frame, among the boxes of a class that count.
        ValueError: there is no such class.
    """
    for name in classes:
        if name not in CLASSES:
            raise ValueError(f"classes: {name!r} is not measured in KITTI tracking; known: {', '.join(CLASSES)}")
    results: dict[str, dict[str, TrackingNumbers]] = {}
    for sequence, length in frames.items():
        results[sequence] = {name: _measured(truth[sequence], found[sequence], name, length) for name in classes}
    combined = {name: _combined([found[name] for found in results.values()]) for name in classes}
    return KittiTrackingResult({**results, COMBINED: combined})


def _measured(truth: TrackRows, found: TrackRows, name: str, frames: int) -> TrackingNumbers:
    data = counted(truth, found, name, frames)
    count = {"Dets": len(data.found), "GT_Dets": len(data.truth)}
    count |= {"IDs": len(np.unique(data.found)), "GT_IDs": len(np.unique(data.truth)), "Frames": frames}
    return TrackingNumbers(hota(data), clear_mot(data), identity(data), count)


def _combined(sequences: Sequence[TrackingNumbers]) -> TrackingNumbers:
    count = {name: sum(s.count[name] for s in sequences) for name in ("Dets", "GT_Dets", "IDs", "GT_IDs")}
    return TrackingNumbers(
        combine_hota([dict(s.hota) for s in sequences]),
        combine_clear([s.clear for s in sequences]),
        combine_identity([s.identity for s in sequences]),
        count,
    )


def counted(truth: TrackRows, found: TrackRows, name: str, frames: int) -> Tracked:
    """The boxes of one class that count, with their overlaps.

    A prediction that was assigned to an object of the neighbouring class, or to one that is hidden or truncated, does
    not count, nor one without object that is low or lies in a DontCare region for more than half.

    Args:
        truth: labelled boxes of a sequence, of all classes.
        found: predicted boxes.
        name: the class, one of `NEIGHBOURS`.
        frames: of the sequence.
    """
    regions = truth.select(truth.kind == DONT_CARE)
    truth = _by_frame(truth.select(np.isin(truth.kind, (name, NEIGHBOURS[name]))))
    found = _by_frame(found.select(found.kind == name))
    hard = (truth.kind != name) | (truth.occlusion > MAX_OCCLUSION) | (truth.truncation > 0)
    starts, found_starts = _starts(truth, frames), _starts(found, frames)
    g, p = frame_pairs(starts, found_starts)
    overlap = iou(truth.box[g], found.box[p])
    every = Tracked(truth.track, found.track, starts, found_starts, overlap, frames)
    partner = _partners(every)
    matched = partner >= 0
    ignored = np.zeros(len(found), bool)
    ignored[matched] = hard[partner[matched]]
    low = found.box[:, 3] - found.box[:, 1] <= MIN_HEIGHT
    ignored |= ~matched & (low | _inside_regions(found, _by_frame(regions), frames))
    rows, columns = ~hard, ~ignored
    _check_ids(truth.select(rows), name)
    _check_ids(found.select(columns), name)
    return Tracked(
        _renumbered(truth.track[rows]),
        _renumbered(found.track[columns]),
        np.r_[0, np.cumsum(rows)][starts],
        np.r_[0, np.cumsum(columns)][found_starts],
        overlap[rows[g] & columns[p]],
        frames,
    )


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of boxes (x1, y1, x2, y2), float64 [K, 4] each, one by one; 0 for boxes without area."""
    common, areas = _intersection(a, b), (_area(a), _area(b))
    union = areas[0] + areas[1] - common
    good = (areas[0] > EPS) & (areas[1] > EPS) & (union > EPS)
    return np.divide(common, union, out=np.zeros(len(a)), where=good)


def _intersection(a: Array, b: Array) -> Array:
    size = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    return np.asarray(np.maximum(size, 0).prod(axis=1))


def _area(box: Array) -> Array:
    return np.asarray((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))


def _partners(data: Tracked) -> Array:
    """The object that each prediction is assigned to, -1 for none."""
    partner = np.full(len(data.found), -1)
    weights = np.where(data.overlap < MATCH - EPS, 0.0, data.overlap)
    for g, p, table in data.tables(weights):
        if table.size:
            rows, columns = best_pairs(table)
            real = table[rows, columns] > EPS
            partner[p.start + columns[real]] = g.start + rows[real]
    return partner


def _inside_regions(found: TrackRows, regions: TrackRows, frames: int) -> Array:
    """Which predictions lie in one region for more than half: bool [P]."""
    p, r = frame_pairs(_starts(found, frames), _starts(regions, frames))
    area = _area(found.box[p])
    common = _intersection(found.box[p], regions.box[r])
    share = np.divide(common, area, out=np.zeros(len(area)), where=area > EPS)
    inside = np.zeros(len(found), bool)
    inside[p[share > MATCH + EPS]] = True
    return inside


def _by_frame(rows: TrackRows) -> TrackRows:
    return rows.select(np.argsort(rows.frame, kind="stable"))


def _starts(rows: TrackRows, frames: int) -> Array:
    return np.searchsorted(rows.frame, np.arange(frames + 1))


def _renumbered(track: Array) -> Array:
    return np.unique(track, return_inverse=True)[1].reshape(-1)


def _check_ids(rows: TrackRows, name: str) -> None:
    order = np.lexsort((rows.track, rows.frame))
    frame, track = rows.frame[order], rows.track[order]
    for i in np.flatnonzero((frame[1:] == frame[:-1]) & (track[1:] == track[:-1])):
        raise DataError(f"{rows.path}: frame {frame[i]} has the track id {track[i]} twice among boxes of {name}")
