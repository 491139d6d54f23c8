"""Frames of a test that several processes share: a detector over time finds what it finds in one process."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcdet_ext.data.index import FrameInfo, FrameTable, write_index
from pcdet_ext.engine.sharing import share_of_frames
from pcdet_ext.engine.testing import EvalConfig, predict
from pcdet_ext.structures import Detections, PointBatch, Sample

NAMES = ("a", "a", "a", "b", "b", "a", "c", "c", "c", "c")  # a recording may come again


class Recordings:
    """Frames of several recordings, half a second apart in each."""

    measures = Detections

    def __init__(self, names: tuple[str, ...], repeat: int = 1) -> None:
        self.names, self.repeat = names, repeat
        self.frames = [SimpleNamespace(sequence_id=name) for name in names]

    def __len__(self) -> int:
        return len(self.names) * self.repeat

    def __getitem__(self, index: int) -> Sample:
        points = np.random.default_rng(index).uniform([-8, -8, -4, 0], [8, 8, 4, 1], (60, 4)).astype(np.float32)
        columns = ("x", "y", "z", "intensity")
        name = self.names[index % len(self.names)]
        return Sample(points, columns, str(index), sequence_id=name, pose=np.eye(4), timestamp=0.5 * index)


class Found:
    """An evaluator that keeps what was found."""

    def __init__(self) -> None:
        self.boxes: dict[Any, np.ndarray] = {}

    def add(self, sample: Sample, predictions: Detections) -> None:
        assert sample.frame_id not in self.boxes
        self.boxes[sample.frame_id] = np.column_stack([predictions.boxes, predictions.scores])


class Remembering:
    """A detector whose only box lies where the points of a recording were in the mean, those of late counting more.

    It knows a recording again by its name alone, so that it notices when frames in between are left out.
    """

    remembers, classes, device = True, ("Car",), torch.device("cpu")

    def predict_and_memory(self, batch: PointBatch, memory: Any) -> tuple[list[Detections], Any]:
        assert batch.context is not None
        (name,), place = batch.context.sequence_ids, batch.points[:, :3].mean(0)
        if memory is not None and memory[0] == name:
            place = 0.5 * place + 0.5 * memory[1]
        box = torch.cat([place, torch.ones(4)])[None]
        return [Detections(box, torch.ones(1), torch.zeros(1, dtype=torch.int64), self.classes)], (name, place)


@pytest.mark.parametrize("repeat", [1, 2])
def test_two_shares_find_what_one_process_finds(repeat: int) -> None:
    detector: Any = Remembering()
    data: Any = Recordings(NAMES, repeat)
    whole, shared, alone = (cast("Any", Found()) for _ in range(3))
    options = EvalConfig(num_workers=0)
    assert predict(detector, data, whole, options, silent=True)
    for rank in range(2):
        indices = share_of_frames(data, detector.remembers, rank, 2)
        assert predict(detector, data, shared, options, indices, silent=True)
    assert len(whole.boxes) == len(data)
    assert whole.boxes.keys() == shared.boxes.keys()
    for name, boxes in whole.boxes.items():
        np.testing.assert_array_equal(boxes, shared.boxes[name])
    for rank in range(2):  # and frame by frame it would not
        predict(detector, data, alone, options, share_of_frames(data, False, rank, 2), silent=True)
    assert any(not np.array_equal(boxes, alone.boxes[name]) for name, boxes in whole.boxes.items())


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_every_frame_is_tested_once(names: list[str], processes: int, repeat: int, whole: bool) -> None:
    data: Any = Recordings(tuple(names), repeat)
    shares = [list(share_of_frames(data, whole, rank, processes)) for rank in range(processes)]
    assert sorted(chain.from_iterable(shares)) == list(range(len(data)))
    assert all(share == sorted(share) for share in shares)
    if whole:
        owner = {index: rank for rank, share in enumerate(shares) for index in share}
        all_names = names * repeat
        assert all(owner[i] == owner[i - 1] for i in range(1, len(data)) if all_names[i] == all_names[i - 1])


def test_recordings_are_those_of_the_index(tmp_path: Path) -> None:
    write_index(tmp_path / "index.parquet", [FrameInfo(str(i), 1, 0, name) for i, name in enumerate(NAMES)])
    data: Any = Recordings(NAMES)
    in_memory = [list(share_of_frames(data, True, rank, 3)) for rank in range(3)]
    assert in_memory == [[0, 1, 2], [3, 4], [5, 6, 7, 8, 9]]
    data.frames = FrameTable(tmp_path / "index.parquet")
    assert [list(share_of_frames(data, True, rank, 3)) for rank in range(3)] == in_memory
