"""Checking this library against numeric cases of published implementations: what `tools/reproduce.py` runs."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch

from pcdet_ext.conformance.cases.evaluators import run_evaluator_case
from pcdet_ext.conformance.cases.waymo_points import EXPECTED_POINTS, run_point_case
from pcdet_ext.conformance.golden import Report, find_cases, run_case
from pcdet_ext.files import atomic_write

# Modules of pcdet_ext.conformance.cases; importing one registers its runners.
CASE_MODULES = (
    "data_common",
    "data_nuscenes",
    "data_waymo",
    "dsvt",
    "evaluators",
    "flatformer",
    "graph_tracking",
    "lion",
    "mappings",
    "octree",
    "octree_models",
    "openpcdet_boxes",
    "openpcdet_data",
    "openpcdet_heads",
    "openpcdet_models",
    "openpcdet_training",
    "openpcdet_voxels",
    "scatterformer",
    "sequence_ops",
    "tracking",
    "trajectory_tracking",
    "unilion",
    "unilion_detection",
    "unilion_heads",
    "unilion_pipeline",
    "waymo_database",
    "whole_detectors",
)
EXPECTED = "expected.json"  # what makes a folder a case of an evaluator


def reproduce(
    paths: Iterable[str | Path], grads: bool = False, show: Callable[[Report], None] = lambda _: None
) -> list[Report]:
    """Run cases, and report each.

    Args:
        paths: cases (`<case>.json` or `.npz`), folders of an evaluator's case (with `expected.json`), or folders that
            hold such at any depth.
        grads: whether gradients are compared, too.
        show: what is called with each report as it comes.

    Returns:
        All reports; what is missing or cannot be read is a failed one.
    """
    load_runners()
    reports = []
    with _repeatable_arithmetic():
        for path in dict.fromkeys(p.resolve() for p in map(Path, paths)):
            for report in _run(path, grads):
                show(report)
                reports.append(report)
    return reports


def load_runners() -> None:
    """Register the runners of every case module."""
    for name in CASE_MODULES:
        import_module(f"pcdet_ext.conformance.cases.{name}")


def summary(reports: Sequence[Report]) -> str:
    """One line: how many cases passed, failed, and are not covered."""
    counts = Counter(report.status for report in reports)
    worst = max((r.worst for r in reports if r.status == "pass" and not math.isnan(r.worst)), default=0.0)
    return (
        f"{counts['pass']} of {len(reports)} cases pass (worst error {worst:.3g} of tolerance), "
        f"{counts['fail']} fail, {counts['not covered']} not covered"
    )


def all_pass(reports: Sequence[Report]) -> bool:
    """Whether there was at least one case, and all passed."""
    return bool(reports) and all(report.status == "pass" for report in reports)


def write_json(reports: Sequence[Report], path: str | Path) -> None:
    """Write {"pass": bool, "cases": [{name, kind, status, worst, …}]} atomically; infinite errors are null."""
    cases = [asdict(report) for report in reports]
    for case in cases:
        case["worst"] = case["worst"] if math.isfinite(case["worst"]) else None
    text = json.dumps({"pass": all_pass(reports), "cases": cases}, indent=1, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _run(path: Path, grads: bool) -> Iterator[Report]:
    """Reports of the cases that one path means; a single failed one where it means none."""
    if path.name in (EXPECTED, EXPECTED_POINTS):
        path = path.parent
    if not path.exists():
        yield _failed(path, "no such file or folder")
    elif path.is_file() and path.suffix not in (".json", ".npz"):
        yield _failed(path, "a case is a .json or .npz file, or a folder")
    elif path.is_file():
        yield _run_case(next(find_cases(path)), grads)
    else:
        cases = list(_walk(path))
        if not cases:
            yield _failed(path, "the folder holds no case")
        for case in cases:
            yield _run_evaluator(case) if case.is_dir() else _run_case(case, grads)


def _walk(folder: Path) -> Iterator[Path]:
    """Case files and evaluators' case folders at any depth below a folder, sorted."""
    if (folder / EXPECTED).is_file() or (folder / EXPECTED_POINTS).is_file():
        yield folder
        return
    yield from find_cases(folder)
    for inner in sorted(p for p in folder.iterdir() if p.is_dir()):
        yield from _walk(inner)


def _run_case(path: Path, grads: bool) -> Report:
    try:
        return run_case(path, grads)
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        return _failed(path, f"cannot be read: {type(error).__name__}: {error}")


def _run_evaluator(folder: Path) -> Report:
    try:
        return run_point_case(folder) if (folder / EXPECTED_POINTS).is_file() else run_evaluator_case(folder)
    except Exception as error:  # as in run_case: any failure is the case's result, reported by name
        return _failed(folder, f"{type(error).__name__}: {error}")


def _failed(path: Path, message: str) -> Report:
    return Report(f"{path.parent.name}/{path.stem}", "unknown", "fail", message=f"{path}: {message}")


@contextmanager
def _repeatable_arithmetic() -> Iterator[None]:
    """One thread, and torch's vector functions used once: their very first call in a process has been seen inexact."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.exp(torch.linspace(-1, 1, 4096))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
