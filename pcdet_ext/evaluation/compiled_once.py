"""The loops of ONCE's metric, compiled with numba; see `compiled`.

All take pairs of labelled boxes and detections that overlap enough: those of labelled box t are near[starts[t]:
starts[t + 1]], numbers of detections in ascending order, with their overlaps in the same places. A state is one of
`matching`: left out, valid, or ignored.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pcdet_ext.evaluation.matching import IGNORED, OTHER, VALID
from pcdet_ext.structures import Array


@njit(cache=True)
def true_scores(starts: Array, near: Array, truth_state: Array, found_state: Array, score: Array) -> Array:
    """Scores of the true detections, where each labelled box takes the free one of the highest score.

    Args:
        starts: int64 [M + 1], where the pairs of each labelled box begin, and the last ones end.
        near: int64 [P], detections of the pairs.
        truth_state: int8 [M].
        found_state: int8 [N].
        score: [N], of the detections.

    Returns:
        float64 [K].
    """
    taken = np.zeros(len(score), np.bool_)
    scores = np.empty(len(starts) - 1)
    count = 0
    for t in range(len(starts) - 1):
        if truth_state[t] == OTHER:
            continue
        best = -1
        for p in range(starts[t], starts[t + 1]):
            d = near[p]
            if found_state[d] != OTHER and not taken[d] and (best < 0 or score[d] > score[best]):
                best = d
        if best < 0:
            continue
        taken[best] = True
        if truth_state[t] == VALID and found_state[best] == VALID:
            scores[count] = score[best]
            count += 1
    return scores[:count]


@njit(cache=True)
def counts(
    starts: Array,
    near: Array,
    overlap: Array,
    truth_state: Array,
    found_state: Array,
    score: Array,
    threshold: float,
) -> tuple[int, int]:
    """How many detections are true and how many false at a score.

    Each labelled box takes the free detection of at least this score that overlaps it most, and an ignored one only
    where there is no valid one.

    Args:
        starts: int64 [M + 1], where the pairs of each labelled box begin, and the last ones end.
        near: int64 [P], detections of the pairs.
        overlap: [P], of the pairs.
        truth_state: int8 [M].
        found_state: int8 [N].
        score: [N], of the detections.
        threshold: detections with a lower score are not there.
    """
    taken = np.zeros(len(score), np.bool_)
    true = 0
    for t in range(len(starts) - 1):
        if truth_state[t] == OTHER:
            continue
        best, most = -1, 0.0
        for p in range(starts[t], starts[t + 1]):
            d = near[p]
            if taken[d] or score[d] < threshold:
                continue
            if found_state[d] == VALID and overlap[p] > most:
                best, most = d, overlap[p]
            elif found_state[d] == IGNORED and best < 0:
                best = d
        if best >= 0:
            taken[best] = True
            true += truth_state[t] == VALID and found_state[best] == VALID
    false = 0
    for d in range(len(score)):
        false += found_state[d] == VALID and not taken[d] and score[d] >= threshold
    return true, false
