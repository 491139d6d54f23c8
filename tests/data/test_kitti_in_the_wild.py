"""Data in KITTI's layout that is not KITTI's: other cameras, images, mountings, key names, and label columns."""

from __future__ import annotations

import io
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.config import ConfigError
from pcdet_ext.data import kitti
from pcdet_ext.data.index import index_path, read_index
from pcdet_ext.files import DataError

CAR = "Car 0.00 0 1.85 387.63 181.54 423.81 243.12 1.67 1.87 3.69 -1.53 2.39 18.49 1.57"
OTHER = "Pedestrian 0.00 0 0.2 100 150 130 230 1.7 0.6 0.8 4.0 1.9 14.0 0.4"
LARGE_CAMERA = np.array([[1400.0, 0, 960, 0], [0, 1400, 540, 0], [0, 0, 1, 0]])
FORWARD = np.array([[0.0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27]])  # LiDAR x forward, as KITTI's
RIGHT_FORWARD = np.array([[1.0, 0, 0, 0], [0, 0, -1, -0.08], [0, 1, 0, -0.27]])  # LiDAR x right, y forward
KITTI_P2 = np.array([[721.5377, 0, 609.5593, 44.85728], [0, 721.5377, 172.854, 0.2163791], [0, 0, 1, 0.002745884]])
KINDS = ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"]
SPAN = [-40, -40, -3, 40, 40, 3]


def write_raw_frame(root: Path, calibration: kitti.Calibration, lines: tuple[str, ...] = (CAR, OTHER)) -> Path:
    """One frame with a fan of points before the camera and 20 in each labelled box."""
    label = root / "training" / "label_2" / "000000.txt"
    label.parent.mkdir(parents=True)
    label.write_text("".join(line + "\n" for line in lines))
    calibration.write(root / "training" / "calib" / "000000.txt")
    boxes = kitti.labels_to_boxes(kitti.read_labels(label, with_scores=False), calibration).boxes
    rng = np.random.default_rng(0)
    pixels = rng.uniform([0, 0], [1920, 1080], (500, 2))
    depth = rng.uniform(5, 35, 500)
    camera = np.column_stack([(pixels - LARGE_CAMERA[:2, 2]) / 1400 * depth[:, None], depth])
    inside = (boxes[:, None, :3] + rng.uniform(-0.1, 0.1, (len(boxes), 20, 3))).reshape(-1, 3)
    xyz = np.concatenate([calibration.camera_to_lidar(camera), inside])
    points = np.column_stack([xyz, rng.random(len(xyz))]).astype(np.float32)
    kitti.write_points(root / "training" / "velodyne" / "000000.bin", points)
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("000000\n")
    return root


def write_image(path: Path, height: int, width: int, kind: str) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new("RGB", (width, height)).save(path, format=kind)


def dataset(root: Path, **options: object) -> kitti.KittiDataset:
    return kitti.KittiDataset(
        root=str(root), **{"classes": ["Car", "Pedestrian"], "point_cloud_range": SPAN, **options}
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a.png", "PNG"), ("a.PNG", "PNG"), ("a.img", "PNG")),
        *(("a.jpg", "JPEG"), ("a.jpeg", "JPEG"), ("a.JPG", "JPEG")),
        *(("a.bmp", "BMP"), ("a.tif", "TIFF"), ("a.WEBP", "WEBP"), ("a.ppm", "PPM")),
    ],
)
def test_the_size_comes_from_an_image_of_any_ending(tmp_path: Path, name: str, kind: str) -> None:
    write_raw_frame(tmp_path, kitti.Calibration(LARGE_CAMERA, np.eye(3), FORWARD))
    write_image(tmp_path / "training" / "image_2" / f"000000{Path(name).suffix}", 1080, 1920, kind)
    kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    sample = dataset(tmp_path)[0]
    assert sample.calibration.image_size == (1080, 1920)
    assert len(sample.points) > 450
    assert len(sample.targets) == 2


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(KINDS), st.booleans())
def test_image_sizes_equal_those_of_another_reader(height: int, width: int, kind: str, progressive: bool) -> None:
    image = pytest.importorskip("PIL.Image")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        options = {"progressive": progressive, "comment": b"\xff\xc0 not a header"} if kind == "JPEG" else {}
        mode = "RGB" if progressive else "L"
        image.new(mode, (width, height)).save(path, format=kind, **options)
        assert kitti.read_image_size(path) == (height, width)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 60), st.binary(max_size=8))
def test_damaged_images_are_named(kind: str, kept: int, tail: bytes) -> None:
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.new("L", (300, 200)).save(stream, format=kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "000001.png"
        path.write_bytes(stream.getvalue()[:kept] + tail)
        try:
            size, message = kitti.read_image_size(path), str(path)
        except DataError as error:
            size, message = None, str(error)
        assert size is None or min(size) > 0
        assert str(path) in message


def test_a_size_that_nothing_states_is_never_assumed(tmp_path: Path) -> None:
    write_raw_frame(tmp_path, kitti.Calibration(LARGE_CAMERA, np.eye(3), FORWARD))
    (summary,) = kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    assert "image size: no image; data.image_size must state it" in str(summary)
    with pytest.raises(DataError, match=r"velodyne/000000\.bin: the size of its image is not known.*data\.image_size"):
        dataset(tmp_path)
    with pytest.raises(DataError, match=r"data\.image_size: \[height, width\]"):
        dataset(tmp_path, fov_only=False).evaluator()
    assert len(dataset(tmp_path, fov_only=False)[0].points) > 450
    assert len(dataset(tmp_path, image_size=[1080, 1920])[0].points) > 450
    assert len(dataset(tmp_path, image_size=[600, 1920])[0].points) < 350
    with pytest.raises(DataError, match=r"calib/000000\.txt: P2 is not for images of 1242 × 375 pixels.*image_size"):
        dataset(tmp_path, image_size=[375, 1242])[0]
    with pytest.raises(ValueError, match="image_size must be height and width"):
        dataset(tmp_path, image_size=[1080, 0])


def test_frames_without_points_in_view_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calibration = kitti.Calibration(LARGE_CAMERA, np.eye(3), FORWARD, (1080, 1920))
    write_raw_frame(tmp_path, calibration)
    points = kitti.read_points(tmp_path / "training" / "velodyne" / "000000.bin")
    kitti.write_points(tmp_path / "training" / "velodyne" / "000000.bin", points * np.float32(-1))
    kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    test = dataset(tmp_path)
    assert (len(test[0].points), len(test[0].points)) == (0, 0)
    assert test.counts["samples without points in view"] == 2
    assert caplog.text.count("frame 000000 has no point in view") == 1


def test_a_stated_size_counts_before_that_of_an_image(tmp_path: Path) -> None:
    write_raw_frame(tmp_path, kitti.Calibration(LARGE_CAMERA, np.eye(3), FORWARD))
    write_image(tmp_path / "training" / "image_2" / "000000.jpg", 270, 480, "JPEG")  # a thumbnail
    (summary,) = kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    assert "P2 is not for images of this size" in str(summary)
    with pytest.raises(DataError, match=r"P2 is not for images of 480 × 270 pixels.*data\.image_size"):
        dataset(tmp_path)[0]
    assert dataset(tmp_path, image_size=[1080, 1920])[0].calibration.image_size == (1080, 1920)
    (tmp_path / "training" / "image_2" / "000000.jpg").write_bytes(b"\x89PNG cut short")
    with pytest.raises(DataError, match=r"image_2/000000\.jpg: damaged image \(no PNG header\)"):
        kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    (tmp_path / "training" / "image_2" / "000000.jpg").write_bytes(b"another kind")
    (summary,) = kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    assert "image size: .jpg image that is no PNG, JPEG" in str(summary)
    with pytest.raises(DataError, match=r"image_2 holds none that can be read.*data\.image_size"):
        dataset(tmp_path)


def test_kittis_own_cameras_are_known_by_their_focal_length(shared: Path) -> None:
    sizes = set()
    for path in sorted((shared / "data" / "kitti_mini" / "training" / "calib").glob("*.txt")):
        calibration = kitti.Calibration.read(path)
        height, width = calibration.known_image_size()
        assert abs(calibration.p2[0, 2] - width / 2) < 25
        assert abs(calibration.p2[1, 2] - height / 2) < 20
        sizes.add((height, width))
    assert sizes == {(375, 1242), (370, 1224), (374, 1238), (376, 1241)}
    assert kitti.Calibration(LARGE_CAMERA, np.eye(3), FORWARD).known_image_size() is None


def rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rotation about x, then y, then z."""
    a, b, c = (np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) for t in (roll, pitch, yaw))
    x, y, z = np.eye(3), np.eye(3), np.eye(3)
    x[1:, 1:], y[np.ix_([2, 0], [2, 0])], z[:2, :2] = a, b, c
    return z @ y @ x


@settings(max_examples=60, deadline=None)
@given(
    yaw=st.floats(-np.pi, np.pi),
    roll=st.floats(-0.3, 0.3),
    pitch=st.floats(-0.3, 0.3),
    seed=st.integers(0, 1000),
)
def test_headings_follow_the_calibration(yaw: float, roll: float, pitch: float, seed: int) -> None:
    """A box points where its front lies, whichever way the LiDAR is mounted; and there and back is exact."""
    rng = np.random.default_rng(seed)
    mounted = FORWARD[:, :3] @ rotation(roll, pitch, yaw)
    calibration = kitti.Calibration(
        LARGE_CAMERA, np.eye(3), np.column_stack([mounted, rng.normal(size=3)]), (1080, 1920)
    )
    turns = rng.uniform(-np.pi, np.pi, 5)
    camera = np.column_stack([np.cos(turns), np.zeros(5), -np.sin(turns)])
    ahead = calibration.camera_to_lidar(camera) - calibration.camera_to_lidar(np.zeros((1, 3)))
    heading = calibration.heading_of(turns)
    np.testing.assert_allclose(np.cos(heading - np.arctan2(ahead[:, 1], ahead[:, 0])), 1, atol=1e-12)
    np.testing.assert_allclose(np.cos(calibration.rotation_y_of(heading) - turns), 1, atol=1e-12)
    boxes = np.column_stack([rng.uniform(-30, 30, (5, 3)), rng.uniform(0.5, 5, (5, 3)), heading])
    labels = kitti.boxes_to_labels(boxes, ["Car"] * 5, calibration)
    np.testing.assert_allclose(kitti.labels_to_boxes(labels, calibration).boxes[:, :6], boxes[:, :6], atol=1e-4)


def test_a_lidar_with_y_forward_has_headings_along_y(tmp_path: Path) -> None:
    for p2 in (LARGE_CAMERA, KITTI_P2):  # with another mounting KITTI's rule does not hold for KITTI's camera either
        calibration = kitti.Calibration(p2, np.eye(3), RIGHT_FORWARD, (1080, 1920))
        path = tmp_path / "a.txt"
        # rotation_y = -π/2 looks along the camera's z axis, straight ahead; 0 to its right
        rows = [CAR.replace(" 1.57", f" {turn}") for turn in (-np.pi / 2, 0.0)]
        path.write_text("\n".join(rows))
        boxes = kitti.labels_to_boxes(kitti.read_labels(path), calibration).boxes
        np.testing.assert_allclose(boxes[:, 6], [np.pi / 2, 0.0], atol=1e-6)
        np.testing.assert_allclose(boxes[:, :2], [[-1.53, 18.76]] * 2, atol=1e-5)


def test_kittis_own_headings_are_the_published_ones(shared: Path) -> None:
    for path in sorted((shared / "data" / "kitti_mini" / "training" / "label_2").glob("*.txt")):
        labels = kitti.boxed(kitti.read_labels(path))
        calibration = kitti.Calibration.read(path.parent.parent / "calib" / path.name)
        heading = kitti.labels_to_boxes(labels, calibration).boxes[:, 6]
        np.testing.assert_allclose(np.cos(heading + labels.rotation_y + np.pi / 2), 1, atol=1e-12)


@pytest.mark.parametrize("word", ["DontCare", "dontcare", "DONTCARE", "Dontcare"])
def test_regions_without_labels_are_no_class_in_any_case(tmp_path: Path, word: str) -> None:
    region = f"{word} -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"
    calibration = kitti.Calibration(LARGE_CAMERA, np.eye(3), FORWARD, (1080, 1920))
    write_raw_frame(tmp_path, calibration, (CAR, region))
    (summary,) = kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    assert summary.objects == {"Car": 1}
    (info,) = read_index(index_path(tmp_path / "pcdet_ext", "train"))
    assert info.names == ("Car",)


def test_objects_without_a_box_in_space_are_left_out_and_counted(tmp_path: Path) -> None:
    flat = "Van 0.00 0 -10 503.89 109.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"
    write_raw_frame(tmp_path, kitti.Calibration(LARGE_CAMERA, np.eye(3), FORWARD, (1080, 1920)), (CAR, flat))
    (summary,) = kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    assert summary.objects == {"Car": 1}
    assert "Van: 0 of 0 count, the others do not: 1 (no box in space)" in str(summary)


def test_exported_labels_without_2d_boxes_are_told_to_count_for_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flat = [line.replace("387.63 181.54 423.81 243.12", "0 0 0 0").replace("100 150 130 230", "0 0 0 0")
            for line in (CAR, OTHER)]  # fmt: skip
    write_raw_frame(tmp_path, kitti.Calibration(LARGE_CAMERA, np.eye(3), FORWARD, (1080, 1920)), tuple(flat))
    (summary,) = kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    assert "Car: 0 of 1 count, the others do not: 1 (2-D box lower than 25 pixels)" in str(summary)
    augment = [{"name": "GroundTruthSampling", "groups": {"Car": 4}, "min_points": 2}]
    training = dataset(tmp_path, training=True, augment=augment)
    note = "ground-truth sampling: 0 of 1 Car can be drawn; 1 are of a difficulty in skip_difficulty [-1]"
    assert training.notes == [note]
    assert note in caplog.text
    test = dataset(tmp_path)
    evaluator = test.evaluator()
    evaluator.add(test[0], detections_of(test[0].targets.boxes))
    table = evaluator.result().table()
    assert "Car: 1 labelled, of which count 0 easy, 0 moderate, 0 hard; never count: 1 (2-D box lower than" in table


def detections_of(boxes: np.ndarray, names: tuple[str, ...] = ("Car", "Pedestrian")) -> object:
    from pcdet_ext.structures import Detections

    return Detections(boxes, np.full(len(boxes), 0.9, np.float32), np.arange(len(boxes)) % len(names), names)


@st.composite
def label_lines(draw: st.DrawFn) -> list[str]:
    """Lines of a label file with random numbers."""
    lines = []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(["Car", "dontcare", "Fork_lift", "Ünicode", "3D"]))
        numbers = [draw(st.floats(-1e3, 1e3).map(lambda v: round(v, 3))) for _ in range(13)]
        lines.append(" ".join(map(str, [name, numbers[0], draw(st.integers(-1, 3)), *numbers[1:]])))
    return lines


def read_text(lines: list[str], with_scores: bool | None = None) -> kitti.Labels:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.txt").write_text("\n".join(lines), encoding="utf-8")
        return kitti.read_labels(Path(folder) / "a.txt", with_scores)


def same(a: kitti.Labels, b: kitti.Labels) -> bool:
    columns = ("truncation", "occlusion", "alpha", "bbox", "dimensions", "location", "rotation_y")
    return a.names == b.names and all(np.array_equal(getattr(a, c), getattr(b, c)) for c in columns)


@settings(max_examples=40, deadline=None)
@given(lines=label_lines(), extra=st.sampled_from(["0.73", "12", "-1"]), first=st.integers(0, 900))
def test_further_columns_change_nothing(lines: list[str], extra: str, first: int) -> None:
    """A 16th column of labels, and the frame and track numbers that tracking labels begin with."""
    plain = read_text(lines)
    longer = read_text([f"{line} {extra}" for line in lines], with_scores=False)
    assert same(longer, plain)
    assert longer.scores is None
    assert (longer.notes == ("labels: column 16 is not used",)) == bool(lines)
    tracked = read_text([f"{first} {track} {line}" for track, line in enumerate(lines)])
    assert same(tracked, plain)
    if lines:
        assert tracked.track_ids.tolist() == list(range(len(lines)))
        assert tracked.notes == ("labels: rows of the tracking benchmark",)
    scored = read_text([f"{first} -1 {line} {extra}" for line in lines], with_scores=True)
    assert scored.scores.tolist() == [float(extra)] * len(lines)


def test_a_label_file_of_a_whole_sequence_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0000.txt"
    path.write_text(f"0 1 {CAR}\n7 1 {CAR}\n")
    with pytest.raises(DataError, match=r"0000\.txt: rows of 2 frames \(0 to 7\).*one file per frame"):
        kitti.read_labels(path)
    path.write_text(f"0 1 {CAR} 0.5 0.5\n")
    with pytest.raises(DataError, match=r"0000\.txt:1: a line must have 17 \(label\) or 18 \(result\) columns, got 19"):
        kitti.read_labels(path)


def test_track_ids_reach_the_samples(tmp_path: Path) -> None:
    calibration = kitti.Calibration(LARGE_CAMERA, np.eye(3), FORWARD, (1080, 1920))
    write_raw_frame(tmp_path, calibration, (f"5 31 {CAR}", f"5 32 {OTHER}"))
    (summary,) = kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    assert "labels: rows of the tracking benchmark (in 1 of 1 frames)" in str(summary)
    assert dataset(tmp_path)[0].targets.track_ids.tolist() == [31, 32]


def numbers(matrix: np.ndarray) -> str:
    return " ".join(f"{v:.9g}" for v in matrix.ravel())


@pytest.mark.parametrize(
    ("p2", "r0_rect", "velo_to_cam"),
    [
        ("P2:", "R0_rect:", "Tr_velo_to_cam:"),
        ("P2:", "R_rect", "Tr_velo_cam"),  # the tracking benchmark has no colons there
        ("P_rect_02:", "R_rect_00:", "Tr_velo_to_cam:"),
        ("P2: ", "R_rect :", "Tr_velo_cam : "),
        ("P2:", None, "Tr:"),  # odometry
    ],
)
def test_calibrations_with_other_key_names(tmp_path: Path, p2: str, r0_rect: str | None, velo_to_cam: str) -> None:
    path = tmp_path / "c.txt"
    rectify = np.eye(3) if r0_rect is None else rotation(0.01, -0.02, 0.005)
    text = f"P0: {numbers(np.eye(3, 4))}\n{p2} {numbers(KITTI_P2)}\n"
    text += "" if r0_rect is None else f"{r0_rect} {numbers(rectify)}\n"
    path.write_text(f"{text}{velo_to_cam} {numbers(FORWARD)}\nTr_imu_velo {numbers(np.eye(3, 4))}\n\n")
    calibration = kitti.Calibration.read(path)
    np.testing.assert_allclose(calibration.p2, KITTI_P2)
    np.testing.assert_allclose(calibration.r0_rect, rectify, atol=1e-8)
    np.testing.assert_allclose(calibration.velo_to_cam, FORWARD)
    other = [
        key for key in ("R_rect", "R_rect_00", "Tr_velo_cam", "Tr", "P_rect_02") if f"{key} " in text.replace(":", " ")
    ]
    assert all(any(f"{key} read as" in note for note in calibration.notes) for key in other)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"R_rect: {numbers(rotation(0.1, 0, 0))}", r"c\.txt:4: R_rect stands here, and R0_rect with other numbers"),
        ("S_rect_02: 1242", r"c\.txt:4: S_rect_02 must have 2 numbers, got 1"),
        ("S_rect_02: 1242 0", "image_size must be height and width"),
    ],
)
def test_calibrations_that_contradict_themselves_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.txt"
    path.write_text(
        f"P2: {numbers(KITTI_P2)}\nR0_rect: {numbers(np.eye(3))}\nTr_velo_to_cam: {numbers(FORWARD)}\n{line}\n"
    )
    with pytest.raises(DataError, match=message):
        kitti.Calibration.read(path)


@pytest.mark.parametrize(
    ("p2", "r0_rect", "velo_to_cam", "message"),
    [
        (KITTI_P2, np.zeros((3, 3)), FORWARD, "r0_rect must hold a rotation"),
        (KITTI_P2, np.diag([1.0, 1, -1]), FORWARD, "r0_rect must hold a rotation"),
        (KITTI_P2, np.eye(3), FORWARD * 2, "velo_to_cam must hold a rotation"),
        (KITTI_P2, np.eye(3), np.eye(3, 4), "the camera looks along the LiDAR's z axis"),
        (-KITTI_P2, np.eye(3), FORWARD, "p2 must have positive focal lengths"),
        (KITTI_P2 * np.nan, np.eye(3), FORWARD, "finite"),
    ],
)
def test_degenerate_calibrations_are_refused(
    tmp_path: Path, p2: np.ndarray, r0_rect: np.ndarray, velo_to_cam: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kitti.Calibration(p2, r0_rect, velo_to_cam)
    path = tmp_path / "c.txt"
    path.write_text(f"P2: {numbers(p2)}\nR0_rect: {numbers(r0_rect)}\nTr_velo_to_cam: {numbers(velo_to_cam)}\n")
    with pytest.raises(DataError, match=r"c\.txt"):
        kitti.Calibration.read(path)


def test_a_tilted_camera_is_noted(tmp_path: Path) -> None:
    tilted = np.column_stack([FORWARD[:, :3] @ rotation(0, 0.3, 0), FORWARD[:, 3]])
    write_raw_frame(tmp_path, kitti.Calibration(LARGE_CAMERA, np.eye(3), tilted, (1080, 1920)))
    (summary,) = kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    assert "camera tilted by over 10°" in str(summary)


def test_any_class_is_measured_with_an_overlap_of_ones_own(tmp_path: Path) -> None:
    lines = [CAR.replace("Car", "Forklift"), OTHER]
    write_raw_frame(tmp_path, kitti.Calibration(LARGE_CAMERA, np.eye(3), FORWARD, (1080, 1920)), tuple(lines))
    kitti.prepare_kitti(tmp_path, splits=["train"], progress=False)
    test = dataset(tmp_path, classes=["Forklift", "Pedestrian"])
    sample = test[0]
    found = replace(detections_of(sample.targets.boxes), class_names=test.classes)
    for options, least in (({}, "0.50"), ({"overlap": {"Forklift": 0.3}}, "0.30")):
        evaluator = test.evaluator(options)
        evaluator.add(sample, found)
        evaluator.add(sample, found)  # counts once
        result = evaluator.result()
        assert result.frames == 1
        assert result.counts["Forklift"].labels == result.counts["Forklift"].detections == 1
        assert set(result.results["overlap_0_7"]) == {"Forklift", "Pedestrian"}
        assert f"Forklift        3d    {least}" in result.table()
        assert (
            f"not a class of the benchmark, measured by its rules with an overlap of {float(least):g}" in result.table()
        )
        expected = np.mean([result.ap(name, "3d") for name in test.classes])
        assert result.score == pytest.approx(expected)
        assert result.results["overlap_0_7"]["Forklift"]["3d"].r11[1] > 9  # the most that one object can give
    for options, message in (
        ({"overlap": {"Car": 0.5}}, "'Car' is not one of the classes"),
        ({"overlap": {"Pedestrian": 0.4}}, "KITTI itself says what 'Pedestrian' needs"),
        ({"overlap": {"Forklift": 0}}, "must be above 0"),
        ({"overlaps": {}}, "did you mean 'overlap'"),
    ):
        with pytest.raises(ConfigError, match=message):
            test.evaluator(options)
