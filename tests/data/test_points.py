"""Point files of every kind: round trips through other writers, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.files import DataError
from pcdet_ext.data.points import read_points

PLY = "ply\nformat {order} 1.0\ncomment made by hand\nelement vertex 2\n"
PCD = (
    "# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {size}\nTYPE {kind}\nCOUNT {count}\nWIDTH 2\nHEIGHT 1\nPOINTS 2\n"
)


@pytest.fixture
def cloud() -> np.ndarray:
    """Points [500, 4]; a third of them equal, so that compression finds something to do."""
    points = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    points[::3] = 1.5
    return points


@pytest.mark.parametrize("suffix", [".pcd", ".ply"])
@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
def test_files_that_open3d_wrote(tmp_path: Path, cloud: np.ndarray, suffix: str, text: bool, compressed: bool) -> None:
    o3d = pytest.importorskip("open3d")
    written = o3d.t.geometry.PointCloud(o3d.core.Tensor(cloud[:, :3].copy()))
    written.point["intensity"] = o3d.core.Tensor(cloud[:, 3:].copy())
    path = tmp_path / f"cloud{suffix}"
    o3d.t.io.write_point_cloud(str(path), written, write_ascii=text, compressed=compressed)
    points = read_points(path)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points, cloud, atol=1e-5 if text else 0)


def test_headless_and_numpy_files(tmp_path: Path, cloud: np.ndarray) -> None:
    cloud.tofile(tmp_path / "a.bin")
    np.testing.assert_array_equal(read_points(tmp_path / "a.bin"), cloud)
    np.save(tmp_path / "a.npy", cloud.astype(np.float64))
    np.testing.assert_array_equal(read_points(tmp_path / "a.npy"), cloud)
    cloud.tofile(tmp_path / "a.pcd.bin")
    np.testing.assert_array_equal(read_points(tmp_path / "a.pcd.bin"), cloud.reshape(-1, 5))
    np.testing.assert_array_equal(read_points(tmp_path / "a.bin", columns=8), cloud.reshape(-1, 8))


def test_a_real_sweep(shared: Path) -> None:
    points = read_points(next((shared / "data" / "nuscenes_frame").glob("*.pcd.bin")))
    assert points.shape == (34688, 5)
    assert set(np.unique(points[:, 4])) == set(range(32))  # the sensor has 32 rings


def test_columns_are_ordered_and_vectors_left_out(tmp_path: Path) -> None:
    header = PCD.format(
        fields="ring x y z normal i _", size="2 4 8 4 4 1 1", kind="U F F F F U U", count="1 1 1 1 3 1 5"
    )
    body = b"".join(
        np.array([ring], "<u2").tobytes()
        + np.array([x], "<f4").tobytes()
        + np.array([y], "<f8").tobytes()
        + np.array([z, 9, 9, 9], "<f4").tobytes()
        + np.array([i, 0, 0, 0, 0, 0], "u1").tobytes()
        for ring, x, y, z, i in [(300, 1, 2, 3, 200), (2, 4, 5, 6, 7)]
    )
    (tmp_path / "a.pcd").write_bytes(f"{header}DATA binary\n".encode() + body)
    expected = [[1, 2, 3, 200, 300], [4, 5, 6, 7, 2]]
    np.testing.assert_array_equal(read_points(tmp_path / "a.pcd"), expected)
    text = f"{header}DATA ascii\n300 1 2 3 9 9 9 200 0 0 0 0 0\n2 4 5 6 9 9 9 7 0 0 0 0 0\n"
    (tmp_path / "b.pcd").write_text(text)
    np.testing.assert_array_equal(read_points(tmp_path / "b.pcd"), expected)


def test_ply_in_big_endian_order(tmp_path: Path) -> None:
    header = PLY.format(order="binary_big_endian") + "".join(f"property double {c}\n" for c in "zyx")
    header += "element face 0\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "a.ply").write_bytes(header.encode() + np.array([[3, 2, 1], [6, 5, 4]], ">f8").tobytes())
    np.testing.assert_array_equal(read_points(tmp_path / "a.ply"), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", bytes(17), r"a\.bin: 17 bytes"),
        ("a.las", b"", r"a\.las: point clouds of this kind are not read; known: \.bin"),
        ("a.npy", b"junk", r"a\.npy: damaged"),
        ("a.pcd", b"VERSION 0.7\n", r"a\.pcd: damaged .*header has no end"),
        ("a.pcd", b"DATA ascii\n", r"a\.pcd: damaged .*FIELDS"),
        ("a.pcd", b"FIELDS x y\nSIZE 4 4\nTYPE F F\nPOINTS 0\nDATA binary\n", r"a\.pcd: damaged .*no field 'z'"),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 9\nDATA binary\n", r"a\.pcd: damaged .*smaller than requested"),
        ("a.pcd", b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 9\nDATA ascii\n1\n", r"9 points of 1 numbers are announced, 1 "),
        (
            "a.pcd",
            b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 1\nDATA binary_compressed\n"
            + np.array([9, 4], "<u4").tobytes()
            + b"123",
            r"a\.pcd: damaged .*cut short",
        ),
        (
            "a.pcd",
            b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 1\nDATA binary_compressed\n"
            + np.array([2, 4], "<u4").tobytes()
            + b"\x20\x05",
            r"a\.pcd: damaged .*compressed data is damaged",
        ),
        (
            "a.pcd",
            b"FIELDS x\nSIZE 4\nTYPE F\nPOINTS 1\nDATA binary_compressed\n"
            + np.array([1, 4], "<u4").tobytes()
            + b"\xe0",
            r"a\.pcd: damaged .*compressed data is damaged",
        ),
        ("a.ply", b"plx\n", r"a\.ply: damaged .*not 'ply'"),
        ("a.ply", PLY.format(order="ascii").encode() + b"property float x\nend_header\n1\n", "2 points of 1 numbers"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_points(tmp_path / name)


@pytest.mark.parametrize("suffix", [".bin", ".npy", ".pcd", ".ply"])
def test_missing_files_are_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match=rf"none\{suffix}: no such file"):
        read_points(tmp_path / f"none{suffix}")


def test_arrays_of_objects_do_not_run_code(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy: damaged .*allow_pickle=False"):
        read_points(tmp_path / "a.npy")
