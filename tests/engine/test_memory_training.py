"""A training of a detector over time that is stopped goes on with what the detector remembered."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_detector import ToyDataset
from toy_runs import losses, run, same_model

from pcdet_ext import checkpoint
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.data.base import collate
from pcdet_ext.engine.devices import seed_everything
from pcdet_ext.engine.run_folder import LAST
from pcdet_ext.engine.trainer import TrainingInputs
from pcdet_ext.models.detector import VoxelDetector
from pcdet_ext.models.temporal import VoxelMemory
from pcdet_ext.structures import PointBatch, Sample


class Recording(ToyDataset):
    """The frames of one drive, one after the other."""

    def epoch_order(self, rng: np.random.Generator) -> np.ndarray:
        return np.arange(self.size)

    def __getitem__(self, index: int) -> Sample:
        pose = np.eye(4)
        pose[0, 3] = 0.3 * index
        return super().__getitem__(index).replace(sequence_id="drive", pose=pose, timestamp=0.5 * index)


def inputs() -> TrainingInputs:
    seed_everything(7)
    backbone = {
        "name": "LION",
        "mixer": {"name": "RetNet"},
        "windows": [[2, 5, 5]],
        "group_sizes": [8],
        "scales": [[[2, 2, 2]]],
        "out_group_size": 8,
        "merge_repeated": True,
    }
    detector = VoxelDetector(
        classes=("Car",),
        point_cloud_range=(-8.0, -8.0, -4.0, 8.0, 8.0, 4.0),
        num_point_features=4,
        voxel_size=(1.0, 1.0, 2.0),
        encoder={"name": "DynamicVoxelVFE", "num_filters": [8]},
        backbone=backbone,
        temporal={"name": "VoxelFusion"},
        head={"name": "CenterHead", "tasks": [["Car"]], "shared_channels": 8},
    )
    data = Recording(8)
    return TrainingInputs(
        detector, lambda epoch: data, lambda samples: collate(samples, ("Car",)), {"model": {"name": "VoxelDetector"}}
    )


def test_a_stopped_training_remembers(tmp_path: Path) -> None:
    settings = {"epochs": 2, "batch_size": 1}
    assert run(tmp_path / "whole", inputs(), **settings)
    assert not run(tmp_path / "parts", stopped_at(5), **settings)
    content = checkpoint.read(tmp_path / "parts" / LAST)
    (slots,) = content["memory"]
    assert set(slots[0]["times"].tolist()) == {0.5, 1.0, 1.5, 2.0, 2.5}  # the voxels of two seconds
    assert run(tmp_path / "parts", inputs(), content, **settings)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert same_model(tmp_path / "whole" / LAST, tmp_path / "parts" / LAST)
    content["memory"] = [[{"sequence_id": "drive"}]]
    with pytest.raises(CheckpointError, match="memory of earlier frames does not fit"):
        run(tmp_path / "damaged", inputs(), content, **settings)


def stopped_at(step: int) -> TrainingInputs:
    """The same inputs, with a Ctrl-C in the middle of a step (from 0)."""
    found, count = inputs(), itertools.count()
    go_on = found.detector.loss_and_memory

    def interrupted(batch: PointBatch, memory: VoxelMemory | None) -> Any:
        if next(count) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return go_on(batch, memory)

    found.detector.loss_and_memory = interrupted
    return found


def test_memory_becomes_plain_and_comes_back() -> None:
    memory = inputs().detector.loss_and_memory(collate([Recording(2)[0]], ("Car",)))[1]
    again = VoxelMemory.of_plain(memory.plain())
    for name in ("features", "positions", "times"):
        assert torch.equal(getattr(memory.slots[0], name), getattr(again.slots[0], name))
    assert VoxelMemory.of_plain(VoxelMemory((None,)).plain()).slots == (None,)
    with pytest.raises(TypeError):
        VoxelMemory.of_plain([{"sequence_id": "a"}])
