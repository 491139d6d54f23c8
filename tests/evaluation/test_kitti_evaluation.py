"""KITTI metrics against the official devkit's numbers, and against its rules written out in plain Python."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.conformance.cases.evaluators import find_evaluator_cases, run_evaluator_case
from pcdet_ext.data.kitti import Labels, evaluate_folders, write_labels
from pcdet_ext.evaluation.kitti import CLASSES, evaluate
from pcdet_ext.evaluation.matching import Pairs, match, match_reference, pick_thresholds
from pcdet_ext.files import DataError


@pytest.mark.parametrize("case", ["small", "edge_rules"])
def test_devkit_numbers_of_the_copied_cases(root: Path, tmp_path: Path, case: str) -> None:
    folder = root / "tests/data/eval_kitti" / case
    (tmp_path / "eval_kitti").symlink_to(folder.parent)  # the parent's name says which evaluator
    report = run_evaluator_case(tmp_path / "eval_kitti" / case)
    assert report.status == "pass", report.line()
    assert report.compared == 144


def test_devkit_numbers_of_all_cases(shared: Path) -> None:
    cases = find_evaluator_cases(shared / "golden/eval_kitti")
    assert len(cases) >= 6
    for case in cases:
        report = run_evaluator_case(case)
        assert report.status == "pass", report.line()


def labels(rows: list[tuple], scored: bool) -> Labels:
    """Rows (name, x1, y1, x2, y2, x, z, heading, score) with the rest filled in."""
    n = len(rows)
    table = np.array([r[1:] for r in rows], np.float64).reshape(n, 8)
    return Labels(
        names=tuple(r[0] for r in rows),
        truncation=np.zeros(n),
        occlusion=np.zeros(n, np.int64),
        alpha=table[:, 6],
        bbox=table[:, :4],
        dimensions=np.tile([1.5, 1.6, 3.9], (n, 1)),
        location=np.stack([table[:, 4], np.full(n, 1.6), table[:, 5]], 1),
        rotation_y=table[:, 6],
        scores=table[:, 7] if scored else None,
    )


def cars(count: int, shift: float = 0.0) -> list[tuple]:
    return [("Car", 10, 100, 110, 160, 3.0 * i + shift, 20, 0.0, 0.9 - 0.001 * i) for i in range(count)]


def test_exact_copies_of_many_objects_are_perfect() -> None:
    rows = [("Car", 200 * i, 100, 200 * i + 110, 160, 9.0 * i, 20, 0.3, 0.9 - 0.001 * i) for i in range(60)]
    result = evaluate([labels(rows, False)], [labels(rows, True)], ["Car"])
    for metric, precision in result.results["overlap_0_7"]["Car"].items():
        np.testing.assert_allclose(precision.r40, 100, err_msg=metric)
    assert result.ap("Car", "bev") == pytest.approx(100)


def test_a_turned_box_keeps_its_place_but_loses_its_orientation() -> None:
    rows = [("Car", 200 * i, 100, 200 * i + 110, 160, 9.0 * i, 20, 0.3, 0.9 - 0.001 * i) for i in range(60)]
    found = labels(rows, True)
    flipped = replace(found, alpha=found.alpha + np.pi, rotation_y=found.rotation_y + np.pi)
    result = evaluate([labels(rows, False)], [flipped], ["Car"]).results["overlap_0_7"]["Car"]
    np.testing.assert_allclose(result["3d"].r40, 100)
    np.testing.assert_allclose(result["aos"].r40, 0, atol=1e-9)


def test_unknown_alpha_drops_orientation() -> None:
    found = labels(cars(3), True)
    result = evaluate([labels(cars(3), False)], [replace(found, alpha=np.full(3, -10.0))])
    assert "aos" not in result.results["overlap_0_7"]["Car"]
    assert "aos" not in result.table()


def test_nothing_found_and_nothing_there() -> None:
    empty = labels([], True)
    for truth in (labels(cars(3), False), labels([], False)):
        assert evaluate([truth], [empty]).ap("Car", "3d") == 0.0
    assert evaluate([], []).frames == 0


@st.composite
def frames(draw: st.DrawFn) -> tuple[Pairs, list[np.ndarray], float]:
    """Random ragged tables with few distinct values, so that ties are frequent."""
    truths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    founds = draw(st.lists(st.integers(0, 5), min_size=len(truths), max_size=len(truths)))
    regions = draw(st.lists(st.integers(0, 2), min_size=len(truths), max_size=len(truths)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    at = [np.cumsum([0, *counts]) for counts in (truths, founds, regions)]
    overlap = rng.choice([0.0, 0.3, 0.5, 0.6, 0.7, 0.9], int(np.dot(truths, founds)))
    inside = rng.choice([0.0, 0.4, 0.8], int(np.dot(regions, founds)))
    columns = [
        rng.choice([-1, 0, 0, 1], sum(truths)).astype(np.int8),
        rng.choice([-1, 0, 0, 1], sum(founds)).astype(np.int8),
        rng.choice([0.1, 0.4, 0.5, 0.9], sum(founds)),
        rng.uniform(-3, 3, sum(truths)),
        rng.uniform(-3, 3, sum(founds)),
    ]
    return Pairs(*at, overlap, inside), columns, 0.5


@settings(max_examples=150, deadline=None)
@given(frames())
def test_native_matching_equals_the_rules_in_python(case: tuple) -> None:
    pairs, columns, least = case
    native, plain = match(pairs, *columns, least), match_reference(pairs, *columns, least)
    for name in ("thresholds", "true_positives", "false_positives", "similarity"):
        np.testing.assert_allclose(getattr(native, name), getattr(plain, name), err_msg=name)


def test_thresholds_are_spread_over_the_recall() -> None:
    scores = np.linspace(1, 0, 1000).tolist()
    picked = pick_thresholds(scores, 1000)
    assert len(picked) == 41
    recall = [scores.index(p) / 1000 for p in picked]
    np.testing.assert_allclose(recall, np.arange(41) / 40, atol=0.02)
    assert pick_thresholds([0.3, 0.9], 2) == [0.9, 0.3]


def write_folders(root: Path) -> tuple[Path, Path]:
    for folder, scored in (("label_2", False), ("results", True)):
        write_labels(root / folder / "000000.txt", labels(cars(2), scored))
        write_labels(root / folder / "000001.txt", labels([], scored))
    return root / "label_2", root / "results"


def run_tool(root: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "tools/evaluate.py"), "kitti", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tool_prints_the_table_and_writes_json(root: Path, tmp_path: Path) -> None:
    truth, results = write_folders(tmp_path)
    out = tmp_path / "out.json"
    done = run_tool(root, "--ground-truth", truth, "--results", results, "--json", out, "--classes", "Car")
    assert done.returncode == 0, done.stderr
    assert "KITTI, 2 frames" in done.stdout
    numbers = json.loads(out.read_text())
    expected = evaluate_folders(truth, results, ["Car"])
    assert numbers["overlap_0_7"]["Car"]["3d"]["R40"] == expected.results["overlap_0_7"]["Car"]["3d"].r40.tolist()


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (
            lambda t, r: (r / "000000.txt").write_text("Car" + " 1" * 13),
            1,
            "results/000000.txt:1: a line must have 16 columns",
        ),
        (lambda t, r: (r / "000000.txt").write_text("Car" + " x" * 15), 1, "results/000000.txt:1: 'x' is not a number"),
        (lambda t, r: (t / "000001.txt").unlink(), 2, "label_2/000001.txt: no such file"),
        (lambda t, r: [f.unlink() for f in r.iterdir()], 2, "results: no result files"),
        (lambda t, r: r.rename(r.with_name("gone")), 2, "results: no such folder"),
    ],
)
def test_the_tool_names_what_is_wrong(root: Path, tmp_path: Path, damage: object, code: int, message: str) -> None:
    truth, results = write_folders(tmp_path)
    damage(truth, results)
    done = run_tool(root, "--ground-truth", truth, "--results", results)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    found = labels(cars(1), True)
    with pytest.raises(ValueError, match="no metric for class 'Cra'; did you mean 'Car'"):
        evaluate([found], [found], ["Cra"])
    with pytest.raises(ValueError, match="1 frames of ground truth, but 2 of results"):
        evaluate([found], [found, found])
    with pytest.raises(ValueError, match="results need scores"):
        evaluate([found], [labels(cars(1), False)], CLASSES)
    with pytest.raises(DataError, match="no such folder"):
        evaluate_folders(tmp_path / "nowhere", tmp_path)
