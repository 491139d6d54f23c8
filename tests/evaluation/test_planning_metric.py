"""Open-loop planning: collisions against polygons, headings by hand, and what is said about wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapely import affinity
from shapely import box as rectangle
from shapely.geometry.base import BaseGeometry

from pcdet_ext.cli.command import main
from pcdet_ext.evaluation.planning import EGO_SHIFT, EGO_SIZE, Plans, collide, evaluate, headings
from pcdet_ext.evaluation.planning_files import future_boxes, read_plans
from pcdet_ext.files import DataError


def polygon(x: float, y: float, length: float, width: float, yaw: float) -> BaseGeometry:
    flat = rectangle(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.translate(affinity.rotate(flat, yaw, (0, 0), use_radians=True), x, y)


def test_collisions_are_those_of_polygons() -> None:
    rng = np.random.default_rng(3)
    samples, each = 20, 12
    path = rng.normal(0, 2, (samples, 6, 2)).cumsum(axis=1).astype(np.float32)
    boxes = np.zeros((samples * 6 * each, 7))
    boxes[:, :2] = np.repeat(path.reshape(-1, 2), each, axis=0) + rng.normal(0, 6, (len(boxes), 2))
    boxes[:, 3:5] = rng.uniform(0.5, 5, (len(boxes), 2))
    boxes[:, 6] = rng.uniform(-7, 7, len(boxes))
    found = collide(path, boxes, np.full((samples, 6), each))
    yaw = headings(path)
    expected = np.zeros((samples, 6), bool)
    for n in range(samples):
        for t in range(6):
            x, y = path[n, t] + EGO_SHIFT * np.array([np.cos(yaw[n, t]), np.sin(yaw[n, t])])
            ego = polygon(x, y, *EGO_SIZE, yaw[n, t])
            rows = boxes[(n * 6 + t) * each :][:each]
            expected[n, t] = any(ego.intersects(polygon(*row[[0, 1, 3, 4, 6]])) for row in rows)
    assert 0.2 < expected.mean() < 0.9
    np.testing.assert_array_equal(found, expected)


def test_headings_follow_the_way_and_a_standing_vehicle_looks_ahead() -> None:
    corner = np.array([[[1, 0], [2, 0], [3, 0], [3, 1], [3, 2], [3, 3]]], np.float32)
    np.testing.assert_allclose(headings(corner)[0], [0, 0, np.pi / 4, np.pi / 2, np.pi / 2, np.pi / 2], atol=1e-6)
    loop = np.array([[[1, 0], [2, 3], [3, 0], [3, 1], [3, 2], [1, 0.4]]], np.float32)
    assert not headings(loop).any()


def plans(found: Any, boxes: Any, counts: Any, known: Any = None) -> Plans:
    """One sample that drives 1 m forward at each step."""
    offsets = np.tile(np.array([1, 0], np.float32), (1, 6, 1))
    known = np.ones((1, 6), bool) if known is None else np.array([known])
    places = np.asarray(found, np.float32).reshape(1, 6, 2)
    return Plans(places, offsets, known, np.asarray(boxes, float).reshape(-1, 7), np.array([counts]))


def test_only_what_the_driven_path_does_not_touch_counts_against_the_plan() -> None:
    straight = [[i + 1, 0] for i in range(6)]
    aside = [[i + 1, 5] for i in range(6)]
    box = [[3, 5, 0, 2, 2, 2, 0.3]]
    result = evaluate(plans(aside, box, [0, 1, 0, 0, 0, 0]))
    assert (result.collides.sum(), result.truth_collides.sum()) == (1, 0)
    assert result.values["L2"] == pytest.approx(5)
    assert result.values["obj_box_col"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 6) / 3)
    result = evaluate(plans(straight, [[3, 0, 0, 2, 2, 2, 0.3]], [0, 1, 0, 0, 0, 0]))
    assert (result.collides.sum(), result.truth_collides.sum()) == (0, 1)


def test_touching_is_a_collision_and_a_gap_of_a_tenth_of_a_millimetre_is_none() -> None:
    still = np.zeros((1, 6, 2), np.float32)
    for gap, expected in ((0.0, True), (1e-4, False)):
        x = float(np.float32(EGO_SHIFT)) + float(np.float32(EGO_SIZE[0])) / 2 + 1 + gap
        counts = np.array([[1, 0, 0, 0, 0, 0]])
        assert collide(still, np.array([[x, 0, 9, 2, 2, 1, 0.0]]), counts)[0, 0] == expected


def test_samples_without_all_steps_do_not_count() -> None:
    with pytest.raises(ValueError, match="no sample has all six steps"):
        evaluate(plans(np.zeros(12), [], [0] * 6, [True] * 5 + [False]))
    with pytest.raises(ValueError, match="boxes must be"):
        plans(np.zeros(12), [], [1] + [0] * 5)


FRAME = {
    "scene_token": "s",
    "gt_boxes": [[1, 2, 3, 4, 2, 1.5, 0.1], [1, 2, 3, 4, 2, 1.5, 0.1]],
    "num_lidar_pts": [3, 0],
    "cam_front_ego2global_translation": [10, 0, 0],
    "cam_front_ego2global_rotation": [1, 0, 0, 0],
}


def test_boxes_of_the_next_frames_come_into_the_frame_of_the_sample(tmp_path: Path) -> None:
    half = float(np.sqrt(0.5))
    turned = {
        **FRAME,
        "cam_front_ego2global_translation": [12, 0, 0],
        "cam_front_ego2global_rotation": [half, 0, 0, half],
    }
    (tmp_path / "frames.json").write_text(json.dumps([FRAME, turned, {**turned, "scene_token": "other"}]))
    boxes, counts = future_boxes(tmp_path / "frames.json", np.ones((3, 6), bool))
    assert counts.tolist() == [[1, 0, 0, 0, 0, 0], [0] * 6, [0] * 6]
    np.testing.assert_allclose(boxes, [[2 - 2, 1, 3, 4, 2, 1.5, 0.1 + np.pi / 2]], atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scene_token": 3}, r"frame 0: needs a scene_token"),
        ({"num_lidar_pts": [3, True]}, r"frame 0: num_lidar_pts must be numbers \[2\]"),
        ({"gt_boxes": [["1", 2, 3, 4, 2, 1.5, 0.1]] * 2}, r"frame 0: gt_boxes must be numbers \[2, 7\]"),
        ({"num_lidar_pts": [1]}, r"frame 0: num_lidar_pts must be numbers \[2\]"),
        ({"gt_boxes": [[1, 2]] * 2}, r"frame 0: gt_boxes must be numbers \[2, 7\]"),
        ({"cam_front_ego2global_rotation": [0, 0, 0, 0]}, r"cam_front_ego2global_rotation: a rotation of zeros"),
    ],
)
def test_damaged_frames_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "frames.json").write_text(json.dumps([{**FRAME, **change}]))
    with pytest.raises(DataError, match=message):
        future_boxes(tmp_path / "frames.json", np.ones((1, 6), bool))


def test_frames_of_a_parked_vehicle_may_be_equal(tmp_path: Path) -> None:
    (tmp_path / "frames.json").write_text(json.dumps([FRAME] * 3))
    boxes, counts = future_boxes(tmp_path / "frames.json", np.ones((3, 6), bool))
    assert counts.tolist() == [[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6]
    seen = np.asarray(FRAME["gt_boxes"])[np.asarray(FRAME["num_lidar_pts"]) > 0]
    np.testing.assert_allclose(boxes, np.concatenate([seen] * 3), atol=1e-12)


def test_the_command_line(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = shared / "golden" / "eval_planning" / "from_frames"
    arguments = ["evaluate", "planning", "--ground-truth", str(case / "inputs.npz"), "--results"]
    out = tmp_path / "out.json"
    assert main([*arguments, str(case / "inputs.npz"), "--json", str(out), f"frames={case / 'frames.json'}"]) == 0
    expected = json.loads((case / "expected.json").read_text())["metrics"]["L2"]
    assert json.loads(out.read_text())["metrics"]["L2"] == pytest.approx(expected, abs=2e-6)
    np.savez(tmp_path / "pred.npz", pred=np.full((18, 6, 2), np.nan))
    assert main([*arguments, str(tmp_path / "pred.npz")]) != 0
    assert "pred.npz: pred must be finite numbers" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [[2**62] * 4 + [36, 0], [2.5] + [0] * 5, [-2] + [0] * 5, [37] + [0] * 5])
def test_counts_of_boxes_fit_the_boxes(tmp_path: Path, wrong: list[float]) -> None:
    truth = {
        "gt_ego_fut_trajs": np.zeros((1, 6, 2)),
        "gt_ego_fut_masks": np.ones((1, 6)),
        "fut_boxes": np.zeros((36, 7)),
    }
    np.savez(tmp_path / "truth.npz", fut_counts=np.array([wrong]), **truth)
    np.savez(tmp_path / "pred.npz", pred=np.zeros((1, 6, 2)))
    with pytest.raises(DataError, match=r"truth.npz: fut_counts must be whole numbers from -1 to the 36 fut_boxes"):
        read_plans(tmp_path / "truth.npz", tmp_path / "pred.npz")


def test_numbers_of_samples_that_are_not_measured_may_be_missing(tmp_path: Path) -> None:
    offsets, masks, counts = np.zeros((2, 6, 2)), np.ones((2, 6)), np.zeros((2, 6), np.int64)
    masks[1, 3:], offsets[1, 3:] = 0, np.nan
    truth, results = tmp_path / "truth.npz", tmp_path / "pred.npz"

    def read(wrong: int) -> Plans:
        found = np.zeros((2, 6, 2))
        found[wrong] = np.nan
        names = {"gt_ego_fut_trajs": offsets, "gt_ego_fut_masks": masks, "fut_boxes": np.zeros((0, 7))}
        np.savez(truth, fut_counts=counts, **names)
        np.savez(results, pred=found)
        return read_plans(truth, results)

    assert evaluate(read(1)).to_json()["n_evaluated"] == 1
    with pytest.raises(DataError, match="pred must be finite"):
        read(0)
