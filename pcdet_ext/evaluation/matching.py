"""Matching of detections to ground truth by the rules of the KITTI devkit.

Truths and detections have a state: valid (they count), ignored (they may be matched, but do not count), other (they
are not looked at). A match needs an overlap above a minimum. Truths are walked in file order, and a detection is taken
once:

1. with every detection, by highest score: the scores of valid pairs give up to 41 thresholds, spread over the recall;
2. for each threshold, with the detections that score as much, by highest overlap among valid ones, an ignored one only
   where no valid one fits. Valid pairs are true positives; valid detections that nothing took are false ones, unless
   they lie in a region where nobody labelled.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import numpy as np
import torch

from pcdet_ext.ops._native import NativeArray, launch, library

Array = np.ndarray
OTHER, VALID, IGNORED = -1, 0, 1
THRESHOLDS = 41


@dataclass(frozen=True)
class Pairs:
    """Ragged tables of a set of frames; frame f of a table is rows offsets[f] to offsets[f + 1].

    truth_at, found_at, region_at: int64 [F + 1]; overlap: float64, for each frame [truths, detections] row by row;
    region_overlap: the same for [regions, detections], or None.
    """

    truth_at: Array
    found_at: Array
    region_at: Array
    overlap: Array
    region_overlap: Array | None

    def pair_at(self, rows_at: Array) -> Array:
        """Offsets [F + 1] of the frames' matrices."""
        return np.concatenate([[0], np.cumsum(np.diff(rows_at) * np.diff(self.found_at))]).astype(np.int64)


@dataclass(frozen=True)
class Curve:
    """Counts float64 [K] at each threshold, highest first; similarity: sum of (1 + cos Δalpha) / 2 of the true."""

    thresholds: Array
    true_positives: Array
    false_positives: Array
    similarity: Array


def match(
    pairs: Pairs,
    truth_state: Array,
    found_state: Array,
    score: Array,
    truth_alpha: Array,
    found_alpha: Array,
    min_overlap: float,
) -> Curve:
    """Match the detections of all frames with the ground truth, and count at each threshold of the score.

    Args:
        pairs: overlaps of each frame's boxes.
        truth_state: int8, one per box of the ground truth: whether it counts, is ignored, or is left out.
        found_state: int8, the same of the detections.
        score: float64, one per detection.
        truth_alpha: float64, one observation angle per box of the ground truth, in radians.
        found_alpha: float64, the same of the detections.
        min_overlap: from which a detection matches.
    """
    if library("cpu") is None:
        return match_reference(pairs, truth_state, found_state, score, truth_alpha, found_alpha, min_overlap)
    frames = len(pairs.truth_at) - 1
    truths, found = int(pairs.truth_at[-1]), int(pairs.found_at[-1])
    pair_at, region_pair_at = pairs.pair_at(pairs.truth_at), pairs.pair_at(pairs.region_at)
    offsets = (pairs.truth_at, pairs.found_at, pairs.region_at, pair_at, region_pair_at)
    tables = [_buffer(t, np.int64, frames + 1) for t in offsets]
    tables += [_buffer(truth_state, np.int8, truths), _buffer(found_state, np.int8, found)]
    tables += [_buffer(pairs.overlap, np.float64, int(pair_at[-1]))]
    tables += [_buffer(pairs.region_overlap, np.float64, int(region_pair_at[-1]))]
    tables += [_buffer(t, np.float64, n) for t, n in ((score, found), (truth_alpha, truths), (found_alpha, found))]
    out, used = np.zeros((4, THRESHOLDS)), ctypes.c_int64()
    results = [_buffer(row, np.float64, THRESHOLDS) for row in out]
    launch("detection_match", torch.device("cpu"), frames, *tables, float(min_overlap), *results, used)
    return Curve(*out[:, : used.value])


def _buffer(table: Array | None, dtype: type[np.generic], elements: int) -> NativeArray:
    """A table for the kernel, without a copy where it has the type already."""
    if table is None:
        return None, torch.int8, 0
    tensor = torch.from_numpy(np.require(table, dtype, ("C", "W")))
    return tensor, tensor.dtype, elements


def match_reference(
    pairs: Pairs,
    truth_state: Array,
    found_state: Array,
    score: Array,
    truth_alpha: Array,
    found_alpha: Array,
    min_overlap: float,
) -> Curve:
    """The definition in plain Python. Arguments as in `match`."""
    frames = _split(pairs, truth_state, found_state, score, truth_alpha, found_alpha)
    scores = [s for frame in frames for s in frame.true_scores(min_overlap)]
    picked = pick_thresholds(scores, max(int((np.asarray(truth_state) == VALID).sum()), 1))
    counts = np.zeros((3, len(picked)))
    for k, threshold in enumerate(picked):
        for frame in frames:
            counts[:, k] += frame.count(min_overlap, threshold)
    return Curve(np.array(picked), *counts)


def pick_thresholds(scores: list[float], truths: int) -> list[float]:
    """At most 41 of the scores, about one for every 40th part of the recall."""
    scores = sorted(scores, reverse=True)
    picked: list[float] = []
    recall = 0.0
    for i, score in enumerate(scores):
        last = i + 1 == len(scores)
        here, following = (i + 1) / truths, (i + 2) / truths
        if not last and following - recall < recall - here:
            continue
        if len(picked) == THRESHOLDS:
            break
        picked.append(score)
        recall += 1 / (THRESHOLDS - 1)
    return picked


@dataclass(frozen=True)
class _Frame:
    truth_state: Array
    found_state: Array
    overlap: Array
    region_overlap: Array
    score: Array
    truth_alpha: Array
    found_alpha: Array

    def true_scores(self, min_overlap: float) -> list[float]:
        taken: set[int] = set()
        scores = []
        for g in map(int, np.flatnonzero(self.truth_state != OTHER)):
            free = [d for d in self._near(g, min_overlap) if d not in taken]
            if not free:
                continue
            best = max(free, key=lambda d: (self.score[d], -d))
            taken.add(best)
            if self.truth_state[g] == VALID and self.found_state[best] == VALID:
                scores.append(float(self.score[best]))
        return scores

    def count(self, min_overlap: float, threshold: float) -> tuple[float, float, float]:
        taken: set[int] = set()
        true, similarity = 0, 0.0
        for g in map(int, np.flatnonzero(self.truth_state != OTHER)):
            free = [d for d in self._near(g, min_overlap) if d not in taken and self.score[d] >= threshold]
            valid = [d for d in free if self.found_state[d] == VALID]
            if not free:
                continue
            best = max(valid, key=lambda d: (self.overlap[g, d], -d)) if valid else free[0]
            taken.add(best)
            if self.truth_state[g] == VALID and valid:
                true += 1
                similarity += (1 + math.cos(self.truth_alpha[g] - self.found_alpha[best])) / 2
        left = [d for d in np.flatnonzero(self.found_state == VALID) if d not in taken and self.score[d] >= threshold]
        false = sum(not (self.region_overlap[:, d] > min_overlap).any() for d in left)
        return true, false, similarity

    def _near(self, truth: int, min_overlap: float) -> list[int]:
        near = (self.overlap[truth] > min_overlap) & (self.found_state != OTHER)
        return np.flatnonzero(near).tolist()


def _split(
    pairs: Pairs, truth_state: Array, found_state: Array, score: Array, truth_alpha: Array, found_alpha: Array
) -> list[_Frame]:
    pair_at, region_pair_at = pairs.pair_at(pairs.truth_at), pairs.pair_at(pairs.region_at)
    frames = []
    for f in range(len(pairs.truth_at) - 1):
        truth = slice(pairs.truth_at[f], pairs.truth_at[f + 1])
        found = slice(pairs.found_at[f], pairs.found_at[f + 1])
        columns = pairs.found_at[f + 1] - pairs.found_at[f]
        regions = np.zeros((0, columns))
        if pairs.region_overlap is not None:
            rows = pairs.region_at[f + 1] - pairs.region_at[f]
            regions = pairs.region_overlap[region_pair_at[f] : region_pair_at[f + 1]].reshape(rows, columns)
        rows = pairs.truth_at[f + 1] - pairs.truth_at[f]
        overlap = pairs.overlap[pair_at[f] : pair_at[f + 1]].reshape(rows, columns)
        frames.append(
            _Frame(
                truth_state[truth],
                found_state[found],
                overlap,
                regions,
                score[found],
                truth_alpha[truth],
                found_alpha[found],
            )
        )
    return frames
