"""Checks of numbers that an option may have, with errors that name the option."""

from __future__ import annotations

import math
from numbers import Real


def check_range(low: float, high: float = math.inf, /, **values: float | None) -> None:
    """Check that numbers are finite and in a closed range.

    Args:
        low: the smallest number that is right; -inf where every finite one is.
        high: the largest one.
        values: by the names of the options; None, an option that is not set, is not checked.

    Raises:
        ValueError: a number is NaN, infinite, or out of the range, or something is no number.
    """
    for name, value in values.items():
        _check_number(name, value)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{name} must be {_range(low, high)}, got {value}")


def _check_number(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        raise ValueError(f"{name} must be a number, got {value!r:.60}")
    try:
        math.isfinite(value or 0)
    except OverflowError as error:  # whole numbers of hundreds of digits
        raise ValueError(f"{name} must be a number that floating point holds, got {value!r:.60}") from error


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return "finite" if math.isinf(low) else f"at least {low:g}"
    return f"from {low:g} to {high:g}"


def check_positive(below: float = math.inf, /, **values: float | None) -> None:
    """Check that numbers are above 0 and under a bound.

    Args:
        below: the bound, which is not allowed itself.
        values: as those of `check_range`.

    Raises:
        ValueError: a number is NaN, or out of the range, or something is no number.
    """
    for name, value in values.items():
        _check_number(name, value)
        if value is not None and not 0 < value < below:
            raise ValueError(f"{name} must be above 0" + f" and below {below}" * (below < math.inf) + f", got {value}")


def check_timestamp(timestamp: float) -> float:
    """A time in seconds. Raises ValueError for one that is no finite number."""
    try:
        time = float(timestamp)
    except (TypeError, ValueError, OverflowError):
        time = math.nan
    if not math.isfinite(time):
        raise ValueError(f"timestamp must be finite seconds, got {timestamp!r:.60}")
    return time
