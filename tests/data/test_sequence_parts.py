"""Recordings in parts: every frame once, in the order of time, augmented in one way, with poses that go along."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.config import ConfigError
from pcdet_ext.data.augment.steps import flip, rotate, scale, translate
from pcdet_ext.data.base import ConcatDataset, FrameDataset, collate
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.data.prepare import RawFrame, prepare
from pcdet_ext.data.sequences import SequenceOptions, SequenceParts
from pcdet_ext.engine.loader import EpochBatches
from pcdet_ext.engine.trainer import _order
from pcdet_ext.structures import Sample, Targets

COLUMNS = ("x", "y", "z")
CORNERS = np.array([[5.0, 3.0, 1.0], [-4.0, 2.0, 0.0], [1.0, -6.0, 0.5], [9.0, 9.0, -1.0]], np.float32)
MOVES = [
    {"name": "RandomFlip", "axes": ["x", "y"]},
    {"name": "RandomRotation"},
    {"name": "RandomScaling", "scale_range": [0.8, 1.2]},
    {"name": "RandomTranslation"},
]


class Walks:
    """Three recordings of 7, 4 and 1 frames; every frame has the same points, and every third no box."""

    LAYOUT = "walks"

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, split: str) -> list[int]:
        return list(range(12))

    def read(self, frame: int) -> RawFrame:
        return RawFrame(read_frame(frame), {"number": frame})


def read_frame(number: int) -> Sample:
    boxes = np.array([[0.0, 0, 0, 4, 2, 1.5, 0.3]], np.float32)[: int(number % 3 != 2)]
    pose = np.eye(4)
    pose[:2, 3] = number, -number
    name = "first" if number < 7 else "second" if number < 11 else ""
    targets = Targets.of_names(boxes, ["car"] * len(boxes))
    return Sample(CORNERS.copy(), COLUMNS, f"{number:02d}", targets, name, None, pose, number / 2)


@dataclass(kw_only=True, eq=False, repr=False)
class WalkDataset(FrameDataset):
    """The frames, as a format would read them."""

    LAYOUT: ClassVar[str] = "walks"
    POINT_FEATURES: ClassVar[tuple[str, ...]] = COLUMNS

    def read(self, info: FrameInfo) -> Sample:
        return read_frame(info.extra["number"])

    def evaluator(self, options: Any = None) -> Any:
        raise ConfigError("these frames have no metric")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walks")
    prepare(Walks(folder), splits=["train"], progress=False)
    return folder


def dataset(root: Path, **changes: Any) -> WalkDataset:
    arguments: dict[str, Any] = {"training": True, "sequences": {"parts": 2, "reverse": 0.5}, "augment": MOVES}
    return WalkDataset(root=root, classes=["car"], point_cloud_range=[-40, -40, -40, 40, 40, 40], **arguments | changes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_lanes_go_through_parts_in_time(lengths: list[int], count: int, reverse: float, lanes: int, seed: int) -> None:
    names = [f"recording {i}" for i, length in enumerate(lengths) for _ in range(length)]
    parts = SequenceParts(names, SequenceOptions(parts=count, reverse=reverse))
    for length, name in zip(lengths, dict.fromkeys(names), strict=True):
        own = [part for part in parts.parts if names[part[0]] == name]
        assert len(own) <= count
        assert {len(part) for part in own[:-1]} <= {-(-length // count)}
        assert np.concatenate(own).tolist() == [i for i, other in enumerate(names) if other == name]
    order = parts.order(np.random.default_rng(seed), lanes)
    assert len(order) == -(-len(names) // lanes) * lanes
    walked = order.reshape(-1, lanes).T.reshape(-1)[: len(names)]
    assert sorted(walked.tolist()) == list(range(len(names)))
    steps = np.diff(walked)[parts.part_of[walked[1:]] == parts.part_of[walked[:-1]]]
    assert set(steps.tolist()) <= ({1} if reverse == 0 else {-1} if reverse == 1 else {-1, 1})


def test_frames_without_a_name_are_recordings_of_their_own() -> None:
    parts = SequenceParts(["", "", "a", "a"], SequenceOptions(parts=1))
    assert [part.tolist() for part in parts.parts] == [[0], [1], [2, 3]]


def test_processes_and_accumulated_batches_are_lanes(root: Path) -> None:
    """Whatever makes a step, each place of a process's batches goes on with the same recording."""
    data = dataset(root, sequences={"parts": 1, "reverse": 0.0})
    for processes, accumulate in ((1, 1), (2, 1), (1, 3), (2, 3)):
        for rank in range(processes):
            order = _order(data, 2 * processes)
            batches = list(EpochBatches(len(data), 2, 0, rank, processes, order, accumulate))
            for place in range(2):
                frames = [batch[place][1] for batch in batches]
                breaks = sum(b - a != 1 for a, b in itertools.pairwise(frames))
                assert breaks <= 3  # the ends of recordings, and of the epoch
    shuffled = dataset(root, sequences=None)
    assert _order(shuffled, 2) == shuffled.epoch_order


def test_a_part_is_augmented_in_one_way_and_keeps_its_place_in_the_world(root: Path) -> None:
    data = dataset(root)
    assert data.sequence_parts is not None
    data.set_epoch(3)
    seen = {}
    for part in data.sequence_parts.parts:
        samples = [data[int(i)] for i in part]
        assert [sample.frame_id for sample in samples] == [f"{i:02d}" for i in part]  # without boxes too
        for number, sample in zip(part, samples, strict=True):
            np.testing.assert_array_equal(sample.points, samples[0].points)
            assert sample.pose is not None
            world = sample.points @ sample.pose[:3, :3].T + sample.pose[:3, 3]
            np.testing.assert_allclose(world, CORNERS + [number, -number, 0], atol=1e-4)
        seen[tuple(samples[0].points.ravel())] = part
    assert len(seen) == len(data.sequence_parts.parts)  # and parts differ
    data.set_epoch(4)
    assert tuple(data[0].points.ravel()) not in seen
    context = collate([data[0], data[7]], data.classes).context
    assert context is not None
    assert context.sequence_ids == ("first", "second")
    assert context.timestamps.tolist() == [0.0, 3.5]
    np.testing.assert_array_equal(context.poses[1], data[7].pose)


@pytest.mark.parametrize(
    "move",
    [
        lambda s: flip(s, "x"),
        lambda s: flip(s, "y"),
        lambda s: rotate(s, 0.7),
        lambda s: scale(s, 1.3),
        lambda s: translate(s, (1.0, -2.0, 0.5)),
    ],
)
def test_poses_undo_what_moves_a_scene(move: Any) -> None:
    sample = read_frame(3)
    moved = move(sample)
    assert not np.allclose(moved.points, sample.points)
    np.testing.assert_allclose(
        moved.points @ moved.pose[:3, :3].T + moved.pose[:3, 3],
        sample.points @ sample.pose[:3, :3].T + sample.pose[:3, 3],
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequences": {"parts": 0}}, "parts must be at least 1"),
        ({"sequences": {"reverse": 1.5}}, "reverse must be in"),
        ({"sequences": {"part": 3}}, "no such key.*did you mean 'parts'"),
        ({"balanced": True}, "data.balanced"),
        ({"augment": [{"name": "GroundTruthSampling", "groups": {"car": 1}}]}, "in one frame alone"),
    ],
)
def test_what_does_not_go_with_sequences_is_refused(root: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset(root, **changes)


def test_sequences_are_for_training_on_one_data_set(root: Path) -> None:
    assert dataset(root, training=False, augment=()).sequence_parts is None
    with pytest.raises(ValueError, match="train on one data set"):
        ConcatDataset([dataset(root)])
    with pytest.raises(ValueError, match="not gone through in sequences"):
        dataset(root, sequences=None).walk_order(np.random.default_rng(0), 2)
