"""The KITTI data set: real and made-up frames, reproducibility, damaged input, several sources."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pcdet_ext import config
from pcdet_ext.data import kitti
from pcdet_ext.data.base import ConcatDataset, collate
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.data.index import read_index
from pcdet_ext.data.kitti import prepare_kitti
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Sample, Targets

SPAN = [0, -40, -3, 70.4, 40, 1]
AUGMENT = [
    {"name": "GroundTruthSampling", "groups": {"Car": 4, "Pedestrian": 2}},
    {"name": "RandomFlip"},
    {"name": "RandomRotation"},
    {"name": "RandomScaling"},
    {"name": "PointShuffle"},
]


@pytest.fixture
def prepared(kitti_root: Path) -> Path:
    """The made-up folder, prepared in place."""
    prepare_kitti(kitti_root, progress=False)
    return kitti_root


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A data section for the real frames: the published one, read in place with its index elsewhere."""
    out = tmp_path_factory.mktemp("index")
    root = shared / "data" / "kitti_mini"
    prepare_kitti(root, database=["train", "val"], out=out, progress=False)
    path = Path(__file__).resolve().parents[2] / "configs" / "datasets" / "kitti.yaml"
    return config.load(path, [f"data.root={root}", f"data.index={out}"])["data"]


def make(root: Path, training: bool = False, **options: object) -> kitti.KittiDataset:
    options = {"classes": ["Car", "Pedestrian"], "point_cloud_range": SPAN, **options}
    return kitti.KittiDataset(root=str(root), training=training, **options)


def identical(a: Sample, b: Sample) -> bool:
    return (
        a.frame_id == b.frame_id
        and np.array_equal(a.points, b.points)
        and np.array_equal(a.targets.boxes, b.targets.boxes)
        and a.targets.names == b.targets.names
    )


def as_list(samples: list[Sample]) -> list[Sample]:
    return samples


def test_a_frame_without_training_is_the_file_cropped(prepared: Path) -> None:
    dataset = make(prepared, split="val")
    sample = dataset[1]
    raw = kitti.read_points(prepared / "training" / "velodyne" / "000005.bin")
    seen = raw[kitti.in_image(raw, sample.calibration)]
    np.testing.assert_array_equal(sample.points, seen[(seen[:, 0] < 70.4) & (np.abs(seen[:, 1]) < 40)])
    assert (sample.frame_id, sample.calibration.image_size) == ("000005", (375, 1242))
    assert sample.targets.names == ("Car", "Pedestrian", "Car")  # no Van, no DontCare
    assert (sample.targets.num_points >= 30).all()
    assert len(make(prepared, split="val", fov_only=False)[1].points) > len(sample.points)
    assert make(prepared, split="val", point_features=["x", "y", "z"])[1].points.shape[1] == 3
    assert make(prepared, split="val", mask_z=True)[1].points[:, 2].min() >= -3
    np.testing.assert_array_equal(dataset[-1].points, sample.points)
    with pytest.raises(IndexError):
        dataset[2]


def test_real_frames_train_with_the_published_section(real: dict) -> None:
    dataset = build_dataset(real, "train", training=True, seed=3)
    assert len(dataset) == 17
    cars = 0
    for sample in (dataset[i] for i in range(len(dataset))):
        assert 10_000 < len(sample.points) < 40_000
        assert set(sample.targets.names) <= {"Car", "Pedestrian", "Cyclist"}
        assert (np.abs(sample.targets.boxes[:, 6]) <= np.pi + 1e-6).all()
        cars += sample.targets.names.count("Car")
    assert cars > 100  # 52 are labelled
    assert dataset.counts["points not finite"] == 0
    test = build_dataset(real, "val", training=False)
    assert [test[i].frame_id for i in range(5)] == ["003675", "003795", "003957", "004000", "004016"]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(prepared: Path, workers: int) -> None:
    dataset = make(prepared, training=True, augment=AUGMENT, seed=11, repeat=2)
    loader = DataLoader(dataset, 2, num_workers=workers, collate_fn=as_list, persistent_workers=True)
    seen = []
    for epoch in range(2):
        dataset.set_epoch(epoch)  # must reach workers that live on
        alone = [dataset[i] for i in range(len(dataset))]
        loaded = [sample for batch in loader for sample in batch]
        assert all(map(identical, alone, loaded))
        seen.append(alone)
    assert len(seen[0]) == 8
    assert not any(map(identical, seen[0], seen[1]))
    assert not identical(seen[0][0], seen[0][4])  # repeats of a frame are augmented differently
    other = make(prepared, training=True, augment=AUGMENT, seed=12)
    assert not identical(seen[0][0], other[0])


def test_a_sample_without_boxes_is_replaced_by_a_seeded_one(prepared: Path) -> None:
    # Only 000002 and 000005 have a box of the class Car beyond 30 m.
    far = [30, *SPAN[1:]]
    dataset = make(prepared, training=True, classes=["Car"], point_cloud_range=far)
    samples = [dataset[i] for i in range(4)]
    assert {s.frame_id for s in samples} == {"000002"}
    assert dataset.counts["samples without boxes"] > 0
    again = make(prepared, training=True, classes=["Car"], point_cloud_range=far)
    assert all(identical(s, again[i]) for i, s in enumerate(samples))
    nothing = make(prepared, training=True, classes=["Car"], point_cloud_range=[200, *SPAN[1:3], 300, *SPAN[4:]])
    with pytest.raises(DataError, match="frames in a row have no box of Car inside point_cloud_range"):
        nothing[0]


def test_boxes_with_few_points_can_be_left_out(prepared: Path) -> None:
    assert len(make(prepared, split="val")[1].targets) == 3
    assert len(make(prepared, split="val", min_points=1000)[1].targets) == 0


def test_bad_points_are_dropped_and_empty_clouds_work(kitti_root: Path) -> None:
    path = kitti_root / "training" / "velodyne" / "000004.bin"
    points = kitti.read_points(path)
    points[3, 0], points[7, 3] = np.nan, np.inf
    kitti.write_points(path, points)
    kitti.write_points(path.with_name("000005.bin"), points[:0])
    summary = prepare_kitti(kitti_root, progress=False)[1]
    assert summary.dropped_points == 2
    dataset = make(kitti_root, split="val")
    assert np.isfinite(dataset[0].points).all()
    assert dataset.counts["points not finite"] == 2
    assert dataset[1].points.shape == (0, 4)
    batch = collate([dataset[0], dataset[1]], dataset.classes)
    assert batch.batch_size == 2
    assert (batch.batch_index == 0).all()
    assert batch.targets[1].boxes.shape == (3, 7)


def test_batches_join_points_and_labels(prepared: Path) -> None:
    dataset = make(prepared, split="val")
    batch = collate([dataset[0], dataset[1]], dataset.classes)
    assert batch.points.dtype == torch.float32
    assert torch.bincount(batch.batch_index).tolist() == [len(dataset[0].points), len(dataset[1].points)]
    assert batch.targets[1].labels.tolist() == [0, 1, 0]
    assert batch.targets[1].boxes.dtype == torch.float32
    assert batch.frame_ids == ("000004", "000005")
    unlabelled = collate([dataset[0], dataset[1].replace(targets=None)], dataset.classes)
    assert unlabelled.targets is None
    empty = Sample(np.zeros((0, 4), np.float32), kitti.POINT_FEATURES, "e", Targets.of_names(np.zeros((0, 7)), ()))
    assert collate([empty], ["Car"]).targets[0].labels.shape == (0,)


def damage(root: Path, frame_id: str) -> str:
    path = root / "training" / "velodyne" / f"{frame_id}.bin"
    path.write_bytes(path.read_bytes()[:-5])
    return path.name


def test_a_damaged_frame_is_named(prepared: Path) -> None:
    name = damage(prepared, "000001")
    for training in (False, True):
        with pytest.raises(DataError, match=rf"{name}: .*cut short"):
            make(prepared, training=training)[1]
    points = kitti.read_points(prepared / "training" / "velodyne" / "000002.bin")
    kitti.write_points(prepared / "training" / "velodyne" / "000002.bin", points[:-1])
    with pytest.raises(DataError, match=r"000002\.bin: .* where the index has"):
        make(prepared)[2]
    (prepared / "training" / "calib" / "000003.txt").unlink()
    with pytest.raises(DataError, match=r"calib.000003\.txt: no such file"):
        make(prepared)[3]


def test_damaged_frames_can_be_skipped(prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage(prepared, "000001")
    training = make(prepared, training=True, on_error="skip")
    assert training[1].frame_id != "000001"
    assert training.counts["skipped frames"] == 1
    assert "000001.bin" in caplog.text
    test = make(prepared, on_error="skip")
    assert (test[1].frame_id, len(test[1].points)) == ("000001", 0)


def test_classes_are_held_against_the_data(prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(config.ConfigError, match=r"'car' never occurs in .*; did you mean 'Car'"):
        make(prepared, training=True, classes=["car", "Pedestrian"])
    with pytest.raises(config.ConfigError, match=r"'Pedestrain' never occurs in .*; did you mean 'Pedestrian'"):
        make(prepared, training=True, classes=["Car", "Pedestrain"])
    with pytest.raises(config.ConfigError, match=r"none of Bus, Tram occurs in .* Car, Pedestrian, Van"):
        make(prepared, training=True, classes=["Bus", "Tram"])
    with caplog.at_level(logging.WARNING):
        make(prepared, training=True, classes=["Car", "Cyclist"])
    assert "'Cyclist' never occurs" in caplog.text
    caplog.clear()
    make(prepared, classes=["Car", "Cyclist", "Bus", "Tram"])
    assert [record.getMessage().partition(" in ")[0] for record in caplog.records] == [
        "'Cyclist', 'Bus', 'Tram' never occur"
    ]


def test_a_missing_index_says_how_to_make_it(kitti_root: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"/nowhere/kitti: no such folder, so there is no pcdet_ext/index_train\.parquet in it; data\.root=DIR "
        r"names the folder of the data set, and `pcdet prepare DATASET --root DIR` prepares it",
    ):
        read_index(Path("/nowhere/kitti/pcdet_ext/index_train.parquet"))
    with pytest.raises(DataError, match=r"index_train\.parquet: no such file; make it with `pcdet prepare`"):
        make(kitti_root)


def test_an_index_of_another_folder_is_told(kitti_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare_kitti(kitti_root, progress=False)
    prepare_kitti(kitti_root, out=tmp_path / "apart", progress=False)
    moved = tmp_path / "moved"
    shutil.copytree(kitti_root, moved)
    make(kitti_root, index=str(tmp_path / "apart"))
    make(moved)
    assert "made from" not in caplog.text  # where it was made, and in a folder that was moved as a whole
    make(moved, index=str(tmp_path / "apart"))
    assert f"made from {kitti_root}, and used for {moved}" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"point_cloud_range": [0, 0, 0, 1, 1]}, "point_cloud_range must be"),
        ({"point_cloud_range": [0, 0, 0, 1, -1, 1]}, "point_cloud_range must be"),
        ({"point_features": ["x", "z", "y"]}, "point_features must be"),
        ({"point_features": ["x", "y", "z", "ring"]}, "point_features must be"),
        ({"repeat": 0}, "repeat must be at least 1"),
    ],
)
def test_wrong_settings_are_named(prepared: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(prepared, **options)


def test_several_sources_train_as_one(prepared: Path, real: dict) -> None:
    sources = [{"root": str(prepared), "repeat": 3}, {"split": "val"}]
    node = config.Node({**real, "sources": sources})
    dataset = build_dataset(node, "train", training=True)
    assert isinstance(dataset, ConcatDataset)
    assert len(dataset) == 3 * 4 + 5
    assert dataset[0].frame_id == "000000"
    assert len(dataset[0].points) < 1000 < len(dataset[12].points)  # made up, real
    assert {dataset[i].frame_id for i in range(4, 8)} <= {"000000", "000001", "000002", "000003"}
    last = dataset[16]
    assert identical(last, dataset[-1])
    dataset.set_epoch(1)
    assert not identical(last, dataset[16])
    test = build_dataset(node, "val", training=False)  # the root alone
    assert [test[i].frame_id for i in range(len(test))] == ["003675", "003795", "003957", "004000", "004016"]


def test_the_section_may_choose_the_training_split(prepared: Path) -> None:
    node = {
        "name": "KittiDataset",
        "root": str(prepared),
        "classes": ["Car"],
        "point_cloud_range": SPAN,
        "split": "val",
    }
    assert len(build_dataset({**node, "repeat": 3}, "train", training=True)) == 6
    assert len(build_dataset({**node, "repeat": 3}, "train", training=False)) == 4


@pytest.mark.parametrize(
    ("sources", "message"),
    [([], "must be a list of mappings"), ("x", "must be a list"), ([{"rot": "x"}], "no such key; did you mean 'root'")],
)
def test_wrong_sources_are_named(prepared: Path, sources: object, message: str) -> None:
    node = {"name": "KittiDataset", "root": str(prepared), "classes": ["Car"], "point_cloud_range": SPAN}
    with pytest.raises(config.ConfigError, match=message):
        build_dataset({**node, "sources": sources}, "train", training=True)


def test_results_of_any_code_base_are_detections_in_the_lidar_frame(prepared: Path, tmp_path: Path) -> None:
    dataset = make(prepared, split="val")
    folder = tmp_path / "results"
    folder.mkdir()
    labels = (prepared / "training" / "label_2" / "000005.txt").read_text().splitlines()
    scored = [f"{line} 0.{i + 1}" for i, line in enumerate(labels)]
    (folder / "000005.txt").write_text("\n".join(scored) + "\n")
    (folder / "000004.txt").write_text("")
    results = dataset.read_results(folder)
    assert sorted(results) == ["000004", "000005"]
    found, truth = results["000005"], dataset.frames[1].targets()
    np.testing.assert_allclose(found.boxes, truth.boxes, atol=1e-5)
    assert found.names == list(truth.names)
    assert found.class_names == ("Car", "Pedestrian", "Van")  # those of the data set first
    np.testing.assert_allclose(found.scores, [0.1, 0.2, 0.3, 0.4][: len(found)])
    assert (len(results["000004"]), results["000004"].class_names) == (0, ("Car", "Pedestrian"))
    assert list(dataset.read_results(folder / "000005.txt")) == ["000005"]
    with pytest.raises(MissingFileError, match="nowhere: no such file or folder"):
        dataset.read_results(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="velodyne: no result files"):
        dataset.read_results(prepared / "training" / "velodyne")
