"""What every metric has in common: it takes frames one by one, and gives a result with a score, numbers and a table."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pcdet_ext.config import Registry
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array, Sample

# Functions (ground_truth, results, …) -> Result that measure files of any code base with a benchmark's own metric.
BENCHMARKS = Registry("benchmark")
MOST_NAMES = 5  # in a message

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Plot:
    """A diagram as data: curves over a common axis.

    name: what a file of it may be called; curves: x and y values, each [K], of each curve by its name.
    """

    name: str
    x_label: str
    y_label: str
    curves: Mapping[str, tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class Result:
    """What a metric found.

    score: the one number that says which of two detectors is better, higher being better; values: numbers by name, to
    be logged; text: the table to show. Metrics that have more to say override the methods.
    """

    score: float
    values: Mapping[str, float] = field(default_factory=dict)
    text: str = ""

    def table(self) -> str:
        """The numbers as a text table, as the benchmark's own tool prints it."""
        return self.text or "\n".join(f"{name}: {value:.4g}" for name, value in self.values.items())

    def to_json(self) -> dict[str, Any]:
        """All numbers in plain types."""
        return {"score": self.score, "values": dict(self.values)}

    def plots(self) -> Sequence[Plot]:
        """Diagrams of the result; none unless a metric has some."""
        return ()


@runtime_checkable
class Evaluator(Protocol):
    """Measures the predictions for the frames of a data set; a frame that is added twice counts once.

    Where several processes share the frames, each adds its own, and `merge` brings them together.
    """

    def add(self, sample: Sample, predictions: Any) -> None:
        """Take the predictions for one frame; a sample that could not be read has no calibration and none."""

    def state(self) -> Mapping[Hashable, Any]:
        """What was added, by frame, in objects that can be sent to another process."""

    def merge(self, state: Mapping[Hashable, Any]) -> None:
        """Take what an evaluator of the same kind has in its `state`."""

    def result(self) -> Result | None:
        """The metric over all frames added, or None where these have no ground truth."""

    def check_folder(self, folder: str | Path) -> None:
        """Raises DataError when a folder holds results that `write` would not replace, so that two runs would mix."""

    def write(self, folder: str | Path) -> list[Path]:
        """Write the predictions in the benchmark's own submission format; the files written."""


def check_class_names(path: Path, names: Iterable[str], known: Collection[str], ignore_case: bool = False) -> None:
    """Warn of detections whose classes a benchmark does not have, which so do not count.

    Args:
        path: of the results.
        names: the class of each detection.
        known: all classes that there are, measured or not.
        ignore_case: whether "car" is "Car".

    Raises:
        DataError: all detections are such.
    """
    there = {name.lower() for name in known} if ignore_case else set(known)
    counts = Counter(names)
    others = Counter({n: c for n, c in counts.items() if (n.lower() if ignore_case else n) not in there})
    if not others:
        return
    listed = ", ".join(f"{count} of {name!r}" for name, count in others.most_common(MOST_NAMES))
    more = f" and of {len(others) - MOST_NAMES} other names" * (len(others) > MOST_NAMES)
    text = (
        f"{path}: {others.total()} of {counts.total()} detections have a class that is not known and do not count: "
        f"{listed}{more}; known: {', '.join(known)}"
    )
    if others.total() == counts.total():
        raise DataError(text)
    _log.warning("%s", text)
