"""Numbers out of their ranges are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from pcdet_ext.ranges import check_positive, check_range


def test_numbers_in_their_ranges_are_right() -> None:
    check_range(0, 1, first=0, last=1.0, none=None)
    check_range(-math.inf, any_finite=-1e30)
    check_positive(2.0, small=1e-30, none=None)


@pytest.mark.parametrize(
    ("bounds", "value", "message"),
    [
        ((0, 1), 1.5, r"share must be from 0 to 1, got 1\.5"),
        ((0, 1), math.nan, "share must be from 0 to 1, got nan"),
        ((1,), 0, "share must be at least 1, got 0"),
        ((1,), math.inf, "share must be at least 1, got inf"),
        ((-math.inf,), -math.inf, "share must be finite, got -inf"),
    ],
)
def test_numbers_out_of_a_closed_range_are_named(bounds: tuple[float, ...], value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_range(*bounds, good=1, share=value)


@pytest.mark.parametrize("value", [0, -1, 2.0, math.nan])
def test_numbers_that_are_not_positive_or_too_large_are_named(value: float) -> None:
    with pytest.raises(ValueError, match=r"radius must be above 0 and below 2\.0"):
        check_positive(2.0, radius=value)


@pytest.mark.parametrize("value", [True, "0.5", [0.5], {}])
def test_what_is_no_number_is_refused(value: Any) -> None:
    for check in (check_range, check_positive):
        with pytest.raises(ValueError, match="radius must be a number, got "):
            check(1, radius=value)


@pytest.mark.parametrize("check", [check_range, check_positive])
def test_whole_numbers_that_no_float_holds_are_named(check: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match="age must be a number that floating point holds, got 1000"):
        check(1, age=10**400)
