"""The numbers of the Waymo metrics: precision over recall, the area under it, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.evaluation.waymo_objects import EVALUATED_TYPES, TYPES, Config
from pcdet_ext.structures import Array

RECALL_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Curve:
    """Of one shard at one level, at each score cutoff.

    true_positives, false_positives, false_negatives: float32 [K]; heading: float32 [K], sum of the accuracy of headings
    over the true positives; config: what it was measured with.
    """

    true_positives: Array
    false_positives: Array
    false_negatives: Array
    heading: Array
    config: Config

    @property
    def recall(self) -> Array:
        """float32 [K]."""
        return ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def precision(self) -> Array:
        """float32 [K], 1 where nothing is recalled."""
        return self._cleaned(self.true_positives)

    @property
    def heading_precision(self) -> Array:
        """float32 [K], every true positive weighted with the accuracy of its heading."""
        return self._cleaned(self.heading)

    def _cleaned(self, hits: Array) -> Array:
        precision = ratio(hits, self.true_positives + self.false_positives)
        precision = np.where(precision < self.config.min_precision, np.float32(0), precision)
        return np.where(self.recall == 0, np.float32(1), precision)

    @property
    def ap(self) -> float:
        """Average precision."""
        return average_precision(self.recall, self.precision, self.config.recall_step)

    @property
    def aph(self) -> float:
        """Average precision weighted by heading."""
        return average_precision(self.recall, self.heading_precision, self.config.recall_step)


@dataclass(frozen=True, eq=False)
class WaymoResult(Result):
    """Curves by the official names, such as "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1".

    The score is the mean APH at level 2 over the types that are measured (signs left out); values: AP and APH of every
    curve.
    """

    curves: Mapping[str, Curve] = field(default_factory=dict)

    @staticmethod
    def of(curves: Mapping[str, Curve]) -> WaymoResult:
        """The result that some curves make."""
        kinds = (("AP", "ap"), ("APH", "aph"))
        values = {f"{name}/{kind}": getattr(c, key) for name, c in curves.items() for kind, key in kinds}
        names = [f"OBJECT_TYPE_TYPE_{TYPES[i]}_LEVEL_2/APH" for i in EVALUATED_TYPES if TYPES[i] != "SIGN"]
        found = [values[name] for name in names if name in values]
        return WaymoResult(float(np.mean(found)) if found else 0.0, values, curves=curves)

    def of_types(self, types: Sequence[int]) -> WaymoResult:
        """The curves of some types alone (positions in `TYPES`), and those that are of no single type."""
        others = [f"_TYPE_{TYPES[i]}_" for i in EVALUATED_TYPES if i not in types]
        return WaymoResult.of({n: c for n, c in self.curves.items() if not any(other in n for other in others)})

    def table(self) -> str:
        """One row for each type, and range or other part of it, with AP and APH of every level in percent."""
        levels = sorted({name.rpartition("_")[2] for name in self.curves})
        head = "".join(f"{f'L{level} {kind}':>9}" for level in levels for kind in ("AP", "APH"))
        rows = [f"{'%':<36}{head}"]
        for name in dict.fromkeys(name.rpartition("_LEVEL_")[0] for name in self.curves):
            curves = [self.curves[f"{name}_LEVEL_{level}"] for level in levels]
            rows.append(f"{_title(name):<36}" + "".join(f"{100 * x:>9.2f}" for c in curves for x in (c.ap, c.aph)))
        if any(name.startswith("OBJECT_TYPE") for name in self.curves):
            rows.append(f"mAPH at level 2 (signs left out): {100 * self.score:.2f}")
        return "\n".join(rows)

    def plots(self) -> Sequence[Plot]:
        """Precision over recall, one diagram for each curve of the breakdown by type."""
        return [
            Plot(name.lower(), "recall", "precision", {name: (curve.recall, curve.precision)})
            for name, curve in self.curves.items()
            if name.startswith("OBJECT_TYPE")
        ]

    def to_json(self) -> dict[str, Any]:
        """All numbers and curves in plain types."""
        return super().to_json() | {
            name: {
                "AP": curve.ap,
                "APH": curve.aph,
                "recall": curve.recall.tolist(),
                "precision": curve.precision.tolist(),
                "precision_heading": curve.heading_precision.tolist(),
            }
            for name, curve in self.curves.items()
        }


def _title(name: str) -> str:
    """The name of a shard as tables show it: a type, its part set off to the right."""
    breakdown, separator, rest = name.removeprefix("OBJECT_TYPE_").rpartition("TYPE_")
    kind, _, part = rest.partition("_")
    if not separator:
        return name.replace("_", " ").capitalize()
    metres = " m" if breakdown == "RANGE_" else ""
    return f"  {kind.capitalize()} {part.replace('_', ' ').lower()}{metres}" if part else kind.capitalize()


def ratio(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros_like(a, dtype=np.float32), where=b > 0)


def average_precision(recall: Array, precision: Array, step: float = 0.05) -> float:
    """Area under the curve of the best precision at each recall or beyond.

    Gaps in recall wider than `step` get points between that carry the precision of the higher recall, so that a steep
    end counts little.

    Args:
        recall: float32 [K].
        precision: float32 [K].
        step: of recall.
    """
    best: dict[float, float] = {0.0: 1.0}
    for r, p in zip(recall.tolist(), precision.tolist(), strict=True):
        best[r] = max(best.get(r, 0.0), p)
    points: list[tuple[float, float]] = []
    highest, last = 0.0, 0.0
    for r in sorted(best, reverse=True):
        while last - r > step + RECALL_TOLERANCE:
            last -= step
            points.append((last, highest))
        highest = max(highest, best[r])
        points.append((r, highest))
        last = r
    if len(points) > 1:
        points[-1] = (points[-1][0], points[-2][1])
    if len(points) == 1:
        return 0.0
    return float(np.float32(sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))))
