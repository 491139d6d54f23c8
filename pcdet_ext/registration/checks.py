"""What clouds and numbers have to be for two clouds to be laid over each other."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

FARTHEST = 1e7  # metres along each axis from the origin: coordinates of maps, as of UTM, are within


def check_cloud(cloud: Any, name: str) -> None:
    """Raise TypeError for anything but an array of real numbers, ValueError for one that holds no points in metres.

    Args:
        cloud: what should be [N, 3+], finite in its first three columns, and no coordinate above `FARTHEST`.
        name: of the argument, for messages.
    """
    if not isinstance(cloud, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array [N, 3+], got {type(cloud).__name__}")
    if cloud.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got {cloud.dtype}")
    if cloud.ndim != 2 or cloud.shape[1] < 3:
        raise ValueError(f"{name} must be [N, 3+], got {list(cloud.shape)}")
    finite = np.isfinite(cloud[:, :3]).all(1)
    if not finite.all():
        raise ValueError(f"{name}: {np.count_nonzero(~finite)} of {len(cloud)} points are NaN or infinite: drop them")
    far = (np.abs(cloud[:, :3]) > FARTHEST).any(1)
    if far.any():
        raise ValueError(
            f"{name}: {np.count_nonzero(far)} of {len(cloud)} points are over {FARTHEST:g} m away: drop them"
        )


def check_length(value: Any, name: str, zero: bool = False) -> None:
    """Raise TypeError for what is no number, ValueError for a length that is not finite and above 0.

    Args:
        value: what should be a length in metres.
        name: of the argument, for messages.
        zero: whether 0 is right as well.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of metres, got {value!r}")
    length = float(value)
    if not (length >= 0 if zero else length > 0) or not length < math.inf:
        raise ValueError(f"{name} must be {'at least' if zero else 'above'} 0 and finite, got {value}")


def check_count(value: Any, name: str, fewest: int) -> None:
    """Raise TypeError for what is no whole number, ValueError for one that is too small.

    Args:
        value: what should be a count.
        name: of the argument, for messages.
        fewest: the smallest that is right.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < fewest:
        raise ValueError(f"{name} must be at least {fewest}, got {value}")
