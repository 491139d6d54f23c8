"""Rows in the order of scores, of which two may be nearly the same: rounding decides which of the rows comes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

UNLIKE = 1e6  # the highest cost of exchanging two rows, and that of rows whose difference is no number
NEVER = 1e12  # that of rows whose scores are not nearly the same: more than those of all others together


@dataclass(frozen=True)
class Ranked:
    """Rows of several arrays in one order; when they are compared, rows of nearly the same score may be exchanged.

    Args:
        value: [N, ...], best first.
        scores: [N], by which the rows are in this order.
        together: names of the arrays whose rows are in this order, this one among them: a row is exchanged in all of
            them or in none.
    """

    value: torch.Tensor
    scores: torch.Tensor
    together: tuple[str, ...]


def settled(
    values: Mapping[str, Any], expected: Mapping[str, np.ndarray], near: Callable[[str], float]
) -> dict[str, Any]:
    """The values with each `Ranked` one as a tensor, its rows exchanged where that brings them nearer to what is
    expected.

    Args:
        values: computed, by name.
        expected: by the same names. Where the number of rows differs, nothing is exchanged.
        near: how much the scores of rows of an array, given by its name, may differ if the rows are to be exchanged.
    """
    found = dict(values)
    for key, value in values.items():
        if isinstance(value, Ranked):
            found[key] = value.value[_order(value, values, expected, near(key))]
    return found


def _order(ranked: Ranked, values: Mapping[str, Any], expected: Mapping[str, np.ndarray], near: float) -> torch.Tensor:
    pairs = [(values[name], expected[name]) for name in ranked.together if name in expected]
    mine = [value.value.detach().numpy() for value, _ in pairs if isinstance(value, Ranked)]
    theirs = [rows for _, rows in pairs]
    count = len(ranked.scores)
    if not count or any(ours.shape != other.shape for ours, other in zip(mine, theirs, strict=True)):
        return torch.arange(count)
    flat = [np.concatenate([np.asarray(a, float).reshape(count, -1) for a in rows], 1) for rows in (theirs, mine)]
    scores = ranked.scores.detach().numpy().astype(float)
    far = np.abs(scores[:, None] - scores) > near
    cost = np.minimum(np.nan_to_num(cdist(*flat, "cityblock"), nan=UNLIKE, posinf=UNLIKE), UNLIKE)
    return torch.from_numpy(linear_sum_assignment(np.where(far, NEVER, cost))[1])
