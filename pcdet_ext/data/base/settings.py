"""Classes and ranges of a configuration, held against the data."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence

from pcdet_ext.config import ConfigError

_log = logging.getLogger(__name__)


def check_classes(classes: Sequence[str], counts: Mapping[str, int], where: str, strict: bool) -> None:
    """Hold the configured classes against the labels of an index. Those that never occur are logged as one warning.

    Args:
        classes: the configured names.
        counts: number of labelled objects of each class in the index.
        where: what messages call the data.
        strict: whether mistakes are errors.

    Raises:
        ConfigError: with `strict`, a class that never occurs looks like a misspelling of one that does, or no class
            occurs at all.
    """
    known = {name for name, count in counts.items() if count}
    absent = [name for name in classes if name not in known]
    if not absent or (not known and not strict):
        return
    spare = {name.lower(): name for name in known if name not in classes}
    for name in absent if strict else ():
        if close := difflib.get_close_matches(name.lower(), spare, n=1, cutoff=0.6):
            raise ConfigError(f"classes: {name!r} never occurs in {where}; did you mean {spare[close[0]]!r}?")
    listed, verb = ", ".join(map(repr, absent)), "occurs" if len(absent) == 1 else "occur"
    _log.warning("%s never %s in %s; it has: %s", listed, verb, where, ", ".join(sorted(known)) or "no labels")
    if strict and len(absent) == len(classes):
        raise ConfigError(
            f"classes: none of {', '.join(classes)} occurs in {where}; it has: {', '.join(sorted(known))}"
        )


def check_geometry(point_cloud_range: Sequence[float]) -> None:
    """Raises ValueError unless the range is the minimum of x, y, z and then a maximum above it."""
    low, high = point_cloud_range[:3], point_cloud_range[3:]
    if len(point_cloud_range) != 6 or any(a >= b for a, b in zip(low, high, strict=True)):
        raise ValueError(f"point_cloud_range must be x, y, z minimum then maximum, got {list(point_cloud_range)}")
