"""Which detection found which labelled object, for pictures; the benchmarks have their own rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcdet_ext.structures import Array

MATCH_METRES = 2.0


def pair(
    truth: Array,
    truth_names: Sequence[str],
    found: Array,
    found_names: Sequence[str],
    scores: Array,
    farthest: float = MATCH_METRES,
) -> Array:
    """The labelled box that each detection found, int64 [M], -1 for none.

    Detections choose by descending score, each the nearest box of its class that is still free and whose centre is at
    most `farthest` metres away on the ground (the rule of the nuScenes detection benchmark). What a detection takes
    does not depend on those that score less, so the pairs stay right when these are hidden.

    Args:
        truth: labelled boxes [N, 7 or 9].
        truth_names: N class names.
        found: detected boxes [M, 7 or 9].
        found_names: M class names.
        scores: float [M].
        farthest: in metres.
    """
    partner = np.full(len(found), -1, np.int64)
    if not len(truth) or not len(found):
        return partner
    away = np.linalg.norm(found[:, None, :2].astype(np.float64) - truth[None, :, :2], axis=2)
    away[np.array(found_names, object)[:, None] != np.array(truth_names, object)[None]] = np.inf
    for row in np.argsort(-scores, kind="stable").tolist():
        nearest = int(away[row].argmin())
        if away[row, nearest] <= farthest:
            partner[row] = nearest
            away[:, nearest] = np.inf
    return partner
