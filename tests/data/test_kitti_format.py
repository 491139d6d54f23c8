"""The KITTI layout: round trips, real frames, and what damaged files say."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pcdet_ext.data import kitti
from pcdet_ext.files import DataError

LABEL = "Car 0.00 1 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 58.49 1.57"
DONT_CARE = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"

finite = st.floats(-1e3, 1e3, width=32)


def random_calibration(seed: int) -> kitti.Calibration:
    """A camera somewhere near the LiDAR, looking forward, slightly askew."""
    rng = np.random.default_rng(seed)
    base = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])

    def askew() -> np.ndarray:
        orthogonal = np.linalg.qr(np.eye(3) + rng.normal(0, 0.01, (3, 3)))[0]
        return orthogonal * np.sign(np.diag(orthogonal))

    r0, rotation = askew(), askew()
    p2 = np.array([[700.0, 0, 600, 40], [0, 700, 180, 0.2], [0, 0, 1, 0.003]])
    return kitti.Calibration(p2, r0, np.column_stack([rotation @ base, rng.normal(0, 0.3, 3)]), (375, 1242))


@pytest.fixture
def label_file(tmp_path: Path) -> Path:
    path = tmp_path / "000000.txt"
    path.write_text(f"{LABEL}\n\n{DONT_CARE}\n")
    return path


def test_labels_are_read_by_column(label_file: Path) -> None:
    labels = kitti.read_labels(label_file)
    assert labels.names == ("Car", "DontCare")
    assert labels.scores is None
    np.testing.assert_array_equal(labels.occlusion, [1, -1])
    np.testing.assert_array_equal(labels.bbox[0], [387.63, 181.54, 423.81, 203.12])
    np.testing.assert_array_equal(labels.dimensions[0], [1.67, 1.87, 3.69])
    np.testing.assert_array_equal(labels.location[0], [-16.53, 2.39, 58.49])
    np.testing.assert_array_equal([labels.alpha[0], labels.rotation_y[0], labels.truncation[0]], [1.85, 1.57, 0])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(0, 5), scored=st.booleans())
def test_labels_survive_writing_and_reading(data: st.DataObject, count: int, scored: bool) -> None:
    def column(*width: int) -> np.ndarray:
        return data.draw(hnp.arrays(np.float64, (count, *width), elements=finite))

    names = tuple(
        data.draw(st.lists(st.sampled_from(["Car", "Person_sitting", "Ünicode"]), min_size=count, max_size=count))
    )
    occlusion = data.draw(hnp.arrays(np.int64, count, elements=st.integers(-1, 3)))
    labels = kitti.Labels(
        names, column(), occlusion, column(), column(4), column(3), column(3), column(), column() if scored else None
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "x.txt"
        kitti.write_labels(path, labels)
        again = kitti.read_labels(path, with_scores=scored)
    assert again.names == names
    np.testing.assert_array_equal(again.occlusion, occlusion)
    for field in ("alpha", "bbox", "dimensions", "location", "rotation_y"):
        np.testing.assert_allclose(getattr(again, field), getattr(labels, field), atol=5.001e-5)
    np.testing.assert_allclose(again.truncation, labels.truncation, atol=5.001e-3)
    assert (again.scores is None) == (not scored)
    if scored:
        np.testing.assert_allclose(again.scores, labels.scores, atol=5.001e-7)


@pytest.mark.parametrize(
    ("text", "with_scores", "message"),
    [
        (f"{LABEL}\n{' '.join(LABEL.split()[:14])}\n", None, r"a\.txt:2: a line must have 15 .*, got 14"),
        (f"{LABEL} 0.9\n{LABEL}\n", None, r"a\.txt:2: .*, got 15"),
        (f"{LABEL} 0.9 1\n", False, r"a\.txt:1: a line must have 15 .*, got 17"),
        (f"{LABEL}\n", True, r"a\.txt:1: a line must have 16 columns, got 15"),
        (LABEL.replace("58.49", "5x"), None, r"a\.txt:1: '5x' is not a number"),
        (f"\n{LABEL.replace('58.49', 'nan')}", None, r"a\.txt:2: numbers must be finite"),
        (LABEL.replace("0.00 1 ", "0.00 0.5 "), None, r"a\.txt:1: occlusion must be a whole number, got 0\.5"),
    ],
)
def test_bad_labels_name_file_and_line(tmp_path: Path, text: str, with_scores: bool | None, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        kitti.read_labels(path, with_scores)


def test_missing_and_binary_label_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        kitti.read_labels(tmp_path / "none.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"b\.txt: not a text file"):
        kitti.read_labels(tmp_path / "b.txt")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_calibration_survives_writing_and_reading_exactly(seed: int) -> None:
    calibration = random_calibration(seed)
    with tempfile.TemporaryDirectory() as folder:
        calibration.write(Path(folder) / "c.txt")
        again = kitti.Calibration.read(Path(folder) / "c.txt")
        lines = (Path(folder) / "c.txt").read_text().splitlines()
    for field in ("p2", "r0_rect", "velo_to_cam"):
        np.testing.assert_array_equal(getattr(again, field), getattr(calibration, field))
    assert again.image_size == calibration.image_size
    keys = [line.split(":")[0] for line in lines]  # other tools count lines instead of reading keys
    assert keys == ["P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo", "S_rect_02"]


def test_names_with_spaces_cannot_be_written(tmp_path: Path, label_file: Path) -> None:
    labels = replace(kitti.read_labels(label_file), names=("traffic cone", "Car"))
    with pytest.raises(ValueError, match="'traffic cone'"):
        kitti.write_labels(tmp_path / "x.txt", labels)
    assert not (tmp_path / "x.txt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("R0_rect:", "R1_rect:"), r"c\.txt: calibration key 'R0_rect' is missing"),
        (("Tr_velo_to_cam: 1", "Tr_velo_to_cam: x"), r"c\.txt:3: 'x' is not a number"),
        (("P2: 1", "P2:"), r"c\.txt:1: P2 must have 12 numbers, got 11"),
    ],
)
def test_bad_calibration_names_file_and_key(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    rows = {"P2": np.eye(3, 4), "R0_rect": np.eye(3), "Tr_velo_to_cam": np.eye(3, 4)}
    text = "".join(f"{key}: {' '.join(f'{v:g}' for v in matrix.ravel())}\n" for key, matrix in rows.items())
    (tmp_path / "c.txt").write_text(text.replace(*change))
    with pytest.raises(DataError, match=message):
        kitti.Calibration.read(tmp_path / "c.txt")


@settings(max_examples=20, deadline=None)
@given(points=hnp.arrays(np.float32, st.tuples(st.integers(0, 20), st.just(4))))
def test_points_survive_writing_and_reading(points: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.bin"
        kitti.write_points(path, points)
        np.testing.assert_array_equal(kitti.read_points(path), points)


def test_truncated_points_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.bin"
    path.write_bytes(bytes(30))
    with pytest.raises(DataError, match=r"p\.bin: 30 bytes .* 4-column .*cut short"):
        kitti.read_points(path)


def test_projection_agrees_with_another_library(shared: Path) -> None:
    """Frame 000008 comes with the matrices, boxes and cropped points of another library."""
    meta = json.loads((shared / "data" / "kitti_reduced" / "000008.json").read_text())
    camera = meta["images"]["CAM2"]
    size = (camera["height"], camera["width"])
    matrices = (np.array(camera["cam2img"])[:3], np.eye(3), np.array(camera["lidar2cam"])[:3])
    calibration = kitti.Calibration(*matrices, size)
    points = kitti.read_points(shared / "data" / "kitti_reduced" / "000008.bin")
    homogeneous = np.column_stack([points[:, :3], np.ones(len(points))]) @ np.array(camera["lidar2img"]).T
    pixels, depth = calibration.project(points[:, :3])
    np.testing.assert_allclose(pixels, homogeneous[:, :2] / homogeneous[:, 2:3], atol=0.02)
    assert (depth > 0).all()
    assert kitti.in_image(points, calibration).all()
    behind = points * np.array([-1, 1, 1, 1], np.float32)
    assert not kitti.in_image(behind, calibration).any()


def real_calibration(frame: kitti.Frame) -> kitti.Calibration:
    """Calibration of a KITTI frame without an image, with the image size that its camera has."""
    calibration = kitti.Calibration.read(frame.calibration)
    return calibration.with_image_size(calibration.known_image_size())


def test_crop_of_a_full_scan_is_what_projects_into_the_image(shared: Path) -> None:
    root = shared / "data" / "kitti_mini"
    frame = kitti.find_frames(root, "train")[0]
    points, calibration = kitti.read_points(frame.points), real_calibration(frame)
    pixels, depth = calibration.project(points[:, :3])
    expected = (depth > 0) & (pixels >= 0).all(axis=1) & (pixels < calibration.image_size[::-1]).all(axis=1)
    seen = kitti.in_image(points, calibration)
    np.testing.assert_array_equal(seen, expected)
    assert 10_000 < seen.sum() < 30_000


def test_real_boxes_hold_points_and_return_to_their_labels(shared: Path) -> None:
    empty = 0
    frames = [f for split in ("train", "val") for f in kitti.find_frames(shared / "data" / "kitti_mini", split)]
    for frame in frames:
        labels = kitti.read_labels(frame.labels, with_scores=False)
        calibration = real_calibration(frame)
        boxes = kitti.labels_to_boxes(labels, calibration)
        labels = labels.objects()
        back = kitti.boxes_to_labels(boxes.boxes, boxes.names, calibration)
        np.testing.assert_allclose(back.location, labels.location, atol=1e-4)
        np.testing.assert_allclose(back.dimensions, labels.dimensions, atol=1e-5)
        np.testing.assert_allclose(np.cos(back.rotation_y - labels.rotation_y), 1, atol=1e-9)
        np.testing.assert_allclose(np.cos(back.alpha - labels.alpha), 1, atol=2e-3)
        points = kitti.read_points(frame.points)
        for box in boxes.boxes:
            near = np.abs(points[:, :2] - box[:2]).max(axis=1) < box[3] / 2
            empty += not (near & (np.abs(points[:, 2] - box[2]) < box[5] / 2)).any()
    assert len(frames) == 22
    assert empty <= 2  # two far objects are labelled from the image alone


def test_projected_boxes_fit_the_annotated_ones(shared: Path) -> None:
    """The hull of a projected box fits its object closely: annotators' boxes of unoccluded objects agree to pixels."""
    differences = []
    for frame in kitti.find_frames(shared / "data" / "kitti_mini", "train"):
        labels = kitti.read_labels(frame.labels)
        calibration = real_calibration(frame)
        boxes = kitti.labels_to_boxes(labels, calibration)
        easy = boxes.difficulty == 0
        labels = labels.objects().select(easy)
        back = kitti.boxes_to_labels(boxes.boxes[easy], boxes.select(easy).names, calibration)
        differences.append(np.abs(back.bbox - labels.bbox).max(axis=1, initial=0))
    assert np.median(np.concatenate(differences)) < 3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 6))
def test_boxes_to_labels_and_back_is_exact(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.column_stack(
        [rng.uniform(-60, 60, (count, 3)), rng.uniform(0.3, 12, (count, 3)), rng.uniform(-np.pi, np.pi, count)]
    )
    calibration = random_calibration(seed)
    labels = kitti.boxes_to_labels(boxes, ["Car"] * count, calibration)
    again = kitti.labels_to_boxes(labels, calibration).boxes
    np.testing.assert_allclose(again[:, :6], boxes[:, :6], atol=1e-5)
    np.testing.assert_allclose(np.cos(again[:, 6] - boxes[:, 6]), 1, atol=1e-6)


def test_image_boxes_cut_what_lies_behind_the_camera() -> None:
    """Against the hull of many points of the solid box that lie before the camera."""
    rng = np.random.default_rng(3)
    p2 = np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]])
    location = np.array([[1.5, 1.6, 0.5], [0.0, 1.6, -8.0], [3.0, 1.5, 20.0]])
    dimensions = np.array([[1.5, 1.6, 4.0]] * 3)
    turned = np.array([1.4, 0.3, -2.0])
    bbox = kitti.image_boxes(kitti.camera_corners(dimensions, location, turned), p2)
    np.testing.assert_array_equal(bbox[1], 0)
    for i in (0, 2):
        x, y, z = (rng.uniform(-0.5, 0.5, (200_000, 3)) * dimensions[i, [2, 0, 1]]).T
        # Corners and edges rarely show up among random points: push them outwards.
        x, z = np.clip(x * 1.02, -2.0, 2.0), np.clip(z * 1.02, -0.8, 0.8)
        y = np.clip(y * 1.05, -0.75, 0.75) - 0.75
        cos, sin = np.cos(turned[i]), np.sin(turned[i])
        cloud = np.stack([cos * x + sin * z, y, -sin * x + cos * z], 1) + location[i]
        cloud = cloud[cloud[:, 2] >= kitti.NEAR]
        pixels = cloud @ p2[:, :3].T
        pixels = pixels[:, :2] / pixels[:, 2:]
        hull = np.concatenate([pixels.min(0), pixels.max(0)])
        assert (bbox[i, :2] <= hull[:2] + 1e-6).all()
        assert (bbox[i, 2:] >= hull[2:] - 1e-6).all()
        np.testing.assert_allclose(
            kitti.clip_to_image(bbox, (375, 1242))[i], np.clip(hull, 0, [1241, 374] * 2), atol=12
        )


@pytest.mark.parametrize(
    ("height", "occlusion", "truncation", "level"),
    [
        (40, 0, 0.15, 0),
        (39.99, 0, 0.15, 1),
        (40, 1, 0.15, 1),
        (40, 0, 0.16, 1),
        (25, 1, 0.30, 1),
        (25, 2, 0.30, 2),
        (25, 0, 0.50, 2),
        (24.99, 0, 0.0, -1),
        (80, 3, 0.0, -1),
        (80, 0, 0.51, -1),
    ],
)
def test_difficulty_limits(height: float, occlusion: int, truncation: float, level: int) -> None:
    row = kitti.Labels(
        names=("Car",),
        truncation=np.array([truncation]),
        occlusion=np.array([occlusion]),
        alpha=np.zeros(1),
        bbox=np.array([[10.0, 0.0, 60.0, height]]),
        dimensions=np.ones((1, 3)),
        location=np.ones((1, 3)),
        rotation_y=np.zeros(1),
    )
    assert kitti.difficulty(row).tolist() == [level]


def test_dont_care_makes_no_box(label_file: Path) -> None:
    boxes = kitti.labels_to_boxes(kitti.read_labels(label_file), random_calibration(0))
    assert boxes.names == ("Car",)
    assert boxes.boxes.dtype == np.float32


def test_a_written_frame_is_read_back(tmp_path: Path, label_file: Path) -> None:
    labels, calibration = kitti.read_labels(label_file), random_calibration(1)
    points = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    detections = replace(labels, scores=np.ones(2))
    kitti.write_frame(tmp_path / "new", "000042", points, detections, calibration)
    (frame,) = kitti.find_frames(tmp_path / "new", "trainval")
    assert frame.frame_id == "000042"
    np.testing.assert_array_equal(kitti.read_points(frame.points), points)
    np.testing.assert_array_equal(kitti.Calibration.read(frame.calibration).p2, calibration.p2)
    again = kitti.read_labels(frame.labels)
    assert again.scores is None  # a label has none
    np.testing.assert_allclose(again.bbox, labels.bbox)
    with pytest.raises(ValueError, match=r"points must be \[N, 4\], got \[9, 3\]"):
        kitti.write_frame(tmp_path / "new", "000043", points[:, :3], labels, calibration)
    assert len(kitti.find_frames(tmp_path / "new", "trainval")) == 1


def test_splits_come_from_lists(kitti_root: Path) -> None:
    assert [f.frame_id for f in kitti.find_frames(kitti_root, "val")] == ["000004", "000005"]
    with pytest.raises(DataError, match="no such split; did you mean 'train'"):
        kitti.find_frames(kitti_root, "trian")
    (kitti_root / "ImageSets" / "evil.txt").write_text("../../secret\n")
    with pytest.raises(DataError, match="is no frame id"):
        kitti.find_frames(kitti_root, "evil")
    (kitti_root / "ImageSets" / "none.txt").write_text("\n")
    with pytest.raises(DataError, match="split 'none' has no frames"):
        kitti.find_frames(kitti_root, "none")


def test_splits_are_made_where_there_are_no_lists(tmp_path: Path) -> None:
    velodyne = tmp_path / "training" / "velodyne"
    velodyne.mkdir(parents=True)
    for i in range(20):
        (velodyne / f"{i:06d}.bin").touch()
    ids = {split: [f.frame_id for f in kitti.find_frames(tmp_path, split)] for split in ("train", "val", "trainval")}
    assert len(ids["val"]) == 4
    assert sorted(ids["train"] + ids["val"]) == ids["trainval"]
    assert ids["val"] == [f.frame_id for f in kitti.find_frames(tmp_path, "val")]
    assert ids["val"] != [f.frame_id for f in kitti.find_frames(tmp_path, "val", seed=1)]
    with pytest.raises(DataError, match="split 'validation' is none of the made ones"):
        kitti.find_frames(tmp_path, "validation")
    with pytest.raises(DataError, match="testing/velodyne is missing"):
        kitti.find_frames(tmp_path, "test")
