"""The inference API: every kind of input, and what is wrong with bad ones."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pcdet_ext
from pcdet_ext import checkpoint, config
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import ConfigError
from pcdet_ext.data.kitti import write_points
from pcdet_ext.export.check import read_clouds
from pcdet_ext.files import DataError
from pcdet_ext.inference import Detector, with_headings_in_range
from pcdet_ext.structures import Detections, PointBatch, Targets

SMALL = (
    "data.point_cloud_range=[0, -6.4, -3, 12.8, 6.4, 1]",
    "model.voxel_size=[0.4, 0.4, 4]",
    "model.head.score_threshold=0.0",
    "model.bev_backbone.num_filters=[8, 8, 8]",
    "model.bev_backbone.num_upsample_filters=[8, 8, 8]",
)


@pytest.fixture(scope="module")
def detector(root: Path) -> Detector:
    """A small untrained detector whose scores and boxes depend on the points."""
    torch.manual_seed(0)
    return pcdet_ext.build(root / "configs" / "kitti" / "demo.yaml", SMALL, device="cpu")


def cloud(seed: int = 0, size: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform([0, -5, -2, 0], [10, 5, 0, 1], (size, 4)).astype(np.float32)


def same(a: Detections, b: Detections) -> None:
    assert len(a) > 0
    np.testing.assert_allclose(np.asarray(a.boxes), np.asarray(b.boxes), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.asarray(a.scores), np.asarray(b.scores), rtol=1e-4, atol=1e-5)
    assert list(a.labels) == list(b.labels)


def test_arrays_tensors_and_files_give_the_same(detector: Detector, tmp_path: Path) -> None:
    points = cloud()
    expected = detector.detect(points)
    assert isinstance(expected.boxes, np.ndarray)
    assert expected.names == ["Car"] * len(expected)
    np.save(tmp_path / "a.npy", points)
    write_points(tmp_path / "a.bin", points)
    for path in (tmp_path / "a.npy", str(tmp_path / "a.bin")):
        found = detector.detect(path)
        same(found, expected)
        assert found.frame_id == str(path)
    of_tensor = detector.detect(torch.from_numpy(points))
    assert isinstance(of_tensor.boxes, torch.Tensor)
    same(of_tensor, expected)
    same(detector.detect(points.astype(np.float64)), expected)


def test_further_columns_are_not_used(detector: Detector) -> None:
    points = cloud()
    wide = np.column_stack([points, np.full(len(points), 1e6, np.float32)])
    same(detector.detect(wide), detector.detect(points))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_lists_keep_their_order(detector: Detector, batch_size: int) -> None:
    clouds = [cloud(0), np.zeros((0, 4), np.float32), cloud(1), cloud(2)]
    found = detector.detect(clouds, batch_size=batch_size)
    assert [len(f) > 0 for f in found] == [True, False, True, True]
    for i in (0, 2, 3):
        same(found[i], detector.detect(clouds[i]))
    assert detector.detect([]) == []


def test_empty_clouds_have_no_detections(detector: Detector) -> None:
    for points in (np.zeros((0, 4), np.float32), np.full((10, 4), np.nan, np.float32)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = detector.detect(points)
        assert (len(found), found.boxes.shape, found.class_names) == (0, (0, 7), ("Car",))


def test_points_outside_of_the_range_do_not_fail(detector: Detector) -> None:
    far = cloud() + np.float32([500, 0, 0, 0])
    assert isinstance(detector.detect(far), Detections)


def test_points_that_are_not_finite_are_dropped_and_counted(detector: Detector) -> None:
    points = cloud()
    expected = detector.detect(points)
    bad = np.insert(points, [5, 700], [[np.nan, 0, 0, 0], [1, 2, np.inf, 0]], axis=0)
    before = detector.dropped_points
    with pytest.warns(UserWarning, match="2 points are NaN or infinite") as caught:
        same(detector.detect(bad), expected)
    assert caught[0].filename == __file__
    assert detector.dropped_points == before + 2


def test_scores_are_filtered(detector: Detector) -> None:
    with pytest.raises(TypeError, match="score_threshold must be a number or None, got 'a'"):
        detector.detect(cloud(), score_threshold="a")  # type: ignore[arg-type]
    everything = detector.detect(cloud())
    middle = float(np.median(everything.scores))
    found = detector.detect(cloud(), score_threshold=middle)
    assert len(found) == int((everything.scores >= middle).sum()) < len(everything)


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        (np.zeros((5, 3)), ValueError, r"points \[N, 4\] \(x, y, z, intensity\), got \[5, 3\]"),
        (np.zeros(4), ValueError, r"got \[4\]"),
        ({"points": 1}, TypeError, "got dict"),
        ("nowhere.bin", DataError, "nowhere.bin"),
    ],
)
def test_bad_input_is_named(detector: Detector, points: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        detector.detect(points)


def test_cut_file_is_named(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "cut.bin").write_bytes(bytes(35))
    with pytest.raises(DataError, match=r"cut\.bin"):
        detector.detect(tmp_path / "cut.bin")


def test_load_gives_the_detector_back(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.write(path, {"config": detector.config.plain(), "model": detector.model.state_dict()})
    same(pcdet_ext.load(path, device="cpu").detect(cloud()), detector.detect(cloud()))
    strict = pcdet_ext.load(path, device="cpu", overrides=["model.head.score_threshold=1.0"])
    assert len(strict.detect(cloud())) == 0
    with pytest.raises(ConfigError, match=r"model\.head\.score_treshold.*did you mean 'score_threshold'"):
        pcdet_ext.load(path, overrides=["model.head.score_treshold=1.0"])
    with pytest.raises(CheckpointError, match=r"a\.ckpt: the parameters do not fit"):
        pcdet_ext.load(path, overrides=["model.bev_backbone.num_filters=[16, 16, 16]"])


def test_missing_device_is_named(root: Path) -> None:
    with pytest.raises(ConfigError, match="device 'cuda:99'"):  # missing with and without CUDA
        pcdet_ext.build(root / "configs" / "kitti" / "demo.yaml", device="cuda:99")


def test_the_front_door_is_light_and_complete() -> None:
    assert {"build", "load"} <= set(dir(pcdet_ext))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        pcdet_ext.lod  # noqa: B018
    code = "import sys, pcdet_ext; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_checkpoint_imports_nothing_unless_it_is_trusted(
    tmp_path: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setattr("sys.modules", dict(sys.modules))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_code.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    settings = {**detector.config.plain(), "imports": ["user_code"]}
    checkpoint.write(tmp_path / "a.ckpt", {"config": settings, "model": detector.model.state_dict()})
    with pytest.raises(ConfigError, match=r"a\.ckpt: imports: the module 'user_code' is needed.*imports=True"):
        pcdet_ext.load("a.ckpt", device="cpu")
    assert not (tmp_path / "ran").exists()
    assert pcdet_ext.load("a.ckpt", device="cpu", imports=True).classes == detector.classes
    assert (tmp_path / "ran").exists()
    assert pcdet_ext.load("a.ckpt", device="cpu").classes == detector.classes  # imported already


def test_a_packaged_model_is_built_by_its_name() -> None:
    assert pcdet_ext.build("kitti/demo", device="cpu").classes == ("Car",)
    assert "kitti/demo" in pcdet_ext.list_models("kitti/*")
    with pytest.raises(ConfigError, match="did you mean 'kitti/demo'"):
        pcdet_ext.build("kitti/demos")


def test_points_of_a_batch_come_in_any_order(detector: Detector) -> None:
    clouds = [torch.from_numpy(cloud(seed)) for seed in (1, 2, 3)]
    joined = PointBatch.from_points(clouds)
    shuffled = torch.randperm(len(joined.points), generator=torch.Generator().manual_seed(0))
    mixed = PointBatch(joined.points[shuffled], joined.batch_index[shuffled], 3)
    # the order inside a frame decides between equal points of a voxel, so it must be compared with the same
    own = [mixed.points[mixed.batch_index == frame] for frame in range(3)]
    for found, points in zip(detector.predict(mixed), own, strict=True):
        same(found.numpy(), detector.detect(points.numpy()))


LAYOUTS = {
    "reversed": lambda a: a[::-1].copy()[::-1],
    "big-endian": lambda a: a.astype(">f4"),
    "read-only": lambda a: _frozen(a),
    "float64": lambda a: a.astype(np.float64),
    "longdouble": lambda a: a.astype(np.longdouble),
    "object": lambda a: a.astype(object),
    "columns": lambda a: np.asfortranarray(a),
    "strided": lambda a: np.repeat(a, 2, 0)[::2],
    "wide": lambda a: np.concatenate([a, a], 1),
}


def _frozen(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.setflags(write=False)
    return array


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_any_layout_are_taken_without_a_warning(detector: Detector, layout: str) -> None:
    points = cloud(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(detector.detect(LAYOUTS[layout](points)), detector.detect(points))


def test_half_precision_arrays_are_taken(detector: Detector) -> None:
    points = cloud(5)
    same(detector.detect(points.astype(np.float16)), detector.detect(points.astype(np.float16).astype(np.float32)))
    same(detector.detect(torch.from_numpy(points).half()).numpy(), detector.detect(points.astype(np.float16)))


@pytest.mark.parametrize("wrong", [np.array([["a"] * 4] * 9), np.full((9, 4), "b", object), np.zeros((9, 4), complex)])
def test_arrays_of_no_numbers_are_refused(detector: Detector, wrong: np.ndarray) -> None:
    with pytest.raises(TypeError, match="points must be real numbers"):
        detector.detect(wrong)


@pytest.mark.parametrize("rows", [4, 5])
def test_clouds_that_lie_on_their_side_are_recognised(detector: Detector, rows: int) -> None:
    with pytest.raises(ValueError, match=rf"got \[{rows}, 500\]: these are columns of points, pass their transpose"):
        detector.detect(np.zeros((rows, 500), np.float32))


@given(st.lists(st.floats(-1e4, 1e4, width=32), max_size=20))
def test_headings_are_in_range(headings: list[float]) -> None:
    boxes = torch.zeros(len(headings), 9)
    boxes[:, 6] = torch.tensor(headings)
    found = with_headings_in_range(boxes)[:, 6]
    assert bool(((found >= -math.pi) & (found < math.pi)).all())
    assert torch.allclose(found.sin(), boxes[:, 6].double().sin().float(), atol=2e-3)
    inside = (boxes[:, 6] >= -math.pi) & (boxes[:, 6] < math.pi)
    assert torch.equal(found[inside], boxes[:, 6][inside])


def test_columns_of_files_are_taken_by_name(detector: Detector, tmp_path: Path) -> None:
    points = cloud(6)
    header = "FIELDS Reflectivity z y x\nSIZE 4 4 4 4\nTYPE F F F F\nWIDTH {}\nDATA binary\n"
    named = tmp_path / "named.PCD"
    named.write_bytes(header.format(len(points)).encode() + np.ascontiguousarray(points[:, ::-1]).tobytes())
    same(detector.detect(named), detector.detect(points))
    bare = tmp_path / "bare.pcd"
    bare.write_text("FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 1\nDATA ascii\n1 2 3\n")
    with pytest.raises(DataError, match=r"bare\.pcd: has no column for 'intensity'; it has x, y, z"):
        detector.detect(bare)


def test_another_scale_of_the_intensity_is_said(root: Path) -> None:
    torch.manual_seed(0)
    found = pcdet_ext.build(root / "configs" / "kitti" / "demo.yaml", SMALL, device="cpu")
    found.highest = {"intensity": 0.9}
    points = cloud(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.detect(points)
        found.detect(points[:10] * [1, 1, 1, 255])
    with pytest.warns(UserWarning, match=r"intensity goes to 25\d, but to 0\.9 .* on another scale"):
        found.detect(points * np.array([1, 1, 1, 255], np.float32))


def test_structures_are_compared_as_objects(detector: Detector) -> None:
    found = detector.detect(cloud(7))
    assert found == found
    assert found != detector.detect(cloud(7))
    assert Targets(found.boxes, found.labels) != Targets(found.boxes, found.labels)


def test_tensors_without_dense_values_are_refused_and_gradients_are_cut(detector: Detector) -> None:
    points = torch.rand(50, 4)
    with pytest.raises(TypeError, match=r"points must be a dense tensor with values, got torch\.sparse_coo"):
        detector.detect(points.to_sparse())
    with pytest.raises(TypeError, match="on meta"):
        detector.detect(points.to("meta"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = detector.detect(points.requires_grad_())
    torch.testing.assert_close(torch.as_tensor(found.boxes), torch.as_tensor(detector.detect(points.detach()).boxes))


def test_one_scan_of_nuscenes_is_read_and_said_to_be_one(root: Path, tmp_path: Path) -> None:
    settings = config.load(root / "configs" / "nuscenes" / "demo.yaml")
    detector = Detector(settings, device="cpu")
    np.zeros((0, 5), np.float32).tofile(tmp_path / "a.pcd.bin")
    with pytest.warns(UserWarning, match=r"a\.pcd\.bin: one scan, whose points all have the age \(timestamp\) 0"):
        found = detector.detect(tmp_path / "a.pcd.bin")
    assert found.boxes.shape == (0, 7)


def test_few_points_with_many_columns_are_points(detector: Detector) -> None:
    points = np.random.default_rng(0).uniform(0, 5, (8, 20)).astype(np.float32)
    np.testing.assert_array_equal(detector.detect(points).boxes, detector.detect(points[:, :4].copy()).boxes)


def test_what_is_masked_is_dropped(detector: Detector) -> None:
    points = np.random.default_rng(0).uniform(0, 5, (81, 4)).astype(np.float32)
    mask = np.zeros(points.shape, bool)
    mask[::3, 2] = True
    with pytest.warns(UserWarning, match="27 points are NaN or infinite and were dropped"):
        found = detector.detect(np.ma.MaskedArray(points, mask))
    np.testing.assert_array_equal(found.boxes, detector.detect(points[~mask.any(1)]).boxes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pcdet_ext.build(None), "path must be a text or a path, got None"),
        (lambda: pcdet_ext.load(3), "path must be a text or a path, got 3"),
        (lambda: pcdet_ext.build("kitti/demo", "train.epochs=3"), r"overrides must be a list of texts .* got 'train"),
        (lambda: pcdet_ext.build("kitti/demo", [3]), "overrides must be texts such as .* got 3 among them"),
        (lambda: pcdet_ext.build("kitti/demo", 3), "overrides must be a list of texts"),
    ],
)
def test_arguments_of_another_type_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("content", [b"", b"words", bytes(range(256)) * 9, b"PK\x03\x04" + bytes(90)])
def test_what_is_no_checkpoint_is_said_in_words_of_our_own(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.ckpt: damaged or no checkpoint: not a file as torch\.save writes"):
        pcdet_ext.load(path)


@pytest.mark.parametrize("scale", ["0", "-1"])
def test_intensity_is_divided_by_a_number_above_zero(scale: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.intensity_scale: must be above 0"):
        pcdet_ext.build("kitti/demo", [*SMALL, f"data.intensity_scale={scale}"], device="cpu")


def test_clouds_for_exports_have_the_columns_of_the_detector(detector: Detector, tmp_path: Path) -> None:
    np.save(tmp_path / "three.npy", cloud()[:, :3])
    with pytest.raises(DataError, match=r"three\.npy: has 3 columns, this detector reads 4 \(x, y, z, intensity\)"):
        read_clouds(detector, [tmp_path / "three.npy"])


def test_columns_that_are_squashed_are_columns_of_the_points() -> None:
    with pytest.raises(ConfigError, match=r"data\.tanh: .*foo"):
        pcdet_ext.build("kitti/demo", [*SMALL, "data.tanh=[foo]"], device="cpu")
