"""Class-balanced sampling of frames (CBGS: Zhu et al., Class-balanced Grouping and Sampling, 2019)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from pcdet_ext.structures import Array

_log = logging.getLogger(__name__)


def balanced_counts(counts: Sequence[int]) -> list[int]:
    """How many frames to draw for each class, so that all classes have about the same number.

    counts: frames that hold an object of each class. A class without frames gets none. Fractions are cut off in
    float64, in the published order of the operations.
    """
    total, classes = sum(counts), sum(count > 0 for count in counts)
    return [int(count * ((1 / classes) / (count / total))) if count else 0 for count in counts]


def balanced_frames(frames_with: Sequence[Array], rng: np.random.Generator) -> Array:
    """Draw frames with replacement, class after class; int64 [K].

    frames_with: int64 positions of the frames that hold an object of each class. Raises ValueError where none does.
    """
    if not any(len(found) for found in frames_with):
        raise ValueError("balanced: no frame holds an object of any class")
    wanted = balanced_counts([len(found) for found in frames_with])
    drawn = [rng.choice(found, number) for found, number in zip(frames_with, wanted, strict=True) if number]
    return np.concatenate(drawn)
