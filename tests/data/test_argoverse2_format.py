"""Argoverse 2: logs to frames, sweeps that lie upon one another, labels, the metric, submissions, and damaged logs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from argoverse2_release import OBJECTS, START, STEP, annotations, ego_at, landmarks, make_log, sweep, write
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pyarrow import feather

from pcdet_ext.cli.command import main
from pcdet_ext.config import ConfigError
from pcdet_ext.data.argoverse2 import Argoverse2Dataset, Argoverse2Frames, read_points, write_detections
from pcdet_ext.data.argoverse2.results import cuboids_of
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.data.points import read_columns, read_point_file
from pcdet_ext.data.prepare import prepare
from pcdet_ext.evaluation.argoverse2_files import read_detections
from pcdet_ext.evaluation.benchmarks import argoverse2
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Detections

CLASSES = ["Regular_vehicle", "Pedestrian", "Stop_sign"]
RANGE = [-50, -50, -5, 50, 50, 5]
LOGS = {"train": ("0b86", "0a8c"), "val": ("7c30",)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two logs of four sweeps in train, one in val."""
    for split, logs in LOGS.items():
        for log in logs:
            make_log(tmp_path / "data" / split / log)
    return tmp_path / "data"


def prepared(root: Path, splits: tuple[str, ...] = ("train", "val"), **options: object) -> Path:
    prepare(Argoverse2Frames(root), splits, progress=False, **options)
    return root


def dataset(root: Path, split: str = "val", **options: object) -> Argoverse2Dataset:
    return Argoverse2Dataset(root=root, classes=CLASSES, point_cloud_range=RANGE, split=split, **options)


@pytest.mark.parametrize("above", [False, True])
def test_frames_come_log_by_log_and_in_time(root: Path, above: bool) -> None:
    if above:  # as the data sets of Argoverse 2 lie side by side
        (root / "sensor").mkdir()
        for split in LOGS:
            shutil.move(root / split, root / "sensor" / split)
    found = dataset(prepared(root), "train")
    ids = [f"{log}_{START + number * STEP}" for log in ("0a8c", "0b86") for number in range(4)]
    assert found.frames.frame_ids == ids
    assert [len(sample.points) for sample in (found[0], found[7])] == [81, 81]


def test_a_sweep_is_read_as_released(root: Path) -> None:
    found = dataset(prepared(root), point_features=["x", "y", "z", "intensity", "offset_ns", "laser_number"])
    sample, expected = found[2], sweep("7c30", 2)
    order = ["x", "y", "z", "intensity", "offset_ns", "laser_number"]
    np.testing.assert_array_equal(sample.points, np.column_stack([expected[name].astype(np.float32) for name in order]))
    assert sample.points.dtype == np.float32
    np.testing.assert_allclose(sample.pose[:3, 3], ego_at(2)[0], atol=1e-12)
    assert sample.timestamp == pytest.approx((START + 2 * STEP) * 1e-9)
    assert dataset(root)[2].point_features == ("x", "y", "z", "intensity")


def test_joined_sweeps_lie_upon_one_another(root: Path) -> None:
    found = dataset(prepared(root), max_sweeps=3, near=2.0)
    assert [len(found.read(info).points) for info in found.frames] == [81, 161, 241, 241]
    sample = found.read(found.frames[3])
    ages = sample.points[:, -1]
    np.testing.assert_allclose(np.unique(ages), [0, 0.1, 0.2], atol=1e-6)
    world = sample.points[:, :3] @ sample.pose[:3, :3].T + sample.pose[:3, 3]
    for age in np.unique(ages):
        own = world[ages == age][:80]  # the point on the vehicle follows; that of earlier sweeps is left out
        np.testing.assert_allclose(own, landmarks("7c30"), atol=0.03)  # 16 bits
    assert (ages == 0).sum() == 81


def test_labels_are_those_of_the_files(root: Path) -> None:
    frames = dataset(prepared(root)).frames
    info, rows = frames[1], annotations("7c30", 1)
    assert list(info.names) == ["Regular_vehicle", "Pedestrian", "Stop_sign", "Animal"]
    assert info.points_in_box.tolist() == [7, 3, 0, 2]
    np.testing.assert_allclose(info.boxes[:, :3], [[r["tx_m"], r["ty_m"], r["tz_m"]] for r in rows], atol=1e-5)
    np.testing.assert_allclose(info.boxes[:, 3:6], [size for _, _, size, *_ in OBJECTS.values()], atol=1e-6)
    headings = [heading - ego_at(1)[1] for _, heading, *_ in OBJECTS.values()]
    np.testing.assert_allclose(np.cos(info.boxes[:, 6] - headings), 1, atol=1e-6)  # the tilted car too
    assert info.track_ids.tolist() == frames[2].track_ids.tolist()
    assert len(set(info.track_ids.tolist())) == 4


def test_objects_without_points_are_left_out_unless_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "argoverse2", "--root", str(root), "--quiet"]) == 0
    assert "Stop_sign: 0 of 8 count, the others do not: 8 (no LiDAR point inside)" in capsys.readouterr().out
    assert set(dataset(root)[0].targets.names) == {"Regular_vehicle", "Pedestrian"}
    assert set(dataset(root, min_points=0)[0].targets.names) == set(CLASSES)


def truth_as_detections(found: Argoverse2Dataset, shift: float = 0.0) -> list[tuple[object, Detections]]:
    """The labelled boxes that have a metric, and some that are no boxes."""
    pairs = []
    for i in range(len(found)):
        sample = found[i]
        boxes = np.concatenate([sample.targets.boxes, [[1, 2, 0, 4, np.nan, 1, 0], [1, 2, 0, 4, 0, 1, 0]]])
        boxes[:, 0] += shift
        labels = np.array([CLASSES.index(name) for name in sample.targets.names] + [0, 0])
        scores = np.linspace(0.9, 0.5, len(boxes))
        pairs.append((sample, Detections(boxes, scores, labels, tuple(CLASSES), sample.frame_id)))
    return pairs


def test_what_is_labelled_has_the_best_score(root: Path) -> None:
    found = dataset(prepared(root))
    metric = found.evaluator({"region": False})
    for sample, detections in truth_as_detections(found):
        metric.add(sample, detections)
    classes = metric.result().classes
    assert set(classes) == {"REGULAR_VEHICLE", "PEDESTRIAN", "STOP_SIGN"}
    for name in ("REGULAR_VEHICLE", "PEDESTRIAN"):
        assert classes[name].annotations == 4
        assert classes[name].metrics == pytest.approx({"AP": 1, "ATE": 0, "ASE": 0, "AOE": 0, "CDS": 1}, abs=1e-4)
    assert classes["STOP_SIGN"].annotations == 0
    more = Argoverse2Dataset(root=root, classes=[*CLASSES, "Bus"], point_cloud_range=RANGE, split="val")
    for options, score in (({}, 2 / 4), ({"only_present": True}, 2 / 3)):  # signs are annotated, though without points
        other = more.evaluator({"region": False, **options})
        other.merge(metric.state())
        assert other.result().score == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"region": False}, {"max_range": 12.0}, {"recall_samples": 100}])
def test_the_metric_is_that_of_the_written_submission(
    root: Path, tmp_path: Path, options: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    found = dataset(prepared(root))
    metric = found.evaluator(options)
    for sample, detections in truth_as_detections(found, shift=0.7):
        metric.add(sample, detections)
    (path,) = metric.write(tmp_path / "out")
    assert "8 detections whose numbers are not finite, or that have no size, are left out" in caplog.text
    categories = [name.upper() for name in CLASSES]
    official = argoverse2(root / "val", path, classes=categories, **options)
    assert metric.result().to_json() == official.to_json()
    if not options:  # the car leaves the map, whose picture ends with the drivable area, and its detections do so first
        assert official.classes["PEDESTRIAN"].true_positives == (0, 4, 4, 4)
        assert official.classes["REGULAR_VEHICLE"].annotations == 3
        assert official.classes["REGULAR_VEHICLE"].true_positives == (0, 2, 2, 2)


def test_without_annotations_there_is_nothing_to_measure_but_a_submission(root: Path, tmp_path: Path) -> None:
    make_log(root / "test" / "9999", labelled=False)
    (summary,) = prepare(Argoverse2Frames(root), ["test"], [], progress=False)
    assert summary.notes == {"annotations.feather: the log has none": 4}
    found = dataset(root, "test")
    assert not found.labelled
    metric = found.evaluator()
    metric.add(found[0], Detections(np.zeros((0, 7)), np.zeros(0), np.zeros(0, np.int64), tuple(CLASSES)))
    assert metric.result() is None
    boxes, sweeps = read_detections(metric.write(tmp_path)[0])
    assert len(boxes) == len(sweeps) == 0


@pytest.mark.parametrize("region", [False, True])
def test_logs_without_annotations_are_not_measured(root: Path, tmp_path: Path, region: bool) -> None:
    pairs = truth_as_detections(dataset(prepared(root)))
    make_log(root / "val" / "9999", labelled=False)
    found = dataset(prepared(root))
    alone, together = (found.evaluator({"region": region}) for _ in range(2))
    for sample, detections in pairs:
        alone.add(sample, detections)
        together.add(sample, detections)
    for number, (_, detections) in enumerate(pairs, len(pairs)):  # surer than all that is true
        assert found[number].targets is None
        together.add(found[number], replace(detections, scores=detections.scores + 0.5))
    assert alone.result().classes["PEDESTRIAN"].ap == pytest.approx(1)
    assert together.result().to_json() == alone.result().to_json()
    written = {log for log, _ in read_detections(together.write(tmp_path / "out")[0])[1]}
    assert written == {"7c30", "9999"}


def test_results_of_any_code_base_are_read(root: Path, tmp_path: Path) -> None:
    found = dataset(prepared(root))
    metric = found.evaluator()
    pairs = truth_as_detections(found)
    for sample, detections in pairs:
        metric.add(sample, detections)
    results = found.read_results(metric.write(tmp_path)[0])
    assert sorted(results) == found.frames.frame_ids
    for sample, detections in pairs:
        np.testing.assert_allclose(results[sample.frame_id].boxes, detections.boxes[:-2], atol=1e-6)
        assert results[sample.frame_id].names == detections.names[:-2]
    train = dataset(root, "train")
    with pytest.raises(DataError, match=r"detections\.feather: has none of the data's 8 sweeps"):
        train.read_results(tmp_path / "detections.feather")


@settings(max_examples=25, deadline=None)
@given(
    data=arrays.arrays(np.float64, st.tuples(st.integers(0, 6), st.just(8)), elements=st.floats(0.125, 100, width=32)),
    times=st.lists(st.integers(0, 2**62), min_size=6, max_size=6),
)
def test_submissions_are_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, data: np.ndarray, times: list[int]
) -> None:
    path = tmp_path_factory.mktemp("submission") / "d.feather"
    labels = np.arange(len(data)) % 3
    written = cuboids_of(Detections(data[:, :7], data[:, 7], labels, tuple(CLASSES)))
    sweeps = [(f"log-{time % 3}", time) for time in times[: len(data)]]
    write_detections(path, written, sweeps)
    read, found = read_detections(path)
    assert found == sweeps
    assert read.category.tolist() == [CLASSES[i].upper() for i in labels]
    for name in ("center", "size", "rotation", "score"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20), st.sampled_from(["f2", "f4", "f8"]), st.sampled_from(["u1", "i4", "f4"]))
def test_points_are_read_in_whatever_numbers_they_are(
    tmp_path_factory: pytest.TempPathFactory, count: int, places: str, others: str
) -> None:
    rng = np.random.default_rng(count)
    names = ("laser_number", "y", "x", "z", "offset_ns", "intensity", "more")
    whole = ("laser_number", "offset_ns")
    kinds = {name: places if name in "xyz" else "i4" if name in whole else others for name in names}
    columns = {name: rng.uniform(0, 100, count).astype(kind) for name, kind in kinds.items()}
    path = write(tmp_path_factory.mktemp("sweep") / "1.feather", columns)
    order = ("x", "y", "z", "intensity", "laser_number", "offset_ns")
    expected = np.column_stack([columns[name].astype(np.float32) for name in order])
    np.testing.assert_array_equal(read_points(path), expected)


def first(root: Path, pattern: str = "val/7c30/sensors/lidar/*.feather") -> Path:
    return min(root.glob(pattern))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def without_pose(path: Path) -> None:
    feather.write_feather(feather.read_table(path).slice(1), str(path))


def without_column(path: Path) -> None:
    feather.write_feather(feather.read_table(path).drop_columns(["intensity"]), str(path))


@pytest.mark.parametrize(
    ("pattern", "damage", "message", "frames"),
    [
        ("val/7c30/sensors/lidar/*.feather", Path.unlink, r"315966070000000000\.feather: no such file", 1),
        ("val/7c30/sensors/lidar/*.feather", cut, r"315966070000000000\.feather: damaged or no Feather file", 1),
        ("val/7c30/sensors/lidar/*.feather", without_column, r"0000\.feather: no column 'intensity'", 1),
        ("val/7c30/annotations.feather", cut, r"7c30/annotations\.feather: damaged or no Feather file", 4),
        ("val/7c30/city_SE3_egovehicle.feather", Path.unlink, r"city_SE3_egovehicle\.feather: no such file", 4),
        (
            "val/7c30/city_SE3_egovehicle.feather",
            without_pose,
            r"egovehicle\.feather: no pose at 315966070000000000",
            1,
        ),
    ],
)
def test_damaged_logs_are_named_and_can_be_skipped(
    root: Path, pattern: str, damage: object, message: str, frames: int
) -> None:
    shutil.copytree(root / "val" / "7c30", root / "val" / "8d41")
    damage(first(root, pattern))
    with pytest.raises(DataError, match=message):
        prepared(root, ("val",))
    (summary,) = prepare(Argoverse2Frames(root), ["val"], on_error="skip", progress=False)
    assert len(summary.skipped) == frames
    assert summary.frames == 8 - frames


def test_files_that_change_after_preparation_are_noticed_and_can_be_skipped(root: Path) -> None:
    prepared(root)
    path = first(root)
    feather.write_feather(feather.read_table(path).slice(1), str(path))
    with pytest.raises(DataError, match=r"0000\.feather: 80 points where the index has 81; changed\?"):
        dataset(root)[0]
    path.unlink()
    with pytest.raises(MissingFileError, match=r"0000\.feather: no such file"):
        dataset(root, max_sweeps=2)[1]
    found = dataset(root, on_error="skip")
    assert len(found[0].points) == 0
    assert found.skipped == [found.frames[0].frame_id]
    assert found.counts["skipped frames"] == 1


def test_what_is_no_argoverse_2_is_said(root: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no split 'test' of Argoverse 2 here, neither .*data/test nor"):
        Argoverse2Frames(root).find("test")
    first(root).rename(root / "val/7c30/sensors/lidar/frame-1.feather")
    with pytest.raises(DataError, match=r"frame-1\.feather: the name of a sweep must be its time in nanoseconds"):
        Argoverse2Frames(root).find("val")
    (root / "none" / "log").mkdir(parents=True)
    with pytest.raises(DataError, match=r"none: no log with sweeps"):
        Argoverse2Frames(root).find("none")


def test_options_that_do_not_fit_are_refused(root: Path) -> None:
    prepared(root)
    with pytest.raises(ValueError, match="max_sweeps must be at least 1"):
        dataset(root, max_sweeps=0)
    node = {"name": "Argoverse2Dataset", "root": str(root), "classes": ["Animal"], "point_cloud_range": RANGE}
    with pytest.raises(ConfigError, match="Argoverse 2 has no metric for class 'Animal'"):
        build_dataset(node, "val", training=False).evaluator()
    for options, message in (({"range": 3}, "max_range"), ({"max_range": 0.0}, "max_range must be above 0")):
        with pytest.raises(ConfigError, match=message):
            dataset(root).evaluator(options)
    shutil.rmtree(root / "val/7c30/map")
    metric = dataset(root).evaluator({"region": True})
    metric.add(*truth_as_detections(dataset(root))[0])
    with pytest.raises(DataError, match=r"7c30/map: no log_map_archive"):
        metric.result()


def test_the_drivable_area_counts_where_there_are_maps(root: Path) -> None:
    path = first(root, "val/7c30/map/*.json")
    content = json.loads(path.read_text())
    content["drivable_areas"]["1"]["area_boundary"] = [{"x": x, "y": 896.0, "z": 0.0} for x in (403.0, 404.0, 405.0)]
    path.write_text(json.dumps(content))
    found = dataset(prepared(root))
    metric = found.evaluator()
    for sample, detections in truth_as_detections(found):
        metric.add(sample, detections)
    counts = {name: result.annotations for name, result in metric.result().classes.items()}
    assert counts == {"REGULAR_VEHICLE": 0, "PEDESTRIAN": 4, "STOP_SIGN": 0}


def test_a_sweep_alone_is_a_cloud(root: Path, tmp_path: Path) -> None:
    path = next(root.rglob("sensors/lidar/*.feather"))
    content = read_point_file(path)
    assert content.columns[:4] == ("x", "y", "z", "intensity")
    own = read_columns(path, ["x", "y", "z", "intensity", "timestamp"])
    np.testing.assert_array_equal(own[:, :4], content.points[:, :4])
    assert not own[:, 4].any()  # one scan, whose points all have the age 0
    np.testing.assert_array_equal(
        read_columns(path, ["x", "y", "z", "ring"])[:, 3], content.select(["laser_number"])[:, 0]
    )
    assert main(["visualize", str(path), "--out", str(tmp_path / "sweep.html")]) == 0
    assert (tmp_path / "sweep.html").stat().st_size > 1000
    (tmp_path / "cut.feather").write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"cut\.feather: damaged or not a \.feather point cloud"):
        read_point_file(tmp_path / "cut.feather")
    with pytest.raises(DataError, match=r"none\.feather: no such file"):
        read_point_file(tmp_path / "none.feather")
