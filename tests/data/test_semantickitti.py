"""SemanticKITTI's layout: files to samples and back, and what damaged ones give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semantickitti_folder import write_sequence

from pcdet_ext.config import ConfigError, Node
from pcdet_ext.data.base import collate
from pcdet_ext.data.formats import FRAME_SOURCES, build_dataset
from pcdet_ext.data.prepare import prepare
from pcdet_ext.data.semantickitti import CLASSES, LabelMap, SemanticKittiDataset, SemanticKittiFrames, read_labels
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import PointLabels

SPAN = [-16, -16, -3, 16, 16, 2]
# learning_map of semantic-kitti.yaml, as published: position of the class from 1, 0 for points that do not count.
PUBLISHED = {
    0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10, 48: 11, 49: 12,
    50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: 0, 252: 1, 253: 7, 254: 6, 255: 8,
    256: 5, 257: 5, 258: 4, 259: 5,
}  # fmt: skip
INVERSE = [10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, frames in {"00": 3, "08": 2}.items():
        write_sequence(tmp_path, name, frames)
    write_sequence(tmp_path, "11", 1, labelled=False)
    prepare(SemanticKittiFrames(tmp_path), ["train", "val", "test"], progress=False)
    return tmp_path


def dataset_of(root: Path, **options: object) -> SemanticKittiDataset:
    given = {"classes": tuple(CLASSES), "point_cloud_range": SPAN, "split": "val"} | options
    return SemanticKittiDataset(root=str(root), **given)


def test_the_published_map_is_the_default() -> None:
    label_map = LabelMap.of()
    ids = np.array(list(PUBLISHED))
    np.testing.assert_array_equal(
        label_map.class_numbers(ids, label_map.classes, "a"), np.array(list(PUBLISHED.values())) - 1
    )
    assert label_map.result_ids(label_map.classes).tolist() == [*INVERSE, 0]


def test_samples_hold_points_labels_instances_pose_and_time(folder: Path) -> None:
    dataset = dataset_of(folder, point_cloud_range=[-100, -100, -9, 100, 100, 9])
    assert [info.frame_id for info in dataset.frames] == ["08_000000", "08_000001"]
    sample = dataset[1]
    raw = np.fromfile(folder / "sequences/08/labels/000001.label", "<u4")
    points = np.fromfile(folder / "sequences/08/velodyne/000001.bin", "<f4").reshape(-1, 4)
    np.testing.assert_array_equal(sample.points, points)
    expected = np.array([PUBLISHED[number] - 1 for number in (raw & 0xFFFF).tolist()])
    np.testing.assert_array_equal(sample.targets.point_labels, expected)
    assert {10, 252, 30} >= set((raw & 0xFFFF)[sample.targets.point_instances > 0].tolist())
    np.testing.assert_array_equal(sample.targets.point_instances, raw >> 16)
    np.testing.assert_allclose(sample.pose[:3, 3], [1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(sample.pose[:3, :3], np.eye(3), atol=1e-9)
    assert (sample.sequence_id, sample.timestamp, sample.targets.class_names) == ("08", 0.1, tuple(CLASSES))
    assert len(dataset_of(folder, split="train")) == 3
    unlabelled = dataset_of(folder, split="test")
    assert unlabelled[0].targets is None
    assert not unlabelled.frames[0].labelled


STEPS = {
    "flip": {"name": "RandomFlip", "axes": ["x", "y"], "probability": 1.0},
    "rotate": {"name": "RandomRotation", "angle_range": [0.3, 0.5]},
    "scale": {"name": "RandomScaling", "scale_range": [1.1, 1.3]},
    "move": {"name": "RandomTranslation", "std": [1.0, 1.0, 0.1]},
    "shuffle": {"name": "PointShuffle"},
    "fewer": {"name": "PointSampling", "number": 100},
    "more": {"name": "PointSampling", "number": 700},
}


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=5), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_labels_stay_with_their_points(tmp_path_factory: pytest.TempPathFactory, steps: list[str], epoch: int) -> None:
    root = tmp_path_factory.getbasetemp() / "in_step"
    if not root.exists():
        write_sequence(root, "00", 1)
        prepare(SemanticKittiFrames(root), ["train"], progress=False)
    plain = dataset_of(root, split="train", point_cloud_range=[-99, -99, -9, 99, 99, 9])[0]
    dataset = dataset_of(root, split="train", training=True, augment=[STEPS[name] for name in steps])
    dataset.set_epoch(epoch)
    sample = dataset[0]
    assert 0 < len(sample.points) < 700 + 1
    rows = sample.point_rows
    np.testing.assert_array_equal(sample.points[:, 3], plain.points[rows, 3])  # nothing changes the intensity
    np.testing.assert_array_equal(sample.targets.point_labels, plain.targets.point_labels[rows])
    np.testing.assert_array_equal(sample.targets.point_instances, plain.targets.point_instances[rows])


def test_classes_and_ids_of_ones_own(folder: Path) -> None:
    ids = {"vehicle": [10, 252], "ground": [40, 60], "rest": [50, 70, 80, 30]}
    options = {"classes": ["ground", "vehicle"], "label_ids": ids, "things": ["vehicle"]}
    dataset = dataset_of(folder, **options)
    raw = np.fromfile(folder / "sequences/08/labels/000000.label", "<u4")[dataset[0].point_rows]
    expected = np.select([np.isin(raw & 0xFFFF, (40, 60)), np.isin(raw & 0xFFFF, (10, 252))], [0, 1], -1)
    np.testing.assert_array_equal(dataset[0].targets.point_labels, expected)
    np.testing.assert_array_equal(dataset[0].targets.point_instances, np.where(expected == 1, raw >> 16, 0))
    batch = collate([dataset[0], dataset[1]], dataset.classes)
    assert len(batch.targets[1].point_instances) == len(dataset[1].points)
    node = Node({"name": "SemanticKittiDataset", "root": str(folder), "point_cloud_range": SPAN, **options}, "data")
    assert len(build_dataset(node, "train", training=True)) == 3
    with pytest.raises(ConfigError, match=r"'vehicel'; did you mean 'vehicle'"):
        dataset_of(folder, classes=["vehicel"], label_ids=ids)
    with pytest.raises(ConfigError, match=r"40 of 'b' is one of 'a' too"):
        dataset_of(folder, classes=["a"], label_ids={"a": [40], "b": [40]})
    with pytest.raises(ConfigError, match=r"99 of 'a' is one of ignored ids too"):
        dataset_of(folder, classes=["a"], label_ids={"a": [99]})
    with pytest.raises(ConfigError, match=r"must be a whole number in \[0, 65536\)"):
        dataset_of(folder, classes=["a"], label_ids={"a": [70000]})
    with pytest.raises(ConfigError, match="balanced: frames are balanced by their labelled boxes"):
        dataset_of(folder, balanced=True)
    with pytest.raises(ConfigError, match="things: 'cars' is no class"):
        dataset_of(folder, things=["cars"])


def test_an_unknown_id_is_an_error_that_names_the_file(folder: Path) -> None:
    path = folder / "sequences/08/labels/000000.label"
    labels = np.fromfile(path, "<u4")
    labels[:2] = 77, 78
    labels.tofile(path)
    with pytest.raises(DataError, match=r"08/labels/000000\.label: unknown label id 77, 78: of no class"):
        dataset_of(folder)[0]
    dataset = dataset_of(folder, on_error="skip")
    assert (len(dataset[0].points), len(dataset[1].points) > 0, list(dataset.skipped)) == (0, True, ["08_000000"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "299 labels for the 300 points"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "no whole number of labels"),
        (lambda path: path.unlink(), "no such file"),
    ],
)
def test_damaged_labels_are_refused_or_skipped(folder: Path, damage, message: str) -> None:
    damage(folder / "sequences/08/labels/000001.label")
    source = SemanticKittiFrames(folder)
    with pytest.raises(DataError, match=rf"08/labels/000001\.label: .*{message}"):
        dataset_of(folder)[1]
    with pytest.raises(DataError, match=rf"08/labels/000001\.label: .*{message}"):
        prepare(source, ["val"], progress=False)
    (summary,) = prepare(source, ["val"], on_error="skip", progress=False)
    assert (summary.frames, len(summary.skipped)) == (1, 1)


def test_splits_are_the_published_ones_or_those_of_a_file(folder: Path) -> None:
    source = SemanticKittiFrames(folder)
    with pytest.raises(MissingFileError, match=r"minival\.txt: no such file, and 'minival' is no published split"):
        source.find("minival")
    (folder / "splits").mkdir()
    (folder / "splits" / "minival.txt").write_text("00\n\n08\n")
    assert [frame.frame_id for frame, _, _ in source.find("minival")] == [
        *(f"00_00000{i}" for i in range(3)),
        *(f"08_00000{i}" for i in range(2)),
    ]
    (folder / "splits" / "minival.txt").write_text("07\n")
    with pytest.raises(DataError, match="there is no sequence '07'"):
        source.find("minival")
    with pytest.raises(MissingFileError, match="no SemanticKITTI data here"):
        FRAME_SOURCES.build({"name": "semantickitti", "root": str(folder / "sequences")}).find("train")
    report = source.finish(folder / "pcdet_ext", ["train", "test"])
    assert "train: points by class: " in report
    assert "test: points by class: none is labelled" in report


def test_poses_need_a_calibration_and_numbers(folder: Path) -> None:
    (folder / "sequences/00/poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1\n")
    with pytest.raises(DataError, match=r"00/poses\.txt:1: must have 12 numbers, has 11"):
        SemanticKittiFrames(folder).find("train")
    still, mirrored = "1 0 0 0 0 1 0 0 0 0 1 0\n", "1 0 0 0 0 -1 0 0 0 0 1 0\n"
    (folder / "sequences/00/poses.txt").write_text(still + mirrored)
    with pytest.raises(DataError, match=r"00/poses\.txt: pose 1 must be a rotation and a translation"):
        SemanticKittiFrames(folder).find("train")
    (folder / "sequences/08/calib.txt").write_text("Tr: " + mirrored)
    with pytest.raises(DataError, match=r"08/calib\.txt:1: Tr must begin with a rotation"):
        SemanticKittiFrames(folder).find("val")
    (folder / "sequences/08/calib.txt").write_text("P0: 1 0 0 0 0 1 0 0 0 0 1 0\n")
    with pytest.raises(DataError, match=r"08/calib\.txt: has no line 'Tr:'"):
        SemanticKittiFrames(folder).find("val")


def test_right_labels_score_one_and_are_written_for_all_points_of_the_files(folder: Path, tmp_path: Path) -> None:
    dataset = dataset_of(folder, point_cloud_range=[-100, -100, -9, 100, 100, 9], process=[STEPS["shuffle"]])
    evaluator = dataset.evaluator({"min_points": 1})
    for i in range(2):
        labels = np.asarray(dataset[i].targets.point_labels)
        own = np.asarray(dataset[i].targets.point_instances)
        evaluator.add(dataset[i], PointLabels(labels, np.ones(len(labels)), tuple(CLASSES), own))
    result = evaluator.result()
    assert (result.values["mIoU"], result.values["accuracy"]) == (1.0, 1.0)
    out = tmp_path / "results"
    written = evaluator.write(out)
    assert written == [out / f"sequences/08/predictions/00000{i}.label" for i in range(2)]
    for path in written:
        ids, instances = read_labels(path)
        own_ids, own_instances = read_labels(folder / "sequences/08/labels" / path.name)
        known = np.array([PUBLISHED[number] for number in own_ids.tolist()]) > 0
        np.testing.assert_array_equal(ids[~known], 0)
        np.testing.assert_array_equal(instances, own_instances)
        np.testing.assert_array_equal(ids[known], [INVERSE[PUBLISHED[n] - 1] for n in own_ids[known].tolist()])
    evaluator.check_folder(out)
    dataset_of(folder, split="train").evaluator().check_folder(tmp_path / "none")
    with pytest.raises(DataError, match="a result of another data set or split"):
        dataset_of(folder, split="train").evaluator().check_folder(out)
    merged = dataset.evaluator({"min_points": 1})
    merged.merge(evaluator.state())
    assert merged.result().values == result.values


def test_points_that_a_sample_lacks_count_as_missed(folder: Path) -> None:
    dataset = dataset_of(folder)  # a range that leaves points out
    evaluator, sample = dataset.evaluator(), dataset[0]
    assert 0 < len(sample.points) < 300
    labels = np.asarray(sample.targets.point_labels)
    evaluator.add(sample, PointLabels(labels, np.ones(len(labels)), tuple(CLASSES)))
    counted = dataset_of(folder, point_cloud_range=[-100, -100, -9, 100, 100, 9])[0].targets.point_labels >= 0
    result = evaluator.result()
    assert result.accuracy() == pytest.approx((labels >= 0).sum() / counted.sum())
    assert result.panoptic is None
    with pytest.raises(ValueError, match=r"08_000000: .*points, but labels for 3"):
        evaluator.add(sample, PointLabels(labels[:3], np.ones(3), tuple(CLASSES)))
    with pytest.raises(ValueError, match="'boat', which is no class"):
        evaluator.add(sample, PointLabels(labels, np.ones(len(labels)), ("boat",)))


@pytest.mark.parametrize("number", [65543, -1])
def test_instances_that_a_label_file_cannot_hold_are_refused(folder: Path, number: int) -> None:
    dataset = dataset_of(folder)
    sample = dataset[0]
    labels = np.asarray(sample.targets.point_labels)
    instances = np.full(len(labels), 7)
    instances[0] = number
    with pytest.raises(ValueError, match=r"08_000000: instances must lie in \[0, 65536\)"):
        dataset.evaluator().add(sample, PointLabels(labels, np.ones(len(labels)), tuple(CLASSES), instances))


def test_preparation_names_the_label_files_with_unknown_ids(folder: Path) -> None:
    path = folder / "sequences/08/labels/000001.label"
    labels = np.fromfile(path, "<u4")
    labels[:5] = 77, 77, 78, 77, 77
    labels.tofile(path)
    source = SemanticKittiFrames(folder)
    prepare(source, ["train", "val"], progress=False)
    report = source.finish(folder / "pcdet_ext", ["train", "val"])
    assert f"{path}: unknown label id 77 (4 points), 78 (1 points)\n" in report
    assert report.count("unknown label id") == 1
    assert "data.ignored_ids" in report
    assert "unknown" not in source.finish(folder / "pcdet_ext", ["train"])
