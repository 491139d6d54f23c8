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
from pcdet_ext.evaluation.base import Evaluator
from pcdet_ext.evaluation.kitti import KittiEvaluator, evaluate
from pcdet_ext.evaluation.kitti_result import CLASSES
from pcdet_ext.evaluation.matching import Pairs, match, match_reference, pick_thresholds
from pcdet_ext.files import DataError
from pcdet_ext.structures import Detections, Sample


@pytest.mark.parametrize(("case", "classes"), [("small", 6), ("edge_rules", 3)])  # in one, the two tools differ
def test_devkit_numbers_of_the_copied_cases(root: Path, tmp_path: Path, case: str, classes: int) -> None:
    folder = root / "tests/data/eval_kitti" / case
    (tmp_path / "eval_kitti").symlink_to(folder.parent)  # the parent's name says which evaluator
    report = run_evaluator_case(tmp_path / "eval_kitti" / case)
    assert report.status == "pass", report.line()
    assert report.compared == 2 * classes * 4 * 3 * (2 + 41)  # sets, classes, metrics, difficulties; averages, curve


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


def test_detections_that_are_not_measured_are_counted() -> None:
    rows = cars(3)
    found = labels([*rows, *(("Tank", *row[1:]) for row in rows), ("DontCare", *rows[0][1:])], True)
    flat = replace(found, dimensions=np.where(np.arange(7)[:, None] == 2, -1.0, found.dimensions))
    result = evaluate([labels(rows, False)], [found], ["Car"])
    assert "detections of classes that are not measured: 3 of Tank" in result.table()
    assert result.to_json()["not_measured"] == {"Tank": 3}
    assert "not positive" not in result.table()
    result = evaluate([labels(rows, False)], [flat], ["Car"])
    assert "detections whose size is not positive: 1; in bev and 3d they match nothing" in result.table()
    assert "not measured" not in evaluate([labels(rows, False)], [labels(rows, True)], ["car"]).table()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60))
def test_the_highest_r40_is_that_of_exact_copies(count: int) -> None:
    rows = [("Car", 200 * i, 100, 200 * i + 110, 160, 9.0 * i, 20, 0.3, 0.9 - 0.001 * i) for i in range(count)]
    result = evaluate([labels(rows, False)], [labels(rows, True)], ["Car"])
    best = result.counts["Car"].highest_r40()
    assert result.ap("Car", "3d") == pytest.approx(best)
    assert ("reaches" in result.table()) == (best < 100)


def test_the_table_says_which_objects_count_and_why_others_do_not() -> None:
    truth = labels([*cars(3), ("Car", 10, 100, 110, 110, 50, 20, 0.0, 0.9), *[("Van", *r[1:]) for r in cars(1)]], False)
    truth = replace(truth, occlusion=np.array([0, 0, 3, 3, 0]))
    found = labels([*cars(2), ("car", 0, 0, 0, 0, 50, 20, 0.0, 0.9)], True)
    count = evaluate([truth], [found], ["Car"]).counts["Car"]
    assert (count.labels, count.counting, count.detections, count.low) == (4, (2, 2, 2), 3, 1)
    assert count.reasons == {"occlusion above 2": 1, "2-D box lower than 25 pixels and occlusion above 2": 1}
    assert "never count: 1 (occlusion above 2)" in count.line("Car")
    assert "3 detected" in count.line("Car")
    assert "1 of them never count" in count.line("Car")


def test_plots_hold_the_precision_curves() -> None:
    result = evaluate([labels(cars(50), False)], [labels(cars(50), True)], ["Car"])
    plots = {plot.name: plot for plot in result.plots()}
    assert set(plots) == {"Car_bbox", "Car_aos", "Car_bev", "Car_3d"}
    recall, precision = plots["Car_3d"].curves["moderate"]
    np.testing.assert_allclose(recall, np.arange(41) / 40)
    np.testing.assert_array_equal(precision, result.results["overlap_0_7"]["Car"]["3d"].precision[1])


def test_classes_of_ones_own_follow_the_same_rules() -> None:
    """A class with the overlap that KITTI asks of a pedestrian has a pedestrian's numbers."""
    rows = [("Pedestrian", 200 * i, 100, 200 * i + 110, 160, 9.0 * i, 20, 0.3, 0.9 - 0.001 * i) for i in range(60)]
    near = [
        (name, *box, x + 0.3 * (i % 4), z, heading, score) for i, (name, *box, x, z, heading, score) in enumerate(rows)
    ]
    tables = []
    for name, overlap in (("Pedestrian", None), ("Forklift", {"Forklift": 0.5})):
        truth, found = (labels([(name, *row[1:]) for row in part], s) for part, s in ((rows, False), (near, True)))
        tables.append(evaluate([truth], [found], [name], overlap).results["overlap_0_7"][name])
    for metric, precision in tables[0].items():
        np.testing.assert_array_equal(precision.precision, tables[1][metric].precision)
    assert 0 < tables[0]["3d"].r40[1] < 100


def test_evaluators_of_several_processes_add_up(tmp_path: Path) -> None:
    """Each frame counts once, whatever process added it, and in the same order."""
    frames = {f"{i:03d}": (labels(cars(3 + i), False), labels(cars(2 + i, 0.1), True)) for i in range(5)}
    samples = {name: Sample(np.zeros((0, 3), np.float32), ("x", "y", "z"), name) for name in frames}
    nothing = Detections(np.zeros((0, 7), np.float32), np.zeros(0), np.zeros(0, np.int64), ("Car",))

    def evaluator() -> KittiEvaluator:
        return KittiEvaluator(["Car"], lambda s: frames[s.frame_id][0], lambda s, _: frames[s.frame_id][1], frames)

    alone, shares = evaluator(), [evaluator(), evaluator()]
    for i, name in enumerate(frames):
        alone.add(samples[name], nothing)
        shares[i % 2].add(samples[name], nothing)
    shares[1].add(samples["000"], nothing)
    for a, b in (shares, shares[::-1]):
        a.merge(b.state())
    expected = alone.result()
    for share in shares:
        result = share.result()
        assert (result.frames, result.score) == (5, expected.score)
        assert result.to_json() == expected.to_json()
    assert isinstance(alone, Evaluator)
    assert sorted(p.name for p in alone.write(tmp_path)) == [f"{name}.txt" for name in frames]
    alone.check_folder(tmp_path)
    (tmp_path / "007.txt").touch()
    with pytest.raises(DataError, match=r"007\.txt: a result of another data set or split"):
        alone.check_folder(tmp_path)
    unlabelled = KittiEvaluator(["Car"], lambda s: None, lambda s, _: frames[s.frame_id][1], frames)
    unlabelled.add(samples["000"], nothing)
    assert unlabelled.result() is None
    unlabelled.merge(alone.state())
    unlabelled.add(samples["001"], nothing)
    with pytest.raises(ValueError, match="1 of 5 frames have no labels"):
        unlabelled.result()


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


def test_the_tool_measures_classes_of_ones_own_and_draws_curves(root: Path, tmp_path: Path) -> None:
    truth, results = write_folders(tmp_path)
    (truth / "000001.txt").write_text("Forklift 0 0 0 0 100 50 200 2 1.5 3 1 1.6 9 0 0.5\n")  # with a 16th column
    given = ["--ground-truth", truth, "--results", results, "--plots", tmp_path / "plots"]
    done = run_tool(root, *given, "classes=[Car, Forklift]", "overlap={Forklift: 0.4}")
    assert done.returncode == 0, done.stderr
    assert "Forklift: not a class of the benchmark, measured by its rules with an overlap of 0.4" in done.stdout
    assert "labels: column 16 is not used (files: 1)" in done.stderr
    assert {"Car_3d.png", "Forklift_bev.png"} <= {p.name for p in (tmp_path / "plots").iterdir()}
    done = run_tool(root, *given, "classes=[Car, Forklift]")
    assert "Forklift: not a class of the benchmark, measured by its rules with an overlap of 0.5" in done.stdout
    done = run_tool(root, *given, "classes=[Car, Forklit]")  # there is none
    assert (done.returncode, "no metric for class 'Forklit'" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (
            lambda t, r: (r / "000000.txt").write_text("Car" + " 1" * 13),
            1,
            "results/000000.txt:1: a line must have 16 columns",
        ),
        (lambda t, r: (r / "000000.txt").write_text("Car" + " x" * 15), 1, "results/000000.txt:1: 'x' is not a number"),
        (
            lambda t, r: [f.write_text(f.read_text().replace("Car", "vehicle")) for f in r.iterdir()],
            1,
            "detections have a class that is not known and do not count: ",
        ),
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
