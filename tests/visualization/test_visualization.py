"""Pictures: boxes stand where they should, the page filters by score, and bad input is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import read_page

from pcdet_ext.cli.command import main
from pcdet_ext.data import kitti
from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.files import DataError
from pcdet_ext.structures import Detections, Targets
from pcdet_ext.visualization import Scene, draw_bev, read_scene, render, write_plots
from pcdet_ext.visualization.bev import OTHER_COLOUR, bev_figure
from pcdet_ext.visualization.command import visualize
from pcdet_ext.visualization.page import page_data, write_page
from pcdet_ext.visualization.scene import box_corners, box_edges
from pcdet_ext.visualization.view import quiet

CAR = np.array([[8.0, 6.0, -1.0, 4.0, 2.0, 1.5, 0.3]], np.float32)


def detections(boxes: np.ndarray, scores: list[float]) -> Detections:
    labels = np.arange(len(boxes)) % 2
    return Detections(boxes, np.array(scores, np.float32), labels, ("Car", "Cyclist"), "7")


def scene(scores: tuple[float, ...] = (0.9,)) -> Scene:
    rng = np.random.default_rng(0)
    points = rng.uniform(-12, 12, (500, 4)).astype(np.float32)
    return Scene(
        points, Targets.of_names(CAR, ("Car",)), detections(np.repeat(CAR, len(scores), 0), list(scores)), "seven"
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=7, max_size=7))
def test_corners_equal_a_rotation_matrix(values: list[float]) -> None:
    box = np.array([values], np.float64)
    box[:, 3:6] = np.abs(box[:, 3:6]) + 0.1
    angle = box[0, 6]
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    corners = box_corners(box)[0]
    back = (corners - box[0, :3]) @ turn  # the inverse rotation, applied to rows
    np.testing.assert_allclose(np.abs(back), np.broadcast_to(box[0, 3:6] / 2, (8, 3)), atol=1e-6)
    assert len(np.unique(np.sign(back), axis=0)) == 8
    lengths = np.linalg.norm(np.diff(box_edges(box)[0, :12], axis=1)[:, 0], axis=1)
    np.testing.assert_allclose(np.sort(lengths), np.sort(np.repeat(box[0, 3:6], 4)), atol=1e-6)


def test_the_nose_points_forward() -> None:
    nose = box_edges(np.array([[1.0, 2.0, 0.0, 4.0, 2.0, 1.0, np.pi / 2]]))[0, 12]
    np.testing.assert_allclose(nose, [[1, 2, -0.5], [1, 4, -0.5]], atol=1e-6)


def pixels(path: Path, colour: tuple[int, int, int]) -> np.ndarray:
    """Places (row, column), as shares of the picture, of pixels near a colour."""
    from matplotlib.image import imread

    picture = imread(path)[..., :3] * 255
    rows, columns = np.nonzero(np.abs(picture - colour).max(-1) < 12)
    return np.stack([rows / picture.shape[0], columns / picture.shape[1]], 1)


def test_the_map_shows_the_box_where_it_is(tmp_path: Path) -> None:
    shown = Scene(scene().points, None, scene().detections)
    draw_bev(shown, tmp_path / "a.png")
    draw_bev(shown.above(0.95), tmp_path / "b.png")
    red = pixels(tmp_path / "a.png", (0xD6, 0x27, 0x28))
    inside = red[(red[:, 1] < 0.86) | (red[:, 0] > 0.2)]  # the legend is in the upper right corner
    assert len(inside) > 50
    # x = 8 of about ±14 is right of the middle, y = 6 above it
    assert 0.65 < np.median(inside[:, 1]) < 0.95
    assert 0.1 < np.median(inside[:, 0]) < 0.4
    assert len(pixels(tmp_path / "b.png", (0xD6, 0x27, 0x28))) == 0


def test_the_map_shows_labels_of_classes_that_the_detector_does_not_know_in_grey() -> None:
    from matplotlib.colors import to_hex

    moved = CAR + np.array([0, -9, 0, 0, 0, 0, 0], np.float32)
    truth = Targets.of_names(np.concatenate([CAR, moved]), ("Car", "Van"))
    found = scene().detections  # of a detector of cars and cyclists
    assert legend(Scene(scene().points, truth, found)) == ["ground truth (1)", "other classes (1)", "Car (1)"]
    assert legend(Scene(scene().points, truth)) == ["ground truth (2)"]
    (axes,) = bev_figure(Scene(scene().points, truth, found)).axes
    grey = [lines for lines in axes.collections if to_hex(lines.get_edgecolor()[0]) == OTHER_COLOUR]
    places = np.concatenate([path.vertices for lines in grey for path in lines.get_paths()])
    assert len(grey) == 2  # the outline, and the line to the front
    assert np.abs(places - moved[0, :2]).max() < 3


def legend(shown: Scene) -> list[str]:
    """What the legend of a map says."""
    (axes,) = bev_figure(shown).axes
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize(
    "empty", [Scene(np.zeros((0, 4), np.float32)), Scene(np.zeros((1, 4), np.float32), Targets.of_names(CAR[:0], ()))]
)
def test_nothing_to_see_is_no_error(tmp_path: Path, empty: Scene) -> None:
    draw_bev(empty, tmp_path / "a.png")
    write_page(empty, tmp_path / "a.html")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_view_is_drawn_without_a_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    from matplotlib.image import imread

    try:
        render(scene(), tmp_path / "a.png", size=(320, 240))
    except RuntimeError as error:
        if "mesa-vulkan-drivers" not in str(error):
            raise
        pytest.skip(str(error))
    assert capfd.readouterr() == ("", "")  # notices of the renderer are nobody's business
    picture = imread(tmp_path / "a.png")
    assert picture.shape[:2] == (240, 320)
    assert picture[..., 0].std() > 0.01


def write_frame(root: Path) -> Path:
    calibration = kitti.Calibration(
        np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]]),
        np.eye(3),
        np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]),
        (375, 1242),
    )
    labels = kitti.boxes_to_labels(np.array([[15.0, 1, -1, 4, 2, 1.5, 0.3]]), ("Car",), calibration)
    kitti.write_frame(root, "000001", scene().points, labels, calibration)
    return root / "training/velodyne/000001.bin"


def test_files_of_one_frame_find_each_other(tmp_path: Path) -> None:
    points = write_frame(tmp_path)
    from_points = read_scene(points)
    labels = tmp_path / "training/label_2/000001.txt"
    from_labels = read_scene(None, labels)
    assert len(from_points.points) == 500
    assert len(from_labels.points) == 0
    for read in (from_points, from_labels):
        np.testing.assert_allclose(read.truth.boxes, [[15.0, 1, -1, 4, 2, 1.5, 0.3]], atol=0.02)


class Curves(Result):
    """A result with a diagram, one curve of which is not finite."""

    def plots(self) -> list[Plot]:
        recall = np.linspace(0, 1, 5)
        curves = {"easy": (recall, 1 - recall), "hard": (recall, recall * np.nan)}
        return [Plot("Car_3d", "recall", "precision", curves)]


def test_diagrams_of_a_result_are_written(tmp_path: Path) -> None:
    from matplotlib.image import imread

    (path,) = write_plots(Curves(0.5), tmp_path / "new")
    assert path == tmp_path / "new" / "Car_3d.png"
    assert imread(path).std() > 0.01
    assert write_plots(Result(0.5), tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_results_of_any_codebase_are_shown(tmp_path: Path) -> None:
    points = write_frame(tmp_path)
    line = (tmp_path / "training/label_2/000001.txt").read_text().strip()
    results = tmp_path / "results/000001.txt"
    results.parent.mkdir()
    results.write_text(f"{line} 0.75\nDontCare -1 -1 -10 1 1 2 2 -1 -1 -1 -1000 -1000 -1000 -10 0.1\n")
    assert visualize([points], out=tmp_path / "out", results=results.parent) == [tmp_path / "out/000001.png"]
    shown = read_scene(points, results=results)
    assert shown.detections.names == ["Car"]
    assert shown.detections.scores.tolist() == [0.75]
    results.unlink()
    with pytest.raises(ValueError, match=r"results/000001\.txt: no such file"):
        visualize([points], out=tmp_path / "out", results=results.parent)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.bin", "--out", "a.png"], 2, "missing.bin: no such file"),
        (["FRAME", "--out", "a.jpg"], 2, "a picture of style 'map' is a .png file"),
        (["FRAME", "FRAME", "--out", "a.png"], 2, "several frames need a folder"),
        (["alone.txt", "--out", "a.png"], 2, "alone.txt: no calibration file found"),
        (["FRAME"], 1, "no screen"),
        (["bad.ckpt", "FRAME", "--out", "a.png"], 1, "bad.ckpt"),
    ],
)
def test_bad_input_is_named_in_one_line(
    tmp_path: Path, root: Path, arguments: list[str], code: int, message: str
) -> None:
    frame = write_frame(tmp_path / "kitti")
    (tmp_path / "alone.txt").write_text("Car 0 0 0 1 1 2 2 1 1 1 1 1 1 0\n")
    (tmp_path / "bad.ckpt").write_text("no checkpoint")
    arguments = [str(frame) if a == "FRAME" else a for a in arguments]
    done = subprocess.run(
        [sys.executable, str(root / "tools/visualize.py"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_out_and_counted(tmp_path: Path, bad: float) -> None:
    good = scene((0.9,))
    points = np.concatenate([good.points, np.full((3, 4), 1, np.float32)])
    points[-3:, 1] = bad
    boxes = np.repeat(CAR, 2, 0)
    boxes[1, 3] = bad
    broken = Scene(points, good.truth, detections(boxes, [0.9, 0.8]), "seven")
    drawn = broken.finite()
    assert drawn.title == "seven (not finite, left out: 3 points, 1 boxes)"
    assert (len(drawn.points), len(drawn.detections)) == (len(good.points), 1)
    assert good.finite().title == "seven"
    draw_bev(broken, tmp_path / "broken.png")
    draw_bev(good, tmp_path / "good.png")
    red = (214, 39, 40)
    np.testing.assert_allclose(
        np.median(pixels(tmp_path / "broken.png", red), 0), np.median(pixels(tmp_path / "good.png", red), 0), atol=0.05
    )
    (frame,) = page_data([broken])[0]["frames"]
    assert frame["points"]["count"] == len(good.points)
    assert np.isfinite([*frame["points"]["low"], *frame["points"]["size"]]).all()
    assert len(frame["boxes"]) == 2  # a labelled one and a detection


def test_what_a_failing_renderer_prints_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(1, b"no driver\n")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"), quiet():
        fail()
    assert capfd.readouterr() == ("", "no driver\n")
    with quiet():
        os.write(2, b"all is well\n")
    assert capfd.readouterr() == ("", "")


def test_columns_of_headless_files_are_stated(tmp_path: Path) -> None:
    points = np.arange(20, dtype=np.float32).reshape(4, 5)
    points.tofile(tmp_path / "five.bin")
    columns = ["x", "y", "z", "intensity", "timestamp"]
    read = read_scene(tmp_path / "five.bin", features=columns)
    np.testing.assert_array_equal(read.points, points)
    assert list(read.point_features) == columns
    np.save(tmp_path / "wide.npy", points)
    np.testing.assert_array_equal(read_scene(tmp_path / "wide.npy", features=columns[:4]).points, points[:, :4])
    with pytest.raises(DataError, match=r"wide\.npy: has 5 columns, not the 6 of x, y, z, intensity, timestamp, ring"):
        read_scene(tmp_path / "wide.npy", features=[*columns, "ring"])
    with pytest.raises(DataError, match=r"five\.bin: 80 bytes are no whole number of 6-column float32 points"):
        read_scene(tmp_path / "five.bin", features=[*columns, "ring"])
    picture = tmp_path / "a.png"
    main(["visualize", str(tmp_path / "five.bin"), "--features", ",".join(columns), "--out", str(picture)])
    assert picture.stat().st_size > 0


def test_several_files_are_played_in_one_page(tmp_path: Path) -> None:
    frames = [write_frame(tmp_path / name) for name in "ab"]
    assert visualize(frames, out=tmp_path / "tour.html") == [tmp_path / "tour.html"]
    assert [frame["title"] for frame in read_page(tmp_path / "tour.html")[0]["frames"]] == ["000001", "000001"]
