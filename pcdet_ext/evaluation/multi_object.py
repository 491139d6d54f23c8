"""Metrics of tracking many objects in one sequence: HOTA, CLEAR MOT and identity.

HOTA: Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking", IJCV 2021. CLEAR MOT: Bernardin
and Stiefelhagen, "Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics", 2008. Identity: Ristani et
al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking", 2016. Names are those of TrackEval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from pcdet_ext.structures import Array

ALPHAS = np.arange(0.05, 0.99, 0.05)  # thresholds of the overlap
EPS = float(np.finfo(np.float64).eps)
CLEAR_THRESHOLD = 0.5
CONTINUED = 1000.0  # weight of keeping the pair of the frame before
MOSTLY, HARDLY = 0.8, 0.2
HOTA_COUNTS = ("HOTA_TP", "HOTA_FN", "HOTA_FP")
HOTA_MEANS = ("HOTA", "DetA", "AssA", "DetRe", "DetPr", "AssRe", "AssPr", "LocA", "OWTA")
CLEAR_COUNTS = (
    "CLR_TP", "CLR_FN", "CLR_FP", "IDSW", "MT", "PT", "ML", "Frag", "CLR_Frames", "MOTP_sum",
)  # fmt: skip
UNDEFINED = ("MOTA", "MODA", "MOTAL", "sMOTA", "FP_per_frame")  # 0 for a sequence without objects or predictions
IDENTITY_COUNTS = ("IDTP", "IDFN", "IDFP")
Numbers = dict[str, float]


@dataclass(frozen=True, eq=False)
class Tracked:
    """Objects and predictions of one sequence, and how much those of the same frame overlap.

    truth, found: int64 [G], [P], track of each box, numbered from 0 on each side, sorted by frame; truth_starts,
    found_starts: int64 [F + 1], rows of each frame; overlap: float64 [K], the overlaps of each frame's table (objects
    times predictions), one table after the other; frames: how many frames the sequence has.
    """

    truth: Array
    found: Array
    truth_starts: Array
    found_starts: Array
    overlap: Array
    frames: int

    @property
    def pairs(self) -> tuple[Array, Array]:
        """Rows (object, prediction), int64 [K] each, that each overlap is of."""
        return frame_pairs(self.truth_starts, self.found_starts)

    def tables(self, values: Array) -> Iterator[tuple[slice, slice, Array]]:
        """For each frame: its objects, its predictions, and `values` [K] as a table; frames of only one side too."""
        place = 0
        bounds = (self.truth_starts[:-1], self.truth_starts[1:], self.found_starts[:-1], self.found_starts[1:])
        for g0, g1, p0, p1 in zip(*(b.tolist() for b in bounds), strict=True):
            size = (g1 - g0) * (p1 - p0)
            yield slice(g0, g1), slice(p0, p1), values[place : place + size].reshape(g1 - g0, p1 - p0)
            place += size


def frame_pairs(first: Array, second: Array) -> tuple[Array, Array]:
    """All pairs of rows of the same frame, int64 [K] each, row-major inside a frame; from starts [F + 1] of both."""
    rows, columns = np.diff(first), np.diff(second)
    sizes = rows * columns
    frame = np.repeat(np.arange(len(sizes)), sizes)
    inside = np.arange(len(frame)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return first[frame] + inside // columns[frame], second[frame] + inside % columns[frame]


def best_pairs(weights: Array) -> tuple[Array, Array]:
    """Rows and columns of the one-to-one assignment with the largest total weight."""
    rows, columns = linear_sum_assignment(weights, maximize=True)
    return rows, columns


def _ratio(part: float, whole: float) -> float:
    return part / max(1.0, whole)


def hota(data: Tracked) -> dict[str, Array]:
    """HOTA and its parts at each of the 19 thresholds, float64 [19] by name."""
    if not len(data.truth) or not len(data.found):
        counts = dict(zip(HOTA_COUNTS, (0, len(data.truth), len(data.found)), strict=True))
        row = {name: np.full(len(ALPHAS), float(counts.get(name, 0))) for name in (*HOTA_COUNTS, *HOTA_MEANS)}
        return {**row, "LocA": np.ones(len(ALPHAS))}
    objects, tracks = np.bincount(data.truth), np.bincount(data.found)
    g, p = data.pairs
    number = data.truth[g] * len(tracks) + data.found[p]  # of the pair of tracks
    weight = _alignment(data, g, p, number, objects, tracks)[number] * data.overlap
    chosen = _chosen(data, weight)
    overlap, number = data.overlap[chosen], number[chosen]
    rows = [_at_alpha(alpha, overlap, number, objects, tracks) for alpha in ALPHAS]
    row = {name: np.array([values[name] for values in rows]) for name in rows[0]}
    row["HOTA_FN"], row["HOTA_FP"] = len(data.truth) - row["HOTA_TP"], len(data.found) - row["HOTA_TP"]
    return _with_ratios(row)


def _alignment(data: Tracked, g: Array, p: Array, number: Array, objects: Array, tracks: Array) -> Array:
    """How well each pair of tracks goes together over the whole sequence: float64 [objects · tracks]."""
    own = np.bincount(g, data.overlap, len(data.truth))[g]
    other = np.bincount(p, data.overlap, len(data.found))[p]
    union = own + other - data.overlap
    share = np.divide(data.overlap, union, out=np.zeros(len(union)), where=union > EPS)
    common = np.bincount(number, share, len(objects) * len(tracks))
    total = (objects[:, None] + tracks[None]).reshape(-1)
    return np.asarray(common / (total - common))


def _chosen(data: Tracked, weight: Array) -> Array:
    """Rows of the pairs of all frames that the assignment of each frame takes."""
    chosen, place = [np.zeros(0, np.int64)], 0
    for _, predictions, table in data.tables(weight):
        if table.size:
            rows, columns = best_pairs(table)
            chosen.append(place + rows * (predictions.stop - predictions.start) + columns)
        place += table.size
    return np.concatenate(chosen)


def _at_alpha(alpha: float, overlap: Array, number: Array, objects: Array, tracks: Array) -> Numbers:
    hit = overlap >= alpha - EPS
    pairs, common = np.unique(number[hit], return_counts=True)
    own, other = objects[pairs // len(tracks)], tracks[pairs % len(tracks)]
    count = float(hit.sum())
    share = {"AssA": own + other - common, "AssRe": own, "AssPr": other}
    row = {name: _ratio(float((common * common / np.maximum(1, whole)).sum()), count) for name, whole in share.items()}
    return {**row, "HOTA_TP": count, "LocA": max(1e-10, float(overlap[hit].sum())) / max(1e-10, count)}


def _with_ratios(row: dict[str, Array]) -> dict[str, Array]:
    """The numbers that follow from the counts and the association."""
    hits, missed, false = (row[name] for name in HOTA_COUNTS)
    recall, precision = hits / np.maximum(1, hits + missed), hits / np.maximum(1, hits + false)
    accuracy = hits / np.maximum(1, hits + missed + false)
    return {
        **row,
        "DetRe": recall,
        "DetPr": precision,
        "DetA": accuracy,
        "HOTA": np.sqrt(accuracy * row["AssA"]),
        "OWTA": np.sqrt(recall * row["AssA"]),
    }


def combine_hota(sequences: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """HOTA over sequences: counts are added, the association and LocA are means weighted with the true positives."""
    row = {name: np.sum([s[name] for s in sequences], axis=0) for name in HOTA_COUNTS}
    for name in ("AssA", "AssRe", "AssPr", "LocA"):
        total = np.sum([s[name] * s["HOTA_TP"] for s in sequences], axis=0)
        least = 1e-10 if name == "LocA" else 1.0
        row[name] = (np.maximum(least, total) if name == "LocA" else total) / np.maximum(least, row["HOTA_TP"])
    return _with_ratios(row)


def clear_mot(data: Tracked) -> Numbers:
    """MOTA, MOTP, identity switches, fragmentations and the rest of CLEAR MOT, at an overlap of 0.5.

    A frame without objects or without predictions counts for misses and false positives, but leaves what "the frame
    before" means as it was.
    """
    row = dict.fromkeys(CLEAR_COUNTS, 0.0)
    objects = np.bincount(data.truth)
    if not len(data.truth) or not len(data.found):
        row |= {"CLR_FN": float(len(data.truth)), "CLR_FP": float(len(data.found)), "ML": float(len(objects))}
        return {**clear_ratios(row), **dict.fromkeys(UNDEFINED, 0.0), "MLR": 1.0}
    before = np.full(len(objects), -1)  # track in the frame before
    last = np.full(len(objects), -1)  # track of the latest match
    matched, starts = np.zeros(len(objects), np.int64), np.zeros(len(objects), np.int64)
    for g, p, overlap in data.tables(data.overlap):
        if not overlap.size:
            continue
        truth, found = data.truth[g], data.found[p]
        weights = overlap + CONTINUED * (before[truth][:, None] == found[None])
        weights[overlap < CLEAR_THRESHOLD - EPS] = 0
        rows, columns = best_pairs(weights)
        real = weights[rows, columns] > EPS
        rows, columns = rows[real], columns[real]
        own, other = truth[rows], found[columns]
        row["IDSW"] += float(((last[own] >= 0) & (last[own] != other)).sum())
        matched[own] += 1
        starts[own] += before[own] < 0
        before[:] = -1
        before[own] = last[own] = other
        row["MOTP_sum"] += float(overlap[rows, columns].sum())
    hits, share = float(matched.sum()), matched / objects
    row |= {"CLR_TP": hits, "CLR_FN": len(data.truth) - hits, "CLR_FP": len(data.found) - hits}
    row["MT"] = float((share > MOSTLY).sum())
    row["PT"] = float((share >= HARDLY).sum()) - row["MT"]
    row["ML"] = len(objects) - row["MT"] - row["PT"]
    row["Frag"] = float((starts[starts > 0] - 1).sum())
    row["CLR_Frames"] = float(data.frames)
    return clear_ratios(row)


def clear_ratios(row: Numbers) -> Numbers:
    """The ratios that follow from the counts."""
    hits, missed, false, switches = (row[name] for name in ("CLR_TP", "CLR_FN", "CLR_FP", "IDSW"))
    tracks, objects = row["MT"] + row["PT"] + row["ML"], hits + missed
    logarithm = float(np.log10(switches)) if switches > 0 else 0.0
    return {
        **row,
        **{f"{kind}R": _ratio(row[kind], tracks) for kind in ("MT", "PT", "ML")},
        "CLR_Re": _ratio(hits, objects),
        "CLR_Pr": _ratio(hits, hits + false),
        "CLR_F1": _ratio(hits, hits + 0.5 * missed + 0.5 * false),
        "MODA": _ratio(hits - false, objects),
        "MOTA": _ratio(hits - false - switches, objects),
        "MOTAL": _ratio(hits - false - logarithm, objects),
        "sMOTA": _ratio(row["MOTP_sum"] - false - switches, objects),
        "MOTP": _ratio(row["MOTP_sum"], hits),
        "FP_per_frame": _ratio(false, row["CLR_Frames"]),
    }


def combine_clear(sequences: Sequence[Numbers]) -> Numbers:
    """CLEAR MOT over sequences: counts and the sum of overlaps are added, ratios computed anew."""
    return clear_ratios({name: float(sum(s[name] for s in sequences)) for name in CLEAR_COUNTS})


def identity(data: Tracked) -> Numbers:
    """IDF1, IDR and IDP: each object's track belongs to one predicted track for the whole sequence."""
    if not len(data.truth) or not len(data.found):
        counts = (0.0, float(len(data.truth)), float(len(data.found)))
        return {**dict(zip(IDENTITY_COUNTS, counts, strict=True)), "IDF1": 0.0, "IDR": 0.0, "IDP": 0.0}
    objects, tracks = int(data.truth.max()) + 1, int(data.found.max()) + 1
    g, p = data.pairs
    number = (data.truth[g] * tracks + data.found[p])[data.overlap >= CLEAR_THRESHOLD]
    common = np.bincount(number, minlength=objects * tracks).reshape(objects, tracks)
    rows, columns = best_pairs(common)
    hits = float(common[rows, columns].sum())
    return identity_ratios({"IDTP": hits, "IDFN": len(data.truth) - hits, "IDFP": len(data.found) - hits})


def identity_ratios(row: Numbers) -> Numbers:
    """The ratios that follow from the counts."""
    hits, missed, false = (row[name] for name in IDENTITY_COUNTS)
    ratios = {"IDF1": _ratio(hits, hits + 0.5 * false + 0.5 * missed), "IDR": _ratio(hits, hits + missed)}
    return {**row, **ratios, "IDP": _ratio(hits, hits + false)}


def combine_identity(sequences: Sequence[Numbers]) -> Numbers:
    """Identity metrics over sequences: counts are added, ratios computed anew."""
    return identity_ratios({name: float(sum(s[name] for s in sequences)) for name in IDENTITY_COUNTS})
