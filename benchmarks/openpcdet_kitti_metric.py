"""OpenPCDet's KITTI metric against this library's: the same numbers, and how long each takes.

python -m pcdet_ext.plugins.openpcdet benchmarks/openpcdet_kitti_metric.py CASE [--runs 5 --threads 2 --json F]

CASE is a folder with label_2 and results in KITTI's text files, or with both packed in inputs.npz. Either side starts
from labels that are in memory. Theirs runs unedited, the overlaps of rotated boxes, which it computes by numba for
CUDA, answered by the operations of this library where there is no GPU; its functions that numba compiles for the CPU
are its own. The first run of each side compiles, and is reported apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.core.errors import NumbaPerformanceWarning
from pcdet.datasets.kitti.kitti_object_eval_python.eval import get_official_eval_result

from pcdet_ext.conformance.cases.evaluators import kitti_frames
from pcdet_ext.data.kitti import Labels
from pcdet_ext.engine.info import hardware, versions
from pcdet_ext.evaluation.kitti import evaluate
from pcdet_ext.evaluation.kitti_labels import DIFFICULTIES
from pcdet_ext.evaluation.kitti_result import STRICT, KittiResult
from pcdet_ext.files import atomic_write

CLASSES = ("Car", "Pedestrian", "Cyclist")
METRICS = {"image": "bbox"}  # our names where they differ
TOLERANCE = 0.01  # percent


def annotations(frames: Sequence[Labels]) -> list[dict[str, np.ndarray]]:
    """Labels as OpenPCDet has them, whose sizes are (length, height, width)."""
    return [
        {
            "name": np.array(labels.names, np.str_),
            "truncated": labels.truncation,
            "occluded": labels.occlusion,
            "alpha": labels.alpha,
            "bbox": labels.bbox,
            "dimensions": labels.dimensions[:, [2, 0, 1]],
            "location": labels.location,
            "rotation_y": labels.rotation_y,
            "score": np.zeros(len(labels.names)) if labels.scores is None else labels.scores,
        }
        for labels in frames
    ]


def timed(run: Callable[[], Any], runs: int) -> tuple[Any, float, list[float]]:
    """Result and seconds of the first run, and the seconds of the others."""
    seconds, result = [], None
    for _ in range(runs + 1):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return result, seconds[0], seconds[1:]


def differences(theirs: dict[str, float], ours: KittiResult) -> dict[str, float]:
    """Average precision there minus here, in percent, by OpenPCDet's name, of all that it reports."""
    found = {}
    for key, value in theirs.items():
        head, _, level = key.rpartition("/")
        kind, metric = head.split("_")
        curve = ours.results[STRICT][kind][METRICS.get(metric, metric)]
        points = curve.r40 if level.endswith("_R40") else curve.r11
        found[key] = float(value) - float(points[DIFFICULTIES.index(level.removesuffix("_R40"))])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    numba.set_num_threads(min(options.threads, numba.config.NUMBA_NUM_THREADS))
    warnings.simplefilter("ignore", NumbaPerformanceWarning)
    truth, found = kitti_frames(options.case)
    their_truth, their_found = annotations(truth), annotations(found)
    (_, theirs), their_first, their_runs = timed(
        lambda: get_official_eval_result(their_truth, their_found, list(CLASSES)), options.runs
    )
    ours, our_first, our_runs = timed(lambda: evaluate(truth, found, CLASSES), options.runs)
    apart = differences(theirs, ours)
    worst = max(apart, key=lambda key: abs(apart[key]))
    print(f"{len(apart)} numbers of {len(truth)} frames; furthest apart {worst}: {abs(apart[worst]):.2g}")
    summary = {}
    for name, first, runs in (("OpenPCDet", their_first, their_runs), ("pcdet_ext", our_first, our_runs)):
        summary[name] = {"first": first, "median": statistics.median(runs), "fastest": min(runs)}
        print(f"{name}: {summary[name]['median']:.2f} s (median of {len(runs)} runs, the first took {first:.1f} s)")
    print(f"time of OpenPCDet / ours: {summary['OpenPCDet']['median'] / summary['pcdet_ext']['median']:.1f}")
    if options.json:
        content = {"hardware": hardware(), "versions": versions(), "threads": options.threads, "seconds": summary}
        content |= {"case": options.case.name, "frames": len(truth), "differences": apart}
        with atomic_write(options.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if abs(apart[worst]) > TOLERANCE:
        raise SystemExit(f"{worst} differs by {apart[worst]:.3g}, more than {TOLERANCE}")


main()
