"""What all formats share, tried with a made-up format: velocities, tracks, sequences, further columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from pcdet_ext.config import ConfigError, Node
from pcdet_ext.data.base import ConcatDataset, FrameDataset, collate
from pcdet_ext.data.formats import point_features
from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.data.index import FrameInfo, index_path, read_index, write_index
from pcdet_ext.data.objects import database_path, read_objects
from pcdet_ext.data.prepare import RawFrame, prepare
from pcdet_ext.engine.testing import skipped_frames
from pcdet_ext.evaluation.base import Evaluator, Plot, Result
from pcdet_ext.files import DataError
from pcdet_ext.structures import Sample, Targets

COLUMNS = ("x", "y", "z", "intensity", "elongation", "timestamp", "ring")
SPAN = [-60, -60, -5, 60, 60, 3]


def read_scene(root: Path, number: int) -> Sample:
    """Frame `number` of a sequence: buses and bikes that drive, with 40 points in each; every third frame is empty."""
    rng = np.random.default_rng(number)
    count = 0 if number % 3 == 2 else 4
    boxes = np.column_stack(
        [
            rng.permutation(8)[:count] * 12.0 - 45 + rng.uniform(-1, 1, count),
            rng.uniform(-30, 30, count),
            np.full(count, -1.0),
            np.tile([4.0, 2.0, 1.5], (count, 1)),
            rng.uniform(-3, 3, (count, 3)),
        ]
    ).astype(np.float32)
    inside = (boxes[:, None, :3] + rng.uniform(-0.5, 0.5, (count, 40, 3))).reshape(-1, 3)
    around = rng.uniform([-50, -50, -3], [50, 50, -2], (300, 3))
    xyz = np.concatenate([inside, around])
    points = np.column_stack([xyz, rng.random((len(xyz), 4))]).astype(np.float32)
    points[-1, 4] = np.nan
    names = ("Bus", "Bike", "Bus", "Bike")[:count]
    targets = Targets.of_names(boxes, names, track_ids=np.arange(count) + 100)
    pose = np.eye(4)
    pose[0, 3] = number
    return Sample(points, COLUMNS, f"{number:03d}", targets, "drive", None, pose, number / 10)


class DriveFrames:
    """Six frames of one sequence."""

    LAYOUT = "drive"

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, split: str) -> Sequence[int]:
        return range(6)

    def read(self, frame: int) -> RawFrame:
        return RawFrame(read_scene(self.root, frame), {"number": frame}, notes=("made up",))


@dataclass(kw_only=True, eq=False, repr=False)
class DriveDataset(FrameDataset):
    """The frames, as a format would read them."""

    point_labels: bool = False

    LAYOUT: ClassVar[str] = "drive"
    POINT_FEATURES: ClassVar[tuple[str, ...]] = COLUMNS

    def read(self, info: FrameInfo) -> Sample:
        sample = read_scene(Path(self.root), info.extra["number"])
        self.check_points(sample.points, info, Path(self.root))
        targets = info.targets()
        if self.point_labels:
            labels = np.arange(len(sample.points))
            targets = targets.replace(point_labels=labels)
        pose = np.array(info.pose)
        return sample.replace(targets=targets, sequence_id=info.sequence_id, pose=pose, timestamp=info.timestamp)

    def evaluator(self, options: Mapping[str, Any] | None = None) -> Evaluator:
        raise ConfigError("none")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drive")
    prepare(DriveFrames(folder), splits=["train"], progress=False)
    return folder


def drive(root: Path, **options: Any) -> DriveDataset:
    return DriveDataset(root=str(root), **{"classes": ["Bike", "Bus"], "point_cloud_range": SPAN, **options})


def test_the_index_keeps_all_that_is_known_of_a_frame(root: Path) -> None:
    for number, info in enumerate(read_index(index_path(root / "pcdet_ext", "train"))):
        sample = read_scene(root, number)
        targets = info.targets()
        np.testing.assert_array_equal(targets.boxes, sample.targets.boxes)
        assert targets.boxes.shape[1] == 9
        assert targets.names == sample.targets.names
        np.testing.assert_array_equal(targets.track_ids, sample.targets.track_ids)
        assert (targets.num_points >= 40).all()
        assert (info.sequence_id, info.timestamp, info.dropped) == ("drive", number / 10, 1)
        np.testing.assert_array_equal(info.pose, sample.pose)


def test_the_database_has_the_columns_of_points_and_boxes(root: Path) -> None:
    objects = read_objects(database_path(root / "pcdet_ext", "train"))
    assert {name: (len(found), found.boxes.shape[1]) for name, found in objects.items()} == {
        "Bike": (8, 9),
        "Bus": (8, 9),
    }
    assert objects["Bus"].points.shape[1] == len(COLUMNS)


def test_samples_have_the_wanted_columns_and_all_that_is_known(root: Path) -> None:
    wanted = ["x", "y", "z", "timestamp", "intensity"]
    dataset = drive(root, point_features=wanted)
    sample, raw = dataset[1], read_scene(root, 1)
    assert sample.point_features == tuple(wanted)
    order = [COLUMNS.index(name) for name in wanted]
    finite = np.isfinite(raw.points).all(axis=1)
    np.testing.assert_array_equal(sample.points, raw.points[finite][:, order])
    assert sample.targets.class_names == ("Bike", "Bus")
    assert (sample.sequence_id, sample.timestamp, sample.pose[0, 3]) == ("drive", 0.1, 1.0)
    assert dataset.counts["points not finite"] == 1
    batch = collate([dataset[0], dataset[2]], dataset.classes)
    assert batch.targets[1].boxes.shape == (0, 9)
    assert batch.targets[0].track_ids.tolist() == [100, 101, 102, 103]
    assert batch.targets[0].labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(
        ValueError, match=r"point_features must be among the columns.*'rings' is not; did you mean 'ring'"
    ):
        drive(root, point_features=["x", "y", "z", "rings"])


def test_training_moves_velocities_and_pastes_moving_objects(root: Path) -> None:
    augment = [
        {"name": "GroundTruthSampling", "groups": {"Bus": 4, "Bike": 4}},
        {"name": "RandomFlip", "axes": ["x", "y"]},
        {"name": "RandomRotation"},
        {"name": "RandomScaling"},
        {"name": "PointShuffle"},
    ]
    dataset = drive(root, training=True, augment=augment, point_labels=True)
    pasted = 0
    for index in range(6):
        sample = dataset[index]
        targets = sample.targets
        assert targets.boxes.shape[1] == 9
        inside = inside_boxes(sample.points, targets.boxes)
        assert (inside.sum(axis=1) >= 30).all()
        assert np.isfinite(sample.points).all()
        assert len(targets.point_labels) == len(sample.points)
        new = targets.track_ids == -1
        pasted += int(new.sum())
        if new.any():  # points of pasted objects have no label, those of the frame keep theirs
            assert (targets.point_labels[inside[new].any(axis=0)] == -1).all()
        own = targets.point_labels[targets.point_labels >= 0]
        assert len(set(own.tolist())) == len(own)
    assert pasted > 5


def test_a_database_of_other_columns_is_refused(root: Path) -> None:
    dataset = drive(root, training=True, augment=[{"name": "GroundTruthSampling", "groups": {"Bus": 4}}])
    (sampling,) = dataset.augmentations
    sample = dataset.read(dataset.frames[0])
    narrow = sample.replace(points=sample.points[:, :4], point_features=COLUMNS[:4])
    assert sampling(narrow, np.random.default_rng(0)).points.shape[1] == 4  # columns are taken by name
    other = sample.replace(point_features=(*COLUMNS[:-1], "humidity"))
    with pytest.raises(DataError, match="the object database has no humidity of points, only x, y, z"):
        sampling(other, np.random.default_rng(0))
    flat = Targets.of_names(sample.targets.boxes[:, :7], sample.targets.names)
    pasted = sampling(sample.replace(targets=flat), np.random.default_rng(0)).targets
    assert len(pasted) > len(flat)
    assert pasted.boxes.shape[1] == 7  # velocities of objects are left out where the scene has none
    found = sampling.objects["Bus"]
    sampling.objects["Bus"] = dataclasses.replace(found, boxes=found.boxes[:, :7])
    with pytest.raises(DataError, match="boxes of 7 columns, the frames of 9"):
        sampling(sample, np.random.default_rng(0))


@dataclass(kw_only=True, eq=False, repr=False)
class BlindDataset(DriveDataset):
    """Frame 0 has no point with a finite value, and frame 1 no point at all."""

    def read(self, info: FrameInfo) -> Sample:
        sample = super().read(info)
        if info.frame_id == "000":
            return sample.replace(points=np.full_like(sample.points, np.nan))
        return sample.replace(points=sample.points[:0]) if info.frame_id == "001" else sample


def test_frames_without_points_are_counted_and_not_trained_on(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"root": str(root), "classes": ["Bike", "Bus"], "point_cloud_range": SPAN}
    test = BlindDataset(**options)
    assert [len(test[i].points) > 0 for i in range(3)] == [False, False, True]
    assert test.counts["frames without a finite point"] == 1
    assert "frame 000 has no point that is finite" in caplog.text
    training = BlindDataset(**options, training=True)
    samples = [training[i] for i in range(6)]
    assert {sample.frame_id for sample in samples} == {"003", "004"}  # 002 and 005 have no box
    assert all(len(sample.points) for sample in samples)


def test_every_sample_is_processed_in_the_end(root: Path) -> None:
    options = {"process": [{"name": "PointSampling", "number": 50}, {"name": "PointShuffle"}]}
    test, training = drive(root, **options), drive(root, training=True, **options)
    assert [len(test[i].points) for i in (0, 2)] == [50, 50]
    np.testing.assert_array_equal(test[0].points, drive(root, **options)[0].points)  # the same in every process
    assert not np.array_equal(test[0].points, drive(root, seed=1, **options)[0].points)
    assert len(training[0].points) == 50


def test_augmentations_can_be_disabled(root: Path) -> None:
    augment = [{"name": "RandomFlip"}, {"name": "RandomScaling"}, {"name": "PointShuffle"}]
    dataset = drive(root, training=True, augment=augment, disable_augmentations=["RandomScaling"])
    assert [type(step).__name__ for step in dataset.augmentations] == ["RandomFlip", "PointShuffle"]
    with pytest.raises(ConfigError, match="augment has no 'RandomScalling'; did you mean 'RandomScaling'"):
        drive(root, training=True, augment=augment, disable_augmentations=["RandomScalling"])


def test_scenes_with_maps_cannot_be_moved(root: Path) -> None:
    dataset = drive(root, training=True, augment=[{"name": "RandomScaling"}])
    sample = dataset.read(dataset.frames[0])
    mapped = sample.replace(targets=sample.targets.replace(maps={"road": np.zeros((4, 4))}))
    with pytest.raises(ValueError, match=r"dense maps \(road\) cannot be moved"):
        dataset.augmentations[0](mapped, np.random.default_rng(0))


def test_batches_do_not_depend_on_torchs_defaults(root: Path) -> None:
    dataset = drive(root)
    samples = [dataset[0], dataset[2]]
    expected = collate(samples, dataset.classes)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            batch = collate(samples, dataset.classes)
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(batch.targets, expected.targets, strict=True):
        for name in ("boxes", "labels", "track_ids", "num_points"):
            value = getattr(ours, name)
            assert (value.device.type, value.dtype) == ("cpu", getattr(theirs, name).dtype)
            assert torch.equal(value, getattr(theirs, name))
    assert torch.equal(batch.points, expected.points)
    assert torch.equal(batch.batch_index, expected.batch_index)


def test_boxes_of_other_classes_do_not_pass_into_a_batch(root: Path) -> None:
    dataset = drive(root)
    with pytest.raises(ValueError, match="frame '000' has boxes of Bus, not one of Bike"):
        collate([dataset[0]], ["Bike"])
    other = drive(root, point_features=["x", "y", "z"])
    with pytest.raises(ValueError, match="different columns in one batch"):
        collate([dataset[0], other[0]], dataset.classes)


def test_joined_data_sets_agree_and_have_no_common_metric(root: Path) -> None:
    joined = ConcatDataset([drive(root), drive(root)])
    assert len(joined.frames) == len(joined) == 12
    with pytest.raises(ConfigError, match="several sources have no common metric"):
        joined.evaluator()
    with pytest.raises(ValueError, match="classes differ"):
        ConcatDataset([drive(root), drive(root, classes=["Bus"])])


def test_preparation_says_what_it_had_nothing_to_do_with(root: Path, tmp_path: Path) -> None:
    class Broken(DriveFrames):
        def read(self, frame: int) -> RawFrame:
            raise DataError(f"frame {frame} is damaged")

    with pytest.raises(DataError, match="no frame of split 'train' could be read: frame 0 is damaged"):
        prepare(Broken(tmp_path), splits=["train"], on_error="skip", progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="database 'train' is not one of the splits val"):
        prepare(DriveFrames(tmp_path), splits=["val"], database=["train"], progress=False)
    prepare(DriveFrames(tmp_path), splits=["val"], progress=False)
    assert [p.name for p in (tmp_path / "pcdet_ext").iterdir()] == ["index_val.parquet"]
    write_index(index_path(tmp_path / "pcdet_ext", "val"), [], "drive")
    with pytest.raises(DataError, match=r"index_val\.parquet: holds no frame"):
        drive(tmp_path, split="val")


def test_skipped_frames_are_counted_once_for_all_sources_and_passes(root: Path) -> None:
    class Damaged(DriveDataset):
        def read(self, info: FrameInfo) -> Sample:
            if info.extra["number"] % 3 == 1:
                raise DataError(f"{info.frame_id} is damaged")
            return super().read(info)

    options = {"root": str(root), "classes": ["Bike", "Bus"], "point_cloud_range": SPAN, "on_error": "skip"}
    part = Damaged(**options, training=True, balanced=True, repeat=2)
    joined = ConcatDataset([part, Damaged(**options)])
    assert skipped_frames([joined]) == ""
    for epoch in range(2):
        joined.set_epoch(epoch)
        assert "001" not in {joined[i].frame_id for i in range(len(part))}  # in training another frame takes its place
        assert len([joined[i] for i in range(len(part), len(joined))]) == 6
    assert set(joined.parts[1].skipped) == {"001", "004"}
    drawn = {info.frame_id for info in part.frames}
    assert set(part.skipped) == drawn & {"001", "004"}
    skipped = 2 + len(part.skipped)
    assert skipped_frames([joined]) == f"{skipped} of {6 + len(drawn)} frames are damaged and were skipped"
    assert skipped_frames([joined.parts[1]]) == "2 of 6 frames are damaged and were skipped"


def test_a_folder_prepared_from_another_layout_is_refused(root: Path) -> None:
    @dataclass(kw_only=True, eq=False, repr=False)
    class OtherDataset(DriveDataset):
        LAYOUT: ClassVar[str] = "other"

    options = {"root": str(root), "classes": ["Bus"], "point_cloud_range": SPAN}
    with pytest.raises(DataError, match=r"index_train\.parquet: prepared as drive data, read as OtherDataset"):
        OtherDataset(**options)
    database = database_path(root / "pcdet_ext", "train")
    assert set(read_objects(database, "drive")) == {"Bike", "Bus"}
    step = {"name": "GroundTruthSampling", "groups": {"Bus": 1}, "layout": "other"}
    with pytest.raises(DataError, match=r"database_train: prepared as drive data, used for other data"):
        drive(root, training=True, augment=[step])


@pytest.mark.parametrize(
    ("data", "columns"),
    [
        ({"point_features": ["x", "y", "z"]}, ("x", "y", "z")),
        ({"name": "KittiDataset"}, ("x", "y", "z", "intensity")),
        ({"name": "WaymoDataset"}, ("x", "y", "z", "intensity", "elongation")),
        ({"name": "OnceDataset"}, ("x", "y", "z", "intensity")),
        ({}, ("x", "y", "z", "intensity")),
    ],
)
def test_the_columns_of_a_model_are_those_of_its_data(data: dict, columns: tuple[str, ...]) -> None:
    assert point_features(Node(data)) == columns


def test_a_plain_result_shows_its_values() -> None:
    result = Result(0.25, {"mAP": 0.25, "NDS": 0.5})
    assert result.table() == "mAP: 0.25\nNDS: 0.5"
    assert result.to_json() == {"score": 0.25, "values": {"mAP": 0.25, "NDS": 0.5}}
    assert not result.plots()
    assert Plot("p", "x", "y", {}).name == "p"


def test_epochs_differ_and_repeat(root: Path) -> None:
    dataset = drive(root, training=True, augment=[{"name": "RandomRotation"}])
    first = dataset[0].points
    dataset.set_epoch(1)
    assert not np.array_equal(first, dataset[0].points)
    dataset.set_epoch(0)
    np.testing.assert_array_equal(first, dataset[0].points)
    assert torch.from_numpy(first).dtype == torch.float32
