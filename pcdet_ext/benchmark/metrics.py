"""How long the metrics take, beside the seconds that the official tools took for the same files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pcdet_ext.conformance.cases import official_metrics, scene_metrics
from pcdet_ext.conformance.cases.evaluators import find_evaluator_cases, kitti_result
from pcdet_ext.engine.info import hardware, versions
from pcdet_ext.files import atomic_write

METRICS: Mapping[str, Callable[[Path], Any]] = {
    "eval_kitti": kitti_result,
    "eval_nuscenes": official_metrics.nuscenes_result,
    "eval_nuscenes_tracking": official_metrics.nuscenes_tracking_result,
    "eval_waymo": official_metrics.waymo_result,
    "eval_argoverse2": official_metrics.argoverse2_result,
    "eval_kitti_tracking": scene_metrics.kitti_tracking_result,
    "eval_bev_map": scene_metrics.bev_map_result,
    "eval_motion": scene_metrics.motion_result,
    "eval_occupancy": scene_metrics.occupancy_result,
    "eval_planning": scene_metrics.planning_result,
}


@dataclass(frozen=True)
class MetricTiming:
    """What one case took: seconds is the median of the rounds, reading the files included; official: the fastest of the
    official tool's recorded times, None where there is none."""

    case: str
    rounds: int
    seconds: float
    fastest: float
    official: float | None

    def line(self) -> str:
        """What to print."""
        text = f"{self.case}: {self.seconds:.3f} s (median of {self.rounds}, fastest {self.fastest:.3f} s)"
        if self.official is None:
            return f"{text}; no time of the official tool is known"
        return f"{text}; official tool {self.official:.1f} s, {self.official / self.seconds:.1f} times as long"


def run_metrics(
    paths: Sequence[Path], official: Mapping[str, float], rounds: int = 5, json_path: Path | None = None
) -> list[MetricTiming]:
    """Measure the metric of each case below `paths`, printing a line for each.

    Args:
        paths: folders of cases (`…/eval_nuscenes/large`), or folders that hold such; the folder above a case says whose
            metric it is.
        official: seconds of the official tool by metric ("eval_argoverse2"), where the cases do not record them.
        rounds: how often each is measured, after one round that does not count.
        json_path: where everything is written.

    Raises:
        ValueError: there is no case of a metric that this library has, or rounds is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    cases = [case for path in paths for case in find_evaluator_cases(path.resolve())]
    known = [case for case in cases if case.parent.name in METRICS]
    if not known:
        raise ValueError(f"no case of {', '.join(METRICS)} in {', '.join(map(str, paths))}")
    timings = []
    for case in known:
        timings.append(_measure(case, official, rounds))
        print(timings[-1].line(), flush=True)
    if json_path:
        content = {"hardware": hardware(), "versions": versions(), "metrics": [asdict(t) for t in timings]}
        with atomic_write(json_path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return timings


def _measure(case: Path, official: Mapping[str, float], rounds: int) -> MetricTiming:
    kind = case.parent.name
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        METRICS[kind](case)
        seconds.append(time.perf_counter() - start)
    counted = seconds[1:]
    return MetricTiming(f"{kind}/{case.name}", rounds, median(counted), min(counted), _recorded(case, official))


def _recorded(case: Path, official: Mapping[str, float]) -> float | None:
    """The fastest of the official tool's runs that a case records."""
    content = json.loads((case / "expected.json").read_text(encoding="utf-8"))
    runs = content.get("timing_seconds", ())
    if isinstance(runs, Mapping):  # seconds of several tools
        return float(min(np.hstack(list(runs.values()))))
    known = content.get("official_seconds", content.get("seconds", ()))
    if isinstance(known, Mapping):  # seconds of the steps, one of which may be all of them together
        known = max(known.values()) if any(name.startswith("all_") for name in known) else sum(known.values())
    totals = [run["total"] for run in runs] + list(known if isinstance(known, Sequence) else [known])
    return min(totals, default=official.get(case.parent.name))
