"""The loops of the metrics, compiled with numba the first time and kept on disk.

numba is slow to import, so this module is imported where a metric is computed and not before.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pcdet_ext.structures import Array


@njit(cache=True)
def assign(weights: Array) -> Array:
    """The assignment of the largest total weight of float64 [M, N]: column int64 [M] of each row, -1 for none.

    min(M, N) pairs are made (Kuhn 1955; the form with potentials and augmenting paths, Jonker and Volgenant 1987).
    """
    transposed = weights.shape[0] > weights.shape[1]
    cost = -(weights.T.copy() if transposed else weights)
    rows, columns = cost.shape
    row_potential, column_potential = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, np.int64)  # the row, from 1, that each column, from 1, is given to; 0 for none
    for row in range(1, rows + 1):
        owner[0] = row
        before = np.zeros(columns + 1, np.int64)
        slack = np.full(columns + 1, np.inf)
        used = np.zeros(columns + 1, np.bool_)
        column = 0
        while True:
            used[column] = True
            current, best, best_column = owner[column], np.inf, 0
            for j in range(1, columns + 1):
                if used[j]:
                    continue
                reduced = cost[current - 1, j - 1] - row_potential[current] - column_potential[j]
                if reduced < slack[j]:
                    slack[j], before[j] = reduced, column
                if slack[j] < best:
                    best, best_column = slack[j], j
            for j in range(columns + 1):
                if used[j]:
                    row_potential[owner[j]] += best
                    column_potential[j] -= best
                else:
                    slack[j] -= best
            column = best_column
            if owner[column] == 0:
                break
        while column:
            owner[column] = owner[before[column]]
            column = before[column]
    result = np.full(weights.shape[0], -1, np.int64)
    for j in range(1, columns + 1):
        if owner[j] and transposed:
            result[j - 1] = owner[j] - 1
        elif owner[j]:
            result[owner[j] - 1] = j - 1
    return result


@njit(cache=True)
def match_nearest_free(sample: Array, centers: Array, starts: Array, objects: Array, distance: float) -> Array:
    """Each detection, the best first, takes the nearest free object of its sample if that is near enough, else none.

    Args:
        sample: int64 [D], the sample of each detection.
        centers: float64 [D, 2], x and y in metres.
        starts: int64 [S + 1], rows of each sample's objects.
        objects: float64 [G, 2], x and y in metres.
        distance: metres below which an object is near enough.

    Returns:
        int64 [D], the row of the object, -1 for none.
    """
    matched = np.full(len(sample), -1)
    free = np.ones(len(objects), np.bool_)
    for i in range(len(sample)):
        nearest, best = np.inf, -1
        for j in range(starts[sample[i]], starts[sample[i] + 1]):
            if free[j]:
                dx, dy = objects[j, 0] - centers[i, 0], objects[j, 1] - centers[i, 1]
                gap = np.sqrt(dx * dx + dy * dy)
                if gap < nearest:
                    nearest, best = gap, j
        if nearest < distance:
            matched[i] = best
            free[best] = False
    return matched


@njit(cache=True)
def nearest_object(centers: Array, starts: Array, ends: Array, objects: Array) -> tuple[Array, Array]:
    """The nearest object of each centre among some of the objects.

    Args:
        centers: float64 [D, 3] in metres.
        starts: int64 [D], the first object that each may take.
        ends: int64 [D], the one after the last.
        objects: float64 [G, 3] in metres.

    Returns:
        The row of the object int64 [D], -1 for none, and its distance float64 [D], infinite for none.
    """
    place = np.full(len(centers), -1)
    distance = np.full(len(centers), np.inf)
    for i in range(len(centers)):
        for j in range(starts[i], ends[i]):
            dx, dy, dz = objects[j] - centers[i]
            gap = np.sqrt(dx * dx + dy * dy + dz * dz)
            if gap < distance[i]:
                distance[i], place[i] = gap, j
    return place, distance


@njit(cache=True)
def touching_pairs(
    boxes: Array, types: Array, starts: Array, ends: Array, truth: Array, truth_types: Array
) -> tuple[Array, Array]:
    """Pairs of one frame and type whose circles around the footprints touch.

    Args:
        boxes: [N, 7], predictions.
        types: int64 [N], of the predictions.
        starts: int64 [N], the first box of the ground truth in each prediction's frame.
        ends: int64 [N], the one after the last.
        truth: [M, 7], ground truth.
        truth_types: int64 [M].

    Returns:
        Rows of the predictions and of the ground truth, int64 [P] each.
    """
    rows, columns = [0 for _ in range(0)], [0 for _ in range(0)]
    for i in range(len(boxes)):
        for j in range(starts[i], ends[i]):
            if types[i] == 0:  # its threshold is 0, which every overlap reaches
                rows.append(i)
                columns.append(j)
            if types[i] == 0 or types[i] != truth_types[j]:
                continue
            reach = (np.hypot(boxes[i, 3], boxes[i, 4]) + np.hypot(truth[j, 3], truth[j, 4])) / 2 + 1e-3
            if np.hypot(boxes[i, 0] - truth[j, 0], boxes[i, 1] - truth[j, 1]) <= reach:
                rows.append(i)
                columns.append(j)
    return np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64)


@njit(cache=True)
def root(parent: Array, i: int) -> int:
    """The representative of a set of a union-find forest."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True)
def greedy(weights: Array, edges: Array) -> Array:
    """Each row takes the heaviest free column among those that it has an edge to: int64 [M], -1 for none."""
    taken = np.zeros(weights.shape[1], np.bool_)
    result = np.full(weights.shape[0], -1, np.int64)
    for i in range(weights.shape[0]):
        best = -1
        for j in range(weights.shape[1]):
            if edges[i, j] >= 0 and not taken[j] and (best < 0 or weights[i, j] > weights[i, best]):
                best = j
        if best >= 0:
            result[i], taken[best] = best, True
    return result


@njit(cache=True)
def waymo_counts(
    found: Array,
    truth: Array,
    weight: Array,
    heading: Array,
    active: Array,
    score: Array,
    alone: Array,
    counted: Array,
    level: Array,
    levels: int,
    cutoffs: int,
    hungarian: bool,
    min_heading: float,
) -> tuple[Array, Array, Array, Array]:
    """What is found, wrongly found and missed at every cutoff of the score.

    Boxes that no chain of overlaps joins are matched apart, and a cluster anew only where a cutoff changes which of its
    predictions are there.

    Args:
        found: int64 [E], the prediction of each edge.
        truth: int64 [E], its ground truth.
        weight: float64 [E], what a match along it is worth.
        heading: float32 [E], accuracy of the heading, 0 to 1.
        active: int64 [N], at the first so many cutoffs (ascending) a prediction is there.
        score: float32 [N].
        alone: bool [N], whether a prediction without a match is a false positive.
        counted: bool [M], whether a ground truth counts.
        level: int64 [M], number of the first level at which a ground truth is one.
        levels: how many there are.
        cutoffs: how many there are, K.
        hungarian: whether matches are those of the largest total weight, instead of going by falling score.
        min_heading: pairs of a lower accuracy of the heading are left out of all counts.

    Returns:
        True positives, false positives and summed heading accuracy [K], and misses [levels, K].
    """
    true, false, accuracy = np.zeros(cutoffs + 1), np.zeros(cutoffs + 1), np.zeros(cutoffs + 1)
    missed = np.zeros((levels + 1, cutoffs + 1))
    predictions, truths = len(active), len(counted)
    parent = np.arange(predictions + truths)
    has_edge = np.zeros(predictions + truths, np.bool_)
    for e in range(len(found)):
        a, b = root(parent, found[e]), root(parent, predictions + truth[e])
        has_edge[found[e]] = has_edge[predictions + truth[e]] = True
        if a != b:
            parent[b] = a
    for i in range(predictions):
        if not has_edge[i] and alone[i] and active[i]:
            false[0] += 1
            false[active[i]] -= 1
    for j in range(truths):
        if not has_edge[predictions + j] and counted[j]:
            missed[level[j], 0] += 1
    roots = np.array([root(parent, found[e]) for e in range(len(found))], dtype=np.int64)
    order = np.argsort(roots, kind="mergesort")
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and roots[order[end]] == roots[order[start]]:
            end += 1
        edges = order[start:end]
        start = end
        rows = np.unique(found[edges])
        columns = np.unique(truth[edges])
        if hungarian:
            rows = rows[np.argsort(-active[rows], kind="mergesort")]
        else:
            rows = rows[np.argsort(-score[rows], kind="mergesort")]
        table = np.full((len(rows), len(columns)), -1, np.int64)
        weights = np.zeros((len(rows), len(columns)))
        for e in edges:
            i = 0
            while rows[i] != found[e]:
                i += 1
            j = np.searchsorted(columns, truth[e])
            table[i, j], weights[i, j] = e, weight[e]
        high = cutoffs
        for there in range(len(rows) + 1):  # predictions that are there, from none on
            low = active[rows[there]] if there < len(rows) else 0
            if low == high:
                continue
            if there == 0:
                matches = np.zeros(0, np.int64)
            elif hungarian:
                matches = assign(weights[:there])
            else:
                matches = greedy(weights[:there], table[:there])
            hit = np.zeros(len(columns), np.bool_)
            for i in range(there):
                j = matches[i]
                if j >= 0 and table[i, j] >= 0:
                    hit[j] = True
                    e = table[i, j]
                    if heading[e] > min_heading and counted[columns[j]]:
                        true[low] += 1
                        true[high] -= 1
                        accuracy[low] += heading[e]
                        accuracy[high] -= heading[e]
                elif alone[rows[i]]:
                    false[low] += 1
                    false[high] -= 1
            for j in range(len(columns)):
                if not hit[j] and counted[columns[j]]:
                    missed[level[columns[j]], low] += 1
                    missed[level[columns[j]], high] -= 1
            high = low
    for k in range(1, cutoffs + 1):
        true[k] += true[k - 1]
        false[k] += false[k - 1]
        accuracy[k] += accuracy[k - 1]
        for i in range(levels):
            missed[i, k] += missed[i, k - 1]
    return true[:cutoffs], false[:cutoffs], accuracy[:cutoffs], missed[:levels, :cutoffs]


MISS, MATCH, SWITCH = 0, 1, 2
IMPOSSIBLE = 1e6  # metres, more than any distance


@njit(cache=True)
def pair_tracks(
    gt_starts: Array,
    objects: Array,
    gt_xy: Array,
    starts: Array,
    hypotheses: Array,
    xy: Array,
    there: Array,
    tracks: int,
    limit: float,
) -> tuple[Array, Array, Array, Array, int, int]:
    """Pair objects with predictions frame by frame (CLEAR MOT, Bernardin and Stiefelhagen 2008).

    An object keeps the track that it was last paired with while that is near enough; the others are paired so that as
    many as possible are, at the smallest total distance.

    Args:
        gt_starts: int64 [F + 1], rows of each frame's objects.
        objects: int64 [G], track of each object, unique over all scenes.
        gt_xy: float64 [G, 2], metres.
        starts: int64 [F + 1], rows of each frame's predictions.
        hypotheses: int64 [P], track of each prediction, unique over all scenes.
        xy: float64 [P, 2], metres.
        there: bool [P], predictions that take part.
        tracks: how many tracks the objects have.
        limit: metres up to which an object and a prediction may be paired.

    Returns:
        For each object: what became of it (miss, match, switch), the row of its prediction or -1, the distance, and the
        number of its frame, frames without anything left out; then the false positives and the number of frames.
    """
    count = len(objects)
    state, partner = np.zeros(count, np.int64), np.full(count, -1, np.int64)
    distance, frame_number = np.zeros(count), np.zeros(count, np.int64)
    last = np.full(tracks, -1, np.int64)
    frames, false = 0, 0
    for f in range(len(gt_starts) - 1):
        g0, g1 = gt_starts[f], gt_starts[f + 1]
        rows = np.array([p for p in range(starts[f], starts[f + 1]) if there[p]], dtype=np.int64)
        if g0 == g1 and len(rows) == 0:
            continue
        gaps = np.full((g1 - g0, len(rows)), np.inf)
        for i in range(g1 - g0):
            for j in range(len(rows)):
                a, b = gt_xy[g0 + i], xy[rows[j]]
                square = (a[0] * a[0] + a[1] * a[1]) - 2 * (a[0] * b[0] + a[1] * b[1]) + (b[0] * b[0] + b[1] * b[1])
                gap = np.sqrt(max(square, 0.0))
                if gap < limit:
                    gaps[i, j] = gap
        free_objects, free = np.ones(g1 - g0, np.bool_), np.ones(len(rows), np.bool_)
        for i in range(g1 - g0):
            for j in range(len(rows)):
                kept = free[j] and hypotheses[rows[j]] == last[objects[g0 + i]]
                if kept and gaps[i, j] < limit:
                    state[g0 + i], partner[g0 + i], distance[g0 + i] = MATCH, rows[j], gaps[i, j]
                    free_objects[i] = free[j] = False
                    break
        left, right = np.flatnonzero(free_objects), np.flatnonzero(free)
        if len(left) and len(right):
            weights = np.zeros((len(left), len(right)))
            for i in range(len(left)):
                for j in range(len(right)):
                    if gaps[left[i], right[j]] < limit:
                        weights[i, j] = IMPOSSIBLE - gaps[left[i], right[j]]
            chosen = assign(weights)
            for i in range(len(left)):
                j = chosen[i]
                if j < 0 or weights[i, j] == 0:
                    continue
                row, hypothesis = g0 + left[i], hypotheses[rows[right[j]]]
                before = last[objects[row]]
                state[row] = SWITCH if before >= 0 and before != hypothesis else MATCH
                partner[row], distance[row] = rows[right[j]], gaps[left[i], right[j]]
                last[objects[row]] = hypothesis
                free[right[j]] = False
        for j in range(len(rows)):
            false += free[j]
        frame_number[g0:g1] = frames
        frames += 1
    return state, partner, distance, frame_number, false, frames


@njit(cache=True)
def track_histories(
    objects: Array, state: Array, frame: Array, tracks: int
) -> tuple[Array, Array, Array, Array, Array]:
    """For each track: boxes, paired boxes, fragmentations, frames until the first pairing, and the longest gap.

    Frames between the first and the last of a track count for its gaps; a track that is never paired has -1 for both
    times.

    Args:
        objects: int64 [G], the track of each box, in an order in which the frames ascend.
        state: int64 [G], what became of it (miss, match, switch).
        frame: int64 [G], number of its frame.
        tracks: number of tracks, T.

    Returns:
        Five times int64 [T].
    """
    total, paired = np.zeros(tracks, np.int64), np.zeros(tracks, np.int64)
    fragments, waiting, longest = np.zeros(tracks, np.int64), np.full(tracks, -1, np.int64), np.zeros(tracks, np.int64)
    first, previous = np.full(tracks, -1, np.int64), np.full(tracks, -1, np.int64)  # previous: last paired frame
    missed_since = np.zeros(tracks, np.bool_)
    final = np.zeros(tracks, np.int64)
    for i in range(len(objects)):
        track = objects[i]
        total[track] += 1
        final[track] = frame[i]
        if first[track] < 0:
            first[track] = frame[i]
        if state[i] == MISS:
            missed_since[track] = True
            continue
        if paired[track] == 0:
            waiting[track] = longest[track] = frame[i] - first[track]
        else:
            fragments[track] += missed_since[track]
            longest[track] = max(longest[track], frame[i] - previous[track] - 1)
        paired[track] += 1
        previous[track], missed_since[track] = frame[i], False
    for track in range(tracks):
        if paired[track]:
            longest[track] = max(longest[track], final[track] - previous[track])
        else:
            longest[track] = -1
    return total, paired, fragments, waiting, longest
