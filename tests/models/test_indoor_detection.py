"""Indoor scenes in a folder of one's own data: sunrgbd/octformer_fcaf3d is trained on them, tested, and finds boxes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from indoor_folder import make_room, make_rooms

import pcdet_ext
from pcdet_ext.cli.command import main

SMALLER = [
    "data.classes=[table, chair]", "data.point_cloud_range=[-3.2, -3.2, -3.2, 3.2, 3.2, 3.2]",
    "model.voxel_size=[0.1, 0.1, 0.1]", "model.backbone.channels=[16, 32, 32]", "model.backbone.num_blocks=[1, 1, 1]",
    "model.backbone.num_heads=[2, 2, 2]", "model.backbone.stem_down=1", "model.backbone.drop_path=0",
    "model.head.channels=[16, 32, 32]", "model.head.out_channels=16", "test.metric.overlap={table: 0.25, chair: 0.25}",
]  # fmt: skip
SHORT = [
    "data.augment=[]", "data.repeat=1", "train.epochs=5", "train.batch_size=4", "train.learning_rate=0.005",
    "train.log_every=1", "train.num_workers=0", "test.num_workers=0", "train.evaluate_every=0",
]  # fmt: skip


def test_a_folder_of_rooms_is_prepared_learnt_and_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rooms, run = make_rooms(tmp_path / "rooms", 9), tmp_path / "run"
    assert main(["prepare", "custom", "--root", str(rooms)]) == 0
    assert main(["train", "sunrgbd/octformer_fcaf3d", "--out", str(run), f"data.root={rooms}", *SMALLER, *SHORT]) == 0
    with (run / "train.csv").open() as file:
        totals = [float(row["total"]) for row in csv.DictReader(file)]
    assert len(totals) >= 8
    assert np.mean(totals[-2:]) < 0.85 * np.mean(totals[:2])
    capsys.readouterr()
    assert main(["test", str(run / "last.ckpt")]) == 0
    assert "AP40 in percent" in capsys.readouterr().out
    detector = pcdet_ext.load(run / "last.ckpt", device="cpu")
    found = detector.detect(make_room(np.random.default_rng(99))[0])
    assert set(found.names) <= {"table", "chair"}
    assert np.isfinite(np.asarray(found.boxes)).all()
