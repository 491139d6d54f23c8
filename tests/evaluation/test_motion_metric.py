"""Motion forecasts: errors and matching against plain loops, and what is said about wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.cli.command import main
from pcdet_ext.evaluation.motion import Futures, MotionResult, evaluate, path_errors
from pcdet_ext.evaluation.motion_files import read_ground_truth, read_results
from pcdet_ext.evaluation.nuscenes import Boxes, Samples
from pcdet_ext.files import DataError

AHEAD = np.stack([np.arange(1, 13), np.zeros(12)], axis=1)  # 1 m each step


def boxes(rows: list[tuple[int, str, float, float]], points: int) -> Boxes:
    """From (sample, class, x, score)."""
    sample, name, x, score = zip(*rows, strict=True) if rows else ([], [], [], [])
    count = len(rows)
    return Boxes(
        sample=np.array(sample, np.int64),
        name=np.array(name, np.str_),
        attribute=np.full(count, ""),
        translation=np.column_stack([np.array(x, np.float64), np.zeros(count), np.zeros(count)]),
        size=np.ones((count, 3)),
        rotation=np.tile([1.0, 0, 0, 0], (count, 1)),
        velocity=np.zeros((count, 2)),
        score=np.array(score, np.float64),
        num_points=np.full(count, points),
    )


def result(truth: list[tuple[Any, ...]], found: list[tuple[Any, ...]]) -> MotionResult:
    """From truth (class, x, path, length) and detections (class, x, score, modes), all in one sample."""
    truths = boxes([(0, row[0], row[1], -1) for row in truth], 5)
    detections = boxes([(0, *row[:3]) for row in found], -1)
    samples = Samples(("a",), np.zeros((1, 3)), truths.select(np.zeros(0, np.int64)))
    paths = np.array([row[2] for row in truth], float).reshape(-1, 12, 2)
    modes = np.array([row[3] for row in found] or np.zeros((0, 1, 12, 2)), np.float32)
    lengths = np.array([row[3] for row in truth], np.int64)
    return evaluate(Futures(truths, paths, lengths), Futures(detections, modes, np.full(len(found), 12)), samples)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_errors_are_their_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    modes, paths, lengths = rng.normal(0, 2, (7, 3, 12, 2)), rng.normal(0, 2, (7, 12, 2)), rng.integers(0, 13, 7)
    errors = path_errors(modes, paths, lengths)
    for n, k in enumerate(lengths):
        gaps = [[np.hypot(*(modes[n, m, i] - paths[n, i])) for i in range(k)] for m in range(3)]
        expected = (
            [min(map(np.mean, gaps)), min(g[-1] for g in gaps), float(min(map(max, gaps)) > 2)] if k else [0, 0, 0]
        )
        assert [float(values[n]) for values in errors.values()] == pytest.approx(expected)


def test_a_perfect_forecast() -> None:
    values = result([("car", 0, AHEAD, 12)], [("truck", 0.5, 0.9, [AHEAD, -AHEAD])]).values
    assert values["car_EPA"] == 1
    assert (values["car_min_ade_err"], values["car_min_fde_err"], values["car_miss_rate_err"]) == (0, 0, 0)
    assert (values["pedestrian_EPA"], values["pedestrian_min_ade_err"]) == (0, 1)


def test_a_detection_with_a_bad_forecast_leaves_its_object_to_a_later_one() -> None:
    found = [("car", 0.0, 0.9, [AHEAD + [0, 9]]), ("car", 0.5, 0.8, [AHEAD])]
    row = result([("car", 0, AHEAD, 12)], found).classes["car"]
    assert (row.hits, row.false, row.epa) == (1, 1, 0.5)


def test_an_object_without_a_future_counts_as_matched_but_is_no_hit() -> None:
    row = result([("pedestrian", 0, AHEAD, 0)], [("pedestrian", 0, 0.9, [AHEAD])]).classes["pedestrian"]
    assert (row.hits, row.epa, row.error("min_ade_err")) == (0, 0, 0)


def test_of_equal_scores_the_later_one_counts_first() -> None:
    found = [("car", 0.0, 0.9, [AHEAD]), ("car", 1.5, 0.9, [AHEAD + [0, 1]])]
    assert result([("car", 0, AHEAD, 12)], found).values["car_min_ade_err"] == pytest.approx(1)


def test_a_class_without_any_match_has_an_accuracy_of_zero_not_less() -> None:
    found = [("car", 10.0 + i, 0.9, [AHEAD]) for i in range(5)]
    row = result([("car", 0, AHEAD, 12)], found).classes["car"]
    assert (row.epa, row.error("min_fde_err")) == (0, 1)


def test_ranges_are_those_of_the_merged_class() -> None:
    truth = [("bicycle", 45.0, AHEAD, 12), ("bicycle", 50.0, AHEAD, 12), ("pedestrian", 41.0, AHEAD, 12)]
    classes = result([*truth, ("traffic_cone", 1.0, AHEAD, 12)], []).classes
    assert (classes["car"].truths, classes["pedestrian"].truths) == (1, 0)


BOX = {"translation": [1, 2, 0], "size": [2, 4, 1.5], "rotation": [1, 0, 0, 0], "velocity": [0, 0]}
FOUND = {**BOX, "sample_token": "a", "detection_name": "car", "detection_score": 0.5, "trajs": [AHEAD.tolist()]}
TRUTH = {**BOX, "detection_name": "car", "num_pts": 3, "traj": [[1, 2]]}


def write(folder: Path, truth: dict[str, Any], found: dict[str, Any]) -> tuple[Path, Path]:
    samples = {"a": {"scene": "s", "timestamp": 0, "ego_translation": [0, 0, 0]}}
    (folder / "gt.json").write_text(json.dumps({"samples": samples, "gt_boxes": {"a": [truth]}}))
    (folder / "results.json").write_text(json.dumps({"meta": {}, "results": {"a": [found]}}))
    return folder / "gt.json", folder / "results.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trajs": [[[1, 2]] * 11]}, r"results\.json: sample a: trajs must be numbers \['modes', 12, 2\]"),
        ({"trajs": []}, r"results\.json: sample a: trajs must be numbers"),
        ({"trajs": [[["x", 2]] * 12]}, r"results\.json: sample a: trajs must be numbers"),
        ({"trajs": [[["1", "2"]] * 12]}, r"results\.json: sample a: trajs must be numbers"),
        ({"trajs": [[[True, 2.5]] * 12]}, r"results\.json: sample a: trajs must be numbers"),
        ({"trajs": [[[10**400, 2]] * 12]}, r"results\.json: sample a: trajs must be numbers"),
        ({"trajs": [[[float("nan"), 2]] * 12]}, r"results\.json: sample a: trajs has numbers that are not finite"),
        ({"detection_name": "tram"}, r"results\.json: sample a: unknown class 'tram'"),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_results(write(tmp_path, TRUTH, {**FOUND, **change})[1], ["a"])


@pytest.mark.parametrize(
    ("traj", "message"),
    [
        ([[1, 2]] * 13, "traj has 13 places, 12 at most"),
        ([1, 2], "traj must be numbers"),
        ([["1", 2]], "traj must be numbers"),
        (None, "traj must be"),
    ],
)
def test_damaged_ground_truth_is_named(tmp_path: Path, traj: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"gt\.json: sample a: {message}"):
        read_ground_truth(write(tmp_path, {**TRUTH, "traj": traj}, FOUND)[0])


def test_boxes_may_differ_in_their_number_of_modes(tmp_path: Path) -> None:
    _, path = write(tmp_path, TRUTH, FOUND)
    content = json.loads(path.read_text())
    content["results"]["a"].append({**FOUND, "trajs": [AHEAD.tolist(), (-AHEAD).tolist()]})
    path.write_text(json.dumps(content))
    modes = read_results(path, ["a"]).paths
    np.testing.assert_array_equal(modes, [[AHEAD, AHEAD], [AHEAD, -AHEAD]])


def test_the_command_line_takes_tables_and_a_file(shared: Path, tmp_path: Path) -> None:
    case = shared / "golden" / "eval_motion" / "small"
    expected = json.loads((case / "expected.json").read_text())["metrics"]
    for truth in ("tables", "gt.json"):
        arguments = ["--ground-truth", str(case / truth), "--results", str(case / "results.json")]
        out = tmp_path / "out.json"
        assert main(["evaluate", "motion", *arguments, "--json", str(out), "--plots", str(tmp_path / "plots")]) == 0
        assert json.loads(out.read_text())["metrics"] == pytest.approx(expected, abs=1e-9)
