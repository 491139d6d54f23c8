"""The format for place recognition: its table, its preparation, its samples, and the order of an epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.config import ConfigError
from pcdet_ext.data.base import ConcatDataset
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.data.places import Frame, PlaceFrames, PlacesDataset, read_frames, write_frames
from pcdet_ext.data.places.tuples import neighbours, order_in_pairs
from pcdet_ext.data.prepare import prepare
from pcdet_ext.engine.loader import EpochBatches
from pcdet_ext.files import DataError

RANGE = [-50, -50, -5, 50, 50, 5]


def make_folder(root: Path, per_run: int = 6) -> list[Frame]:
    """Two runs along one line in train and in val, ten metres between frames."""
    rng = np.random.default_rng(0)
    frames = []
    for split in ("train", "val"):
        for run in ("out", "back"):
            for i in range(per_run):
                cloud = f"{split}/{run}/{i:03d}.{'npy' if run == 'out' else 'bin'}"
                heading = 0.5 if run == "out" else None
                frames.append(Frame(cloud, f"{split} {run}", split, 5e5 + 10.0 * i, 6e6 + 0.25, 3.0, heading))
                points = rng.uniform(-20, 20, (50 + i, 4)).astype(np.float32)
                (root / cloud).parent.mkdir(parents=True, exist_ok=True)
                np.save(root / cloud, points) if run == "out" else points.tofile(root / cloud)
    write_frames(root, frames)
    return frames


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_folder(tmp_path)
    prepare(PlaceFrames(tmp_path), progress=False)
    return tmp_path


def dataset(root: Path, split: str = "train", training: bool = True, **options: object) -> PlacesDataset:
    node = {"name": "PlacesDataset", "root": str(root), "point_cloud_range": RANGE}
    node |= {"positive_radius": 3.0, "negative_radius": 12.0, **options}
    made = build_dataset(node, split, training)
    assert isinstance(made, PlacesDataset)
    return made


def test_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    frames = make_folder(tmp_path)
    assert read_frames(tmp_path) == frames


def test_preparation_reports_runs_and_revisits(tmp_path: Path) -> None:
    make_folder(tmp_path)
    source = PlaceFrames(tmp_path)
    prepare(source, progress=False)
    report = source.finish(tmp_path / "pcdet_ext", ["train"])
    assert "2 runs (train out 6, train back 6); 12 of 12 frames are within 10 m" in report


def test_samples_have_their_position_in_full_precision(folder: Path) -> None:
    assert dataset(folder).point_features == ("x", "y", "z")
    data = dataset(folder, "val", training=False, point_features=["x", "y", "z", "intensity"])
    assert data.point_features == ("x", "y", "z", "intensity")
    assert data.labelled
    for index, sample in enumerate(data[i] for i in range(len(data))):
        assert sample.targets is not None
        np.testing.assert_array_equal(sample.targets.position, [5e5 + 10.0 * (index % 6), 6e6 + 0.25, 3.0])
        assert len(sample.points) == 50 + index % 6
    assert {data[i].sequence_id for i in range(len(data))} == {"val out", "val back"}


def test_augmentation_moves_the_points_and_not_the_place(folder: Path) -> None:
    turned = dataset(folder, augment=[{"name": "RandomRotation", "angle_range": [1.0, 1.0]}])
    plain = dataset(folder)
    a, b = turned[0], plain[0]
    assert a.targets is not None
    assert b.targets is not None
    np.testing.assert_array_equal(a.targets.position, b.targets.position)
    assert not np.allclose(a.points, b.points)


def test_batches_hold_pairs_of_the_same_place(folder: Path) -> None:
    data = dataset(folder)
    batches = EpochBatches(len(data), 4, seed=0, order=data.epoch_order)
    rows = [index for batch in batches for _, index in batch]
    assert sorted(rows) == list(range(12))  # each frame has one partner here
    place = [data.frames[i].pose[0, 3] for i in rows]  # type: ignore[index]
    assert place[::2] == place[1::2]
    batches.seek(1)
    assert [index for batch in batches for _, index in batch] != rows


def test_pairs_stay_whole_in_several_sources(folder: Path) -> None:
    parts = ConcatDataset([dataset(folder), dataset(folder, "val")])
    order = parts.epoch_order(np.random.default_rng(0)).reshape(-1, 2)
    assert sorted(order.ravel().tolist()) == list(range(24))
    assert (order // 12 == order[:, :1] // 12).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(2, 40), radius=st.floats(1, 30))
def test_neighbours_and_pairs_are_within_the_radius(seed: int, count: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 60, (count, 2))
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    close = (distance <= radius) & ~np.eye(count, dtype=bool)
    partners = neighbours(xy, radius)
    assert [p.tolist() for p in partners] == [np.flatnonzero(row).tolist() for row in close]
    if not close.any():
        with pytest.raises(ValueError, match="no frame shows the place"):
            order_in_pairs(partners, rng)
        return
    pairs = order_in_pairs(partners, rng).reshape(-1, 2)
    assert close[pairs[:, 0], pairs[:, 1]].all()
    assert set(pairs.ravel().tolist()) == set(np.flatnonzero(close.any(axis=1)).tolist())
    assert len(set(pairs[:, 0].tolist())) == len(pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("cloud,run", "cloud,drive"), r"frames\.csv:1: has no column 'run'"),
        (lambda t: t.replace("heading", "hedding"), r"unknown column 'hedding'; did you mean 'heading'"),
        (lambda t: t.replace("500010.0", "far", 1), r"frames\.csv:3: x must be a number, got 'far'"),
        (lambda t: t.replace("500010.0", "nan", 1), r"frames\.csv:3: x must be finite"),
        (lambda t: t.replace("train/out/001.npy", "../001.npy"), r"must be a path below the folder"),
        (lambda t: t.replace("train/out/001.npy", "train/out/000.npy"), r"is in line 2 already"),
        (lambda t: t.replace("train/out/001.npy", "train/out/999.npy"), r"999\.npy: no such file"),
        (lambda t: t.replace(",ground", "", 1), r"frames\.csv:2: has 8 values"),
        (lambda t: "", r"frames\.csv: is empty"),
    ],
)
def test_damaged_tables_are_refused_by_line(tmp_path: Path, change: object, message: str) -> None:
    make_folder(tmp_path)
    table = tmp_path / "frames.csv"
    table.write_text(change(table.read_text()))  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        PlaceFrames(tmp_path)


def test_settings_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="positive_radius must be above 0 and at most negative_radius"):
        dataset(folder, positive_radius=20.0)
    with pytest.raises(ConfigError, match="no two frames are within positive_radius"):
        dataset(folder, positive_radius=1e-3, negative_radius=1.0, interval=7)
    with pytest.raises(ConfigError, match="places have none"):
        dataset(folder, classes=["Car"])
    with pytest.raises(DataError, match="no frame is of split 'vla'; did you mean 'val'"):
        PlaceFrames(folder).find("vla")
    with pytest.raises(ConfigError, match="has no such key"):
        dataset(folder, "val", training=False).evaluator({"radios": 5.0})
