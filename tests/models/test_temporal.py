"""Memory of voxels over frames: against plain loops, its limits, and in a whole detector."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext import config
from pcdet_ext.config import ConfigError, Node
from pcdet_ext.engine.loss_step import LossStep, Wrapped
from pcdet_ext.inference import Detector
from pcdet_ext.models.detector import VoxelDetector
from pcdet_ext.models.temporal import SequenceMemory, VoxelFusion
from pcdet_ext.scenes import FrameContext
from pcdet_ext.structures import PointBatch, SparseVoxels, Targets

GRID, LOW, SIZE = (4, 8, 10), (-5.0, -4.0, -1.0), (1.0, 1.0, 0.5)


def fusion(**options: object) -> VoxelFusion:
    torch.manual_seed(0)
    return VoxelFusion(3, (*LOW, 5.0, 4.0, 1.0), SIZE, GRID, **options)


def pose(yaw: float, x: float, y: float) -> torch.Tensor:
    found = torch.eye(4, dtype=torch.float64)
    found[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    found[:2, 3] = torch.tensor([x, y])
    return found


def voxels(seed: int, counts: tuple[int, ...] = (6,)) -> SparseVoxels:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for frame, count in enumerate(counts):
        cell = torch.randperm(math.prod(GRID), generator=generator)[:count]
        z, y, x = cell // (GRID[1] * GRID[2]), cell // GRID[2] % GRID[1], cell % GRID[2]
        rows.append(torch.stack([torch.full_like(z, frame), z, y, x], 1))
    coords = torch.cat(rows).int()
    return SparseVoxels(torch.randn(len(coords), 3, generator=generator), coords, GRID, len(counts))


def context(*frames: tuple[torch.Tensor, float, str]) -> FrameContext:
    poses, times, names = zip(*frames, strict=True)
    return FrameContext(torch.stack(poses), torch.tensor(times, dtype=torch.float64), names)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.floats(-3.1, 3.1), st.floats(-4, 4), st.floats(-4, 4))
def test_memory_equals_a_loop(seed: int, yaw: float, x: float, y: float) -> None:
    fuse, before, now = fusion(), voxels(seed), voxels(seed + 1)
    first, second = pose(0.3, 900.0, -40.0), pose(0.3, 900.0, -40.0) @ pose(yaw, x, y)
    _, memory = fuse(before, context((first, 1.0, "a")))
    fused, memory = fuse(now, context((second, 1.5, "a")), memory)
    expected = []
    for feature, (_, k, j, i) in zip(before.features, before.coords.tolist(), strict=True):
        centre = [(n + 0.5) * size + low for n, size, low in zip((i, j, k), SIZE, LOW, strict=True)]
        there = torch.linalg.solve(second, first @ torch.tensor([*centre, 1.0], dtype=torch.float64))
        cell = [math.floor((c - low) / size) for c, low, size in zip(there[:3].tolist(), LOW, SIZE, strict=True)]
        if all(0 <= c < n for c, n in zip(cell, GRID[::-1], strict=True)):
            expected.append((cell, fuse.fuser.weight @ feature))
    count = len(fused) - len(now)
    assert fused.coords[:count].tolist() == [[0, *reversed(cell)] for cell, _ in expected]
    if expected:
        torch.testing.assert_close(fused.features[:count], torch.stack([feature for _, feature in expected]))
    assert fused.features[count:].equal(now.features)
    assert memory.slots[0].times.tolist() == [1.0] * count + [1.5] * len(now)


def test_a_vehicle_that_stands_finds_every_voxel_in_its_cell_again() -> None:
    fuse, place = fusion(), pose(1.1, 1234.5, 987.6)
    memory, seen = None, voxels(2)
    for step in range(4):
        fused, memory = fuse(seen, context((place, 0.5 * step, "a")), memory)
        assert len(fused) == (step + 1) * len(seen)
        assert fused.coords.equal(seen.coords.repeat(step + 1, 1))


def test_sequences_and_time_part_memories() -> None:
    fuse, here, (first, second) = fusion(), pose(0.0, 0.0, 0.0), (voxels(1, (3, 4)), voxels(2, (2, 2)))
    _, memory = fuse(first, context((here, 10.0, "a"), (here, 20.0, "b")))
    fused, _ = fuse(second, context((here, 10.5, "c"), (here, 20.5, "b")), memory)
    assert fused.coords[:, 0].tolist() == [1] * 4 + [0, 0, 1, 1]
    fused, _ = fuse(second, context((here, 12.0, "a"), (here, 22.01, "b")), memory)
    assert fused.coords[:, 0].tolist() == [0] * 3 + [0, 0, 1, 1]  # two seconds are remembered, more are not
    fused, later = fuse(second, context((here, 9.5, "a"), (here, 0.0, "b")), memory)
    assert fused.coords[:, 0].tolist() == [0] * 3 + [0, 0, 1, 1]  # out of order, but near
    fused, _ = fuse(voxels(3, (1,)), context((here, 10.0, "a")), later)  # a smaller batch, and a larger one
    assert len(fused) == 3 + 2 + 1
    fused, _ = fuse(voxels(4, (1, 1, 1)), context(*[(here, 10.0, name) for name in "abc"]), memory)
    assert len(fused) == 3 + 3


def test_voxels_grow_old_one_by_one_or_all_together() -> None:
    here = pose(0.0, 0.0, 0.0)
    for drop_all, expected in ((False, [3, 6, 9, 12, 15, 15, 15]), (True, [3, 6, 9, 12, 15, 3, 6])):
        fuse, memory, counts = fusion(drop_all=drop_all), None, []
        for step in range(7):
            fused, memory = fuse(voxels(step, (3,)), context((here, 0.5 * step, "a")), memory)
            counts.append(len(fused))
        assert counts == expected


def test_a_sequence_that_goes_back_in_time_keeps_everything_only_as_published() -> None:
    here = pose(0.0, 0.0, 0.0)
    for drop_all, expected in ((False, [3, 6, 6, 3]), (True, [3, 6, 9, 12])):
        fuse, memory, counts = fusion(drop_all=drop_all), None, []
        for time in (10.0, 11.5, 9.0, 0.0):  # 11.5 s is more than 2 s ahead of 9 s, and all is of 0 s
            fused, memory = fuse(voxels(0, (3,)), context((here, time, "a")), memory)
            counts.append(len(fused))
        assert counts == expected


def test_published_quirks() -> None:
    here, beside = pose(0.0, 0.0, 0.0), pose(0.0, 0.4, 0.0)
    one = SparseVoxels(torch.ones(1, 3), torch.tensor([[0, 1, 2, 0]]).int(), GRID, 1)
    _, memory = fusion()(one, context((here, 0.0, "a")))
    assert memory.slots[0].positions.tolist() == [[-4.5, -1.5, -0.25]]
    fuse = fusion(cell_corners=True, truncate_cells=True)
    _, memory = fuse(one, context((here, 0.0, "a")))
    assert memory.slots[0].positions.tolist() == [[-5.0, -2.0, -0.5]]
    # The corner lies 0.4 cells outside now: rounded towards zero it is in cell 0 still.
    assert len(fuse(one, context((beside, 0.0, "a")), memory)[0]) == 2
    assert len(fusion(cell_corners=True)(one, context((beside, 0.0, "a")), memory)[0]) == 1
    fused, memory = fusion(zero_voxel=True)(one, context((here, 0.0, "a")))
    assert fused.coords.tolist() == [[0, 0, 0, 0], [0, 1, 2, 0]]
    assert fused.features[0].tolist() == [0.0] * 3
    assert len(memory.slots[0]) == 2


def test_gradients_reach_the_layer_and_the_present_alone() -> None:
    fuse, here = fusion().double(), pose(0.0, 0.0, 0.0)
    first, second = (replace(v, features=v.features.double().requires_grad_()) for v in (voxels(1), voxels(2)))
    _, memory = fuse(first, context((here, 0.0, "a")))
    assert not memory.slots[0].features.requires_grad

    def run(weight: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        inputs = (second.with_features(features), context((here, 0.5, "a")), memory)
        return torch.func.functional_call(fuse, {"fuser.weight": weight}, inputs)[0].features

    assert torch.autograd.gradcheck(run, (fuse.fuser.weight, second.features))
    fuse(second, context((here, 0.5, "a")), memory)[0].features.sum().backward()
    assert first.features.grad is None


def test_what_does_not_fit_is_refused() -> None:
    here = pose(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="2 frames, but places and times of 1"):
        fusion()(voxels(1, (2, 2)), context((here, 0.0, "a")))
    with pytest.raises(ValueError, match="max_age must be above 0"):
        fusion(max_age=0.0)
    with pytest.raises(ValueError, match=r"poses must be \[B, 4, 4\]"):
        FrameContext(here[None], torch.zeros(2), ("a", "b"))
    with pytest.raises(ValueError, match="one position and time per voxel"):
        SequenceMemory("a", 0.0, torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(2))
    with pytest.raises(ConfigError, match="LION with merge_repeated"):
        build({"merge_repeated": False})


def build(changes: dict[str, object] | None = None) -> Node:
    """A small detector over time."""
    backbone = {
        "name": "LION",
        "mixer": {"name": "RetNet"},
        "windows": [[2, 5, 5]],
        "group_sizes": [8],
        "scales": [[[2, 2, 2]]],
        "out_group_size": 8,
        "merge_repeated": True,
    }
    model = {
        "name": "VoxelDetector",
        "voxel_size": [1.0, 1.0, 0.5],
        "encoder": {"name": "DynamicVoxelVFE", "num_filters": [8]},
        "temporal": {"name": "VoxelFusion", "max_age": 2.0},
        "backbone": backbone | (changes or {}),
        "head": {"name": "CenterHead", "tasks": [["car"]], "shared_channels": 8},
    }
    data = {
        "name": "CustomDataset",
        "root": "nowhere",
        "classes": ["car"],
        "point_features": ["x", "y", "z"],
        "point_cloud_range": [-8.0, -8.0, -1.0, 8.0, 8.0, 1.0],
    }
    settings_ = config.from_plain({"data": data, "model": model}, "test", ())
    torch.manual_seed(0)
    if changes:
        Detector(settings_, "cpu")
    return settings_


def cloud(seed: int, count: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform((-8, -8, -1), (8, 8, 1), (count, 3)).astype(np.float32)


def test_streams_remember_and_single_frames_do_not() -> None:
    detector = Detector(build(), "cpu")
    assert detector.remembers
    stream, here = detector.stream(), np.eye(4)
    first = stream.detect(cloud(0), here, 0.0, "a")
    alone = detector.detect(cloud(0))
    np.testing.assert_array_equal(first.boxes, alone.boxes)
    second = stream.detect(cloud(1), here, 0.5, "a")
    size = len(stream.memory.slots[0])
    assert not np.array_equal(second.scores, detector.detect(cloud(1)).scores)
    empty = stream.detect(np.zeros((0, 3), np.float32), here, 1.0, "a")
    assert len(empty.boxes) == 0
    assert len(stream.memory.slots[0]) == size  # still there
    for restart in ((2.0, "b"), (9.0, "b"), (-9.0, "c")):
        found = stream.detect(cloud(1), here, *restart)
        np.testing.assert_array_equal(found.scores, detector.detect(cloud(1)).scores)
    stream.detect(cloud(1), here, -9.0, "c")
    stream.reset()
    assert stream.memory is None
    away = torch.eye(4)
    away[:3, 3] = 1e6
    jump = stream.detect(torch.from_numpy(cloud(2)), away, 0.0, "c")
    assert isinstance(jump.boxes, torch.Tensor)


MIRROR = np.diag([1.0, -1, 1, 1])
WRONG_POSES = {
    r"pose must be a matrix \[4, 4\] of numbers, got \[3, 3\]": np.eye(3),
    r"pose must be a matrix \[4, 4\] of numbers, got None": None,
    "pose must be a rotation and a translation": (
        np.full((4, 4), np.nan), np.zeros((4, 4)), 2 * np.eye(4), MIRROR, np.eye(4) + np.eye(4)[[3, 0, 1, 2]]
    ),
}  # fmt: skip


def test_streams_refuse_places_and_times_that_are_none() -> None:
    stream = Detector(build(), "cpu").stream()
    stream.detect(cloud(0), np.eye(4), 5.0)
    memory = stream.memory
    for message, poses in WRONG_POSES.items():
        for wrong in poses if isinstance(poses, tuple) else (poses,):
            with pytest.raises(ValueError, match=message):
                stream.detect(cloud(1), wrong, 5.5)
    for odd in (1j * torch.eye(4), torch.eye(4).to_sparse()):
        with pytest.raises(ValueError, match=r"pose must be a matrix \[4, 4\] of numbers"):
            stream.detect(cloud(1), odd, 5.5)
    for time in (math.nan, math.inf, None, "soon", 10**400):
        with pytest.raises(ValueError, match="timestamp must be finite seconds"):
            stream.detect(cloud(1), np.eye(4), time)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"timestamp goes back from 5.0 to 4.5 s.*reset"):
        stream.detect(cloud(1), np.eye(4), 4.5)
    assert stream.memory is memory
    stream.detect(cloud(1), np.eye(4), 5.0)  # of two sensors at once
    assert set(stream.memory.slots[0].times.tolist()) == {5.0}
    stream.detect(cloud(1), torch.eye(4, dtype=torch.bfloat16, requires_grad=True), 4.5, "another")
    stream.reset()
    stream.detect(cloud(1), np.eye(4), 1.0, "another")


def test_frames_without_a_recording_stand_alone() -> None:
    detector = Detector(build(), "cpu")
    for name, again in (("drive", False), ("", True)):
        memory = None
        for time in (0.0, 0.5):
            batch = PointBatch.from_points([torch.from_numpy(cloud(1 + int(2 * time)))])
            batch = replace(batch, context=context((pose(0.0, 0.0, 0.0), time, name)))
            (found,), memory = detector.predict_and_memory(batch, memory)
        alone = detector.detect(cloud(2))
        assert np.array_equal(found.numpy().scores, alone.scores) is again


def test_a_frame_that_was_skipped_changes_nothing_in_the_memory() -> None:
    detector = Detector(build(), "cpu")
    batch = replace(PointBatch.from_points([torch.from_numpy(cloud(0))]), context=context((torch.eye(4), 0.0, "a")))
    memory = detector.predict_and_memory(batch)[1]
    skipped = PointBatch.from_points([torch.zeros(0, 3)])  # as a data set gives it: of no place and time
    assert detector.predict_and_memory(skipped, memory)[1] is memory


def test_training_without_places_is_said() -> None:
    step = LossStep(Detector(build(), "cpu").model.train())
    targets = Targets(torch.tensor([[1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.3]]), torch.tensor([0]))
    batch = replace(PointBatch.from_points([torch.from_numpy(cloud(0))]), targets=(targets,))
    with pytest.warns(UserWarning, match="each is looked at alone"):
        step(Wrapped(batch))


def test_training_goes_on_with_what_was_remembered() -> None:
    model = Detector(build(), "cpu").model.train()
    assert isinstance(model, VoxelDetector)
    step = LossStep(model)
    boxes = torch.tensor([[1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.3]])
    for number in range(3):
        batch = PointBatch.from_points([torch.from_numpy(cloud(2 * number + i)) for i in range(2)])
        places = context((pose(0.0, number, 0.0), 0.5 * number, "a"), (pose(0.1, 0.0, number), 0.5 * number, "b"))
        batch = replace(batch, context=places, targets=(Targets(boxes, torch.tensor([0])),) * 2)
        step(Wrapped(batch))["total"].backward()
    assert model.temporal.fuser.weight.grad.abs().sum() > 0
    assert [set(slot.times.tolist()) for slot in step.memory.slots] == [{0.0, 0.5, 1.0}] * 2
    assert not any("memory" in name for name in step.state_dict())
