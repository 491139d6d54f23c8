"""Submissions to nuScenes: detections written, read back and measured, attributes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from nuscenes_release import CLASSES, RANGE, Release, dataset, make_release, prepared

from pcdet_ext.config import ConfigError
from pcdet_ext.data.nuscenes import NuScenesDataset, NuScenesFrames
from pcdet_ext.data.nuscenes.submission import attribute
from pcdet_ext.data.prepare import prepare
from pcdet_ext.evaluation import nuscenes_files
from pcdet_ext.evaluation.nuscenes_files import MAX_BOXES, read_results
from pcdet_ext.files import DataError
from pcdet_ext.structures import Detections


def nothing(frame_id: str) -> Detections:
    return Detections(
        np.zeros((0, 9), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), tuple(CLASSES), frame_id
    )


def truth_as_found(found: NuScenesDataset, i: int) -> Detections:
    targets = found[i].targets
    scores = np.linspace(0.9, 0.5, len(targets), dtype=np.float32)
    return Detections(targets.boxes, scores, targets.labels, tuple(CLASSES), found.frames[i].frame_id)


def test_a_release_without_annotations_has_no_labels(tmp_path: Path) -> None:
    made = make_release(("scene-0077",), labelled=False)
    root = made.write(tmp_path, version="v1.0-test")
    prepare(NuScenesFrames(root), ["test"], [], progress=False)
    found = dataset(root, "test")
    assert found[0].targets is None
    evaluator = found.evaluator()
    evaluator.add(found[0], nothing(found[0].frame_id))
    assert evaluator.result() is None
    (path,) = evaluator.write(tmp_path / "results")
    assert json.loads(path.read_text())["results"] == {f"scene-0077-{i}": [] for i in range(3)}


def test_a_perfect_submission_scores_and_comes_back(release: Release, tmp_path: Path) -> None:
    found = dataset(prepared(release, tmp_path), "val")
    evaluator, other = found.evaluator(), found.evaluator()
    for i in range(len(found)):
        (evaluator if i else other).add(found[i], truth_as_found(found, i))
    evaluator.merge(other.state())
    result = evaluator.result()
    assert [result.class_ap(name) for name in ("car", "barrier", "pedestrian")] == pytest.approx([1, 1, 0])
    for error in ("trans_err", "scale_err", "orient_err", "vel_err"):
        assert result.label_error("car", error) == pytest.approx(0, abs=1e-5)
    assert result.score == result.values["NDS"] > 0.1
    (path,) = evaluator.write(tmp_path / "results")
    boxes, tokens = read_results(path)
    assert tokens == tuple(found.all_frames.frame_ids)
    results = found.read_results(path)
    assert set(results) == set(tokens)
    for i in range(len(found)):
        own, back = truth_as_found(found, i), results[found.frames[i].frame_id]
        np.testing.assert_allclose(back.boxes, own.boxes, atol=1e-4)
        assert (back.names, back.frame_id) == (own.names, own.frame_id)
    assert boxes.attribute[0] == "vehicle.moving"


def test_tracks_of_a_submission_come_back(release: Release, tmp_path: Path) -> None:
    root = prepared(release, tmp_path)
    box = {"translation": [405, 905, 0.8], "size": [1.9, 4.5, 1.6], "rotation": [1, 0, 0, 0], "velocity": [4, 0]}
    rows = [box | {"tracking_id": name, "tracking_name": "car", "tracking_score": 0.5} for name in ("b", "a")]
    path = tmp_path / "tracks.json"
    path.write_text(json.dumps({"meta": {}, "results": {"scene-0103-0": rows, "other": []}}))
    (token,) = dataset(root, "val").read_results(path)
    found = dataset(root, "val").read_results(path)[token]
    assert found.track_ids.tolist() == [1, 0]
    np.testing.assert_allclose(found.boxes[:, :7], dataset(root, "val")[0].targets.boxes[[0, 0], :7], atol=1e-4)
    with mock.patch.object(nuscenes_files, "read_json", wraps=nuscenes_files.read_json) as parsed:
        assert len(dataset(root, "val").read_results(path)) == 1
    parsed.assert_called_once_with(path)  # a large file takes long
    path.write_text(json.dumps({"results": {"other": []}}))
    with pytest.raises(DataError, match="has none of the data's 3 samples"):
        dataset(root, "val").read_results(path)


def test_the_best_500_are_kept_and_it_is_said(
    release: Release, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = dataset(prepared(release, tmp_path), "val")
    count = MAX_BOXES + 20
    boxes = np.tile(np.array([5, 5, 0, 4, 2, 1.5, 0, 0, 0], np.float32), (count, 1))
    boxes[7, 0], boxes[9, 7] = np.nan, np.nan  # a place that is not finite, and a velocity that is not known
    scores = np.random.default_rng(0).permutation(count).astype(np.float32) / count
    scores[9] = 1
    evaluator = found.evaluator()
    evaluator.add(found[0], Detections(boxes, scores, np.zeros(count, np.int64), tuple(CLASSES), ""))
    (path,) = evaluator.write(tmp_path / "results")
    assert "1 samples have more than 500 detections" in caplog.text
    kept, _ = read_results(path)
    expected = np.sort(np.delete(scores, 7).astype(np.float64))[-MAX_BOXES:]
    np.testing.assert_array_equal(np.sort(kept.score), expected)
    assert np.isnan(kept.velocity[kept.score == 1]).all()


def test_what_a_submission_may_not_have_is_not_written(release: Release, tmp_path: Path) -> None:
    found = dataset(prepared(release, tmp_path), "val")
    boxes = np.tile(np.array([5, 5, 0, 4, 2, 1.5, 0, 0, 0], np.float32), (5, 1))
    boxes[1, 0], boxes[2, 4], boxes[3, 8] = 1e30, 1e12, -np.inf
    evaluator = found.evaluator()
    evaluator.add(found[0], Detections(boxes, np.full(5, 0.5, np.float32), np.zeros(5, np.int64), tuple(CLASSES), ""))
    (path,) = evaluator.write(tmp_path / "results")
    assert len(read_results(path)[0]) == 2


def test_no_detections_at_all_score_nothing(release: Release, tmp_path: Path) -> None:
    found = dataset(prepared(release, tmp_path), "val")
    evaluator = found.evaluator()
    for i in range(len(found)):
        evaluator.add(found[i], nothing(found.frames[i].frame_id))
    assert evaluator.result().score == 0


@pytest.mark.parametrize(
    ("name", "speed", "expected"),
    [
        ("car", 0.2, "vehicle.parked"),
        ("car", 0.21, "vehicle.moving"),
        ("bus", 0.0, "vehicle.stopped"),
        ("bicycle", 1.0, "cycle.with_rider"),
        ("motorcycle", float("nan"), "cycle.without_rider"),
        ("pedestrian", 3.0, "pedestrian.moving"),
        ("pedestrian", 0.0, "pedestrian.standing"),
        ("barrier", 0.0, "cycle.with_rider"),
    ],
)
def test_attributes_follow_the_speed(name: str, speed: float, expected: str) -> None:
    assert attribute(name, speed) == expected


def test_the_metric_has_ten_classes_and_no_options(release: Release, tmp_path: Path) -> None:
    root = prepared(release, tmp_path)
    with pytest.raises(ConfigError, match="no such key"):
        dataset(root).evaluator({"overlap": 1})
    other = NuScenesDataset(root=root, classes=["car", "ignore"], point_cloud_range=RANGE, split="val")
    with pytest.raises(ConfigError, match="no metric for class 'ignore'"):
        other.evaluator()
