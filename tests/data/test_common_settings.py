"""Settings of every format: thinning, class balance, velocities, squashed columns, what objects are cut from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.data.balance import balanced_counts, balanced_frames
from pcdet_ext.data.base import ConcatDataset, FrameDataset
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.data.objects import database_path, read_objects
from pcdet_ext.data.prepare import RawFrame, prepare
from pcdet_ext.evaluation.base import Evaluator
from pcdet_ext.files import DataError
from pcdet_ext.inference import Detector
from pcdet_ext.structures import Sample, Targets

COLUMNS = ("x", "y", "z", "intensity")
SPAN = [-50, -50, -5, 50, 50, 5]


def a_frame(number: int) -> Sample:
    """Two boxes that overlap by half, with four points: in the first, in both, in the second, and outside."""
    rng = np.random.default_rng(number)
    xyz = np.array([[-1.5, 0, 0], [0.5, 0, 0], [2.5, 0, 0], [9, 9, 0]])
    points = np.column_stack([xyz, rng.uniform(0, 3, 4)]).astype(np.float32)
    boxes = np.array([[0, 0, 0, 4, 2, 2, 0, np.nan, np.nan], [2, 0, 0, 4, 2, 2, 0, 3, -1]], np.float32)
    names = ("Car", "Bus") if number % 5 == 0 else ("Car", "Car")
    targets = Targets.of_names(boxes, names, num_points=np.array([7, number]))
    return Sample(points, COLUMNS, f"{number:03d}", targets, sequence_id=f"drive {number // 10}")


class StreetFrames:
    LAYOUT = ""

    def __init__(self, root: Path, exclusive: bool = False) -> None:
        self.root, self.exclusive = root, exclusive

    def find(self, split: str) -> Sequence[int]:
        return range(20)

    def read(self, frame: int) -> RawFrame:
        sample = a_frame(frame)
        older = np.column_stack([sample.points, np.zeros(4)]), np.column_stack([sample.points, np.full(4, 0.1)])
        return RawFrame(
            sample,
            {"number": frame},
            object_points=np.concatenate(older).astype(np.float32),
            object_features=(*COLUMNS, "timestamp"),
            cut=np.array([True, frame % 2 == 0]),
            exclusive=self.exclusive,
        )


@dataclass(kw_only=True, eq=False, repr=False)
class StreetDataset(FrameDataset):
    POINT_FEATURES: ClassVar[tuple[str, ...]] = COLUMNS

    def read(self, info: FrameInfo) -> Sample:
        return a_frame(info.extra["number"]).replace(targets=info.targets())

    def evaluator(self, options: Mapping[str, Any] | None = None) -> Evaluator:
        raise ConfigError("none")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    prepare(StreetFrames(folder), splits=["train"], progress=False)
    return folder


def street(root: Path, **options: Any) -> StreetDataset:
    return StreetDataset(root=root, **{"classes": ["Car", "Bus"], "point_cloud_range": SPAN, **options})


def test_every_so_many_th_frame_is_kept(root: Path) -> None:
    thinned = street(root, interval=3)
    assert [thinned[i].frame_id for i in range(len(thinned))] == [f"{i:03d}" for i in range(0, 20, 3)]
    earlier = thinned.previous(thinned.frames[5], 9)  # of frame 15: all frames of its sequence count
    assert [info.frame_id for info in earlier] == ["014", "013", "012", "011", "010"]
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        street(root, interval=0)


def test_class_balance_draws_frames_of_rare_classes_more_often(root: Path) -> None:
    assert balanced_counts([20, 4]) == [int(20 * (0.5 / (20 / 24))), int(4 * (0.5 / (4 / 24)))]
    assert balanced_counts([10, 0]) == [10, 0]
    balanced = street(root, balanced=True, training=True)
    with_bus = sum("Bus" in info.names for info in balanced.frames)
    assert len(balanced) == sum(balanced_counts([20, 4]))
    assert with_bus >= balanced_counts([20, 4])[1]
    same = street(root, balanced=True, training=True)
    assert balanced.frames.frame_ids == same.frames.frame_ids
    assert len(street(root, balanced=True)) == 20  # not in testing
    with pytest.raises(ValueError, match="no frame holds an object"):
        balanced_frames([np.zeros(0, np.int64)], np.random.default_rng(0))


def test_weights_decide_how_often_a_frame_is_drawn(root: Path, tmp_path: Path) -> None:
    """Every fifth frame holds a bus, which is drawn three times as often; frame 001 ten times, frame 002 never."""
    file = tmp_path / "weights.txt"
    file.write_text("001 10\n\n002  0.0\nnot of this split 4\n")
    weighted = street(root, training=True, class_weights={"Bus": 3}, frame_weights=file, repeat=2)
    expected = np.array([3.0 if number % 5 == 0 else 1.0 for number in range(20)])
    expected[1:3] = 10, 0
    np.testing.assert_array_equal(weighted.weights, np.tile(expected, 2))
    rng = np.random.default_rng(0)
    orders = [weighted.epoch_order(rng) for _ in range(500)]
    assert {len(order) for order in orders} == {len(weighted)} == {40}
    shares = np.bincount(np.concatenate(orders) % 20, minlength=20) / (500 * 40)
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.01)
    assert street(root, class_weights={"Bus": 3}).weights is None  # not in testing
    joined = ConcatDataset([weighted, street(root, training=True)])
    share = np.mean([np.mean(joined.epoch_order(rng) < 40) for _ in range(500)])
    assert share == pytest.approx(2 * expected.sum() / (2 * expected.sum() + 20), abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": {"Bsu": 2}}, "class_weights: 'Bsu' is none of the classes; did you mean 'Bus'"),
        ({"class_weights": {"Bus": -1}}, "the weight of 'Bus' must be at least 0, got -1"),
        ({"class_weights": {"Bus": 0, "Car": 0}}, "all frames have the weight 0"),
        ({"class_weights": {"Bus": 2}, "balanced": True}, "cannot be used together with balanced"),
        (
            {"frame_weights": "001 x"},
            "weights.txt:1: must be the id of a frame and a weight of at least 0, got",
        ),
        ({"frame_weights": "001 nan"}, "weights.txt:1: must be the id of a frame and a weight"),
        ({"frame_weights": "001 1\n001 2"}, "weights.txt:2: the frame '001' has a weight already"),
        ({"frame_weights": "901 1"}, "weights.txt: names none of the frames, as '000'"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(
    root: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    file = tmp_path / "weights.txt"
    if "frame_weights" in options:
        file.write_text(options["frame_weights"])
        options = options | {"frame_weights": file}
    with pytest.raises((ConfigError, DataError), match=re.escape(message)):
        street(root, training=True, **options)


def test_velocities_that_are_not_known_are_zero_or_all_are_cut(root: Path) -> None:
    moving = [{"name": "RandomFlip", "axes": ["x", "y"], "probability": 1.0}, {"name": "RandomScaling"}]
    sample = street(root, training=True, augment=moving)[0]
    boxes = sample.targets.boxes
    assert boxes[0, 7:].tolist() == [0, 0]
    factor = boxes[1, 3] / 4
    np.testing.assert_allclose(boxes[1, 7:], [-3 * factor, factor], rtol=1e-6)
    assert street(root, velocity=False)[0].targets.boxes.shape == (2, 7)


def test_the_labels_own_counts_of_points_come_first(root: Path) -> None:
    assert street(root)[3].targets.num_points.tolist() == [7, 3]
    assert len(street(root, min_points=5)[3].targets) == 1


def test_columns_are_squashed_alike_in_training_and_detection(root: Path) -> None:
    plain, squashed = street(root)[1], street(root, tanh=["intensity"])[1]
    np.testing.assert_allclose(squashed.points[:, 3], np.tanh(plain.points[:, 3]), rtol=1e-6)
    np.testing.assert_array_equal(squashed.points[:, :3], plain.points[:, :3])
    for wrong in ("x", "intensty"):
        with pytest.raises(ValueError, match=f"tanh: '{wrong}' is none of intensity"):
            street(root, tanh=[wrong])


def test_a_detector_squashes_what_its_data_set_squashes() -> None:
    settings = config.load("kitti/demo", ["data.tanh=[intensity]"])
    detector = Detector(settings, "cpu")
    seen: list[torch.Tensor] = []
    detector.model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].points))
    points = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) * 5
    kept = points.clone()
    detector.detect(points)
    assert torch.equal(points, kept)
    torch.testing.assert_close(seen[0][:, 3].sort().values, points[:, 3].tanh().sort().values)


@pytest.mark.parametrize("exclusive", [False, True])
def test_objects_are_cut_from_what_the_format_gives(tmp_path: Path, exclusive: bool) -> None:
    prepare(StreetFrames(tmp_path, exclusive), splits=["train"], progress=False)
    objects = read_objects(database_path(tmp_path / "pcdet_ext", "train"))
    assert {name: len(found) for name, found in objects.items()} == {"Car": 28, "Bus": 2}
    bus = objects["Bus"]
    assert bus.point_features == (*COLUMNS, "timestamp")
    # Two sweeps of the points of the second box; the one in both boxes is the first box's where points have one owner.
    assert bus.num_points.tolist() == ([2, 2] if exclusive else [4, 4])
    assert sorted(set(bus.points[:, 4].tolist())) == [0.0, np.float32(0.1)]


@pytest.mark.parametrize(
    ("time_range", "timed", "kept"),
    [(None, False, 1), (None, True, 2), ([0.1, 0.0], True, 2), ([0.0, 0.0], True, 1), ([0.1, 0.1], False, 1)],
)
def test_points_of_pasted_objects_are_of_the_wanted_age(
    tmp_path: Path, time_range: list[float] | None, timed: bool, kept: int
) -> None:
    prepare(StreetFrames(tmp_path, exclusive=True), splits=["train"], progress=False)
    step = {"name": "GroundTruthSampling", "groups": {"Bus": 1}, "min_points": 0, "time_range": time_range}
    dataset = street(tmp_path, training=True, augment=[step])
    (sampling,) = dataset.augmentations
    scene = a_frame(1)
    points = np.column_stack([scene.points, np.zeros(4, np.float32)]) if timed else scene.points
    columns = (*COLUMNS, "timestamp") if timed else COLUMNS
    far = scene.replace(
        points=points[3:], point_features=columns, targets=Targets.of_names(np.zeros((0, 9), np.float32), ())
    )
    pasted = sampling(far, np.random.default_rng(0))
    assert len(pasted.targets) == 1
    assert len(pasted.points) == 1 + kept
