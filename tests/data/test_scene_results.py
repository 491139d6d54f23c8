"""The metrics of several tasks at once, and the files that they leave for `pcdet evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_ext.data.formats import BENCHMARKS, measured_kind
from pcdet_ext.data.nuscenes.dataset import NuScenesDataset
from pcdet_ext.data.nuscenes.scene_results import SceneEvaluator, SceneResult
from pcdet_ext.files import DataError
from pcdet_ext.scenes import MAP_LAYERS, OCCUPANCY_CLASSES, Forecasts, MapLayers, OccupancyGrid, PlannedPath
from pcdet_ext.structures import Detections, Predictions, Sample

CLASSES = ["car", "truck", "bus", "pedestrian", "bicycle", "motorcycle", "trailer", "barrier", "traffic_cone"]
SCENE: dict[str, Any] = {"map_layers": "all", "occupancy": "gts", "futures": 12, "plan": 6}
SCENE |= {"occupancy_x": [-24, 24, 0.4], "occupancy_y": [-16, 16, 0.4]}


@pytest.fixture
def data(scene_root: Path) -> NuScenesDataset:
    area = [-54, -54, -3, 54, 54, 5]
    return NuScenesDataset(
        root=scene_root, split="val", classes=CLASSES, point_cloud_range=area, max_sweeps=1, frame="ego", scene=SCENE
    )


def true_answer(sample: Sample) -> Predictions:
    """What a detector without any error would find."""
    t: Any = sample.targets
    boxes = Detections(t.boxes, np.linspace(0.5, 1, len(t)).astype(np.float32), t.labels, t.class_names)
    paths = t.boxes[:, None, None, :2] + t.futures.cumsum(1)[:, None]
    other = paths + 30  # a second mode, which is wrong
    return Predictions(
        {
            "detection": boxes,
            "map": MapLayers(t.map_masks.astype(np.float32), MAP_LAYERS, *t.map_grid),
            "occupancy": OccupancyGrid(t.occupancy, OCCUPANCY_CLASSES, *t.occupancy_grid),
            "motion": Forecasts(
                np.concatenate([other, paths], 1).astype(np.float32), np.zeros((len(t), 2), np.float32), "detection"
            ),
            "planning": PlannedPath(t.plan.steps.cumsum(0) + [0.3, 0.4]),
        }
    )


def evaluated(data: NuScenesDataset, found: Any = true_answer) -> SceneEvaluator:
    evaluator = data.evaluator()
    assert isinstance(evaluator, SceneEvaluator)
    for sample in data:
        evaluator.add(sample, found(sample))
    return evaluator


def test_true_answers_have_no_error(data: NuScenesDataset) -> None:
    result = evaluated(data).result()
    assert isinstance(result, SceneResult)
    assert result.values["occupancy/mIoU/all"] == 1
    assert result.values["bev_map/map/drivable_area/iou@0.50"] == 1
    assert result.values["motion/car_min_ade_err"] < 0.01
    assert "planning" not in result.parts  # no frame has all six steps
    parts = [result.parts[name].score for name in ("detection", "bev_map", "occupancy")]
    assert result.score == pytest.approx(np.mean(parts))
    assert f"occupancy mIoU {1:.4f}" in result.table()
    assert set(result.to_json()) == {"score", "detection", "bev_map", "occupancy", "motion"}


def test_errors_show_in_the_task_they_are_of(data: NuScenesDataset) -> None:
    right = evaluated(data).result()

    def without_cars(sample: Sample) -> Predictions:
        answer = true_answer(sample)
        grid: Any = answer["occupancy"]
        free = np.where(grid.labels == OCCUPANCY_CLASSES.index("car"), len(OCCUPANCY_CLASSES) - 1, grid.labels)
        return Predictions({**answer.heads, "occupancy": replace(grid, labels=free)})

    wrong = evaluated(data, without_cars).result()
    assert right is not None
    assert wrong is not None
    assert wrong.parts["occupancy"].iou()[OCCUPANCY_CLASSES.index("car")] == 0
    for name in ("detection", "bev_map", "motion"):
        assert wrong.parts[name].score == right.parts[name].score


def test_paths_are_measured_with_the_boxes_that_they_follow(data: NuScenesDataset) -> None:
    """Beside another head that finds as many boxes, and comes before."""

    def beside(sample: Sample) -> Predictions:
        answer = true_answer(sample)
        boxes: Any = answer["detection"]
        wrong = replace(boxes, boxes=boxes.boxes + np.float32([25, 25, 0, 0, 0, 0, 0, 0, 0]), scores=boxes.scores * 0)
        return Predictions({"elsewhere": wrong, **answer.heads})

    right, found = evaluated(data).result(), evaluated(data, beside).result()
    assert right is not None
    assert found is not None
    assert found.parts["motion"].values == pytest.approx(right.parts["motion"].values, nan_ok=True)


def test_files_give_the_same_numbers(data: NuScenesDataset, tmp_path: Path) -> None:
    evaluator = evaluated(data)
    result = evaluator.result()
    assert result is not None
    files = evaluator.write(tmp_path)
    assert all(path.is_file() for path in files)
    ends = {"bev_map": ("gt", "pred"), "occupancy": ("gt", "pred"), "motion": ("gt.json", "pred.json")}
    for name, (truth, found) in ends.items():
        again = BENCHMARKS.get(name)(tmp_path / name / truth, tmp_path / name / found)
        assert again.score == pytest.approx(result.parts[name].score, abs=1e-6)
    with pytest.raises(DataError, match="all six steps"):
        BENCHMARKS.get("planning")(tmp_path / "planning" / "gt.npz", tmp_path / "planning" / "pred.npz")


def test_processes_share_the_frames(data: NuScenesDataset) -> None:
    first, second = data.evaluator(), data.evaluator()
    for number, sample in enumerate(data):
        (first, second)[number % 2].add(sample, true_answer(sample))
    first.merge(second.state())
    whole, joined = evaluated(data).result(), first.result()
    assert whole is not None
    assert joined is not None
    assert joined.values == pytest.approx(whole.values, nan_ok=True)


def test_grids_that_differ_are_refused(data: NuScenesDataset) -> None:
    evaluator, sample = data.evaluator(), data[0]
    grid: Any = true_answer(sample)["occupancy"]
    with pytest.raises(ValueError, match="occupancy head looks at"):
        evaluator.add(sample, Predictions({"occupancy": replace(grid, x=(-20.0, 20.0, 0.4))}))
    layers: Any = true_answer(sample)["map"]
    with pytest.raises(ValueError, match="map head finds"):
        evaluator.add(sample, Predictions({"map": replace(layers, names=layers.names[::-1])}))


def test_plans_of_known_futures_are_measured(data: NuScenesDataset) -> None:
    evaluator, sample = data.evaluator(), data[0]
    answer = true_answer(sample)
    plan = replace(sample.targets.plan, mask=np.ones(6, bool))
    evaluator.add(sample.replace(targets=sample.targets.replace(plan=plan)), answer)
    result = evaluator.result()
    assert result is not None
    assert result.values["planning/L2"] == pytest.approx(0.5, abs=1e-5)


def test_the_kind_of_results_depends_on_what_is_labelled() -> None:
    assert measured_kind({"name": "NuScenesDataset", "scene": SCENE}) is Predictions
    assert measured_kind({"name": "NuScenesDataset"}) is Detections
