"""Point files of every kind: round trips through other writers, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.data.points import read_columns, read_point_file, read_points
from pcdet_ext.files import DataError

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


def test_the_points_of_one_nuscenes_scan_have_the_age_0(tmp_path: Path) -> None:
    cloud = np.arange(10, dtype=np.float32).reshape(2, 5)
    cloud.tofile(tmp_path / "a.pcd.bin")
    wanted = ("x", "y", "z", "intensity", "timestamp")
    np.testing.assert_array_equal(read_columns(tmp_path / "a.pcd.bin", wanted), [[0, 1, 2, 3, 0], [5, 6, 7, 8, 0]])
    np.testing.assert_array_equal(read_columns(tmp_path / "a.pcd.bin", ("ring", "x")), [[4, 0], [9, 5]])
    with pytest.raises(DataError, match="has no column for 'elongation'; it has x, y, z, intensity, ring"):
        read_columns(tmp_path / "a.pcd.bin", ("x", "elongation"))


def test_ply_in_big_endian_order(tmp_path: Path) -> None:
    header = PLY.format(order="binary_big_endian") + "".join(f"property double {c}\n" for c in "zyx")
    header += "element face 0\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "a.ply").write_bytes(header.encode() + np.array([[3, 2, 1], [6, 5, 4]], ">f8").tobytes())
    np.testing.assert_array_equal(read_points(tmp_path / "a.ply"), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", bytes(17), r"a\.bin: 17 bytes"),
        ("a.e57", b"", r"a\.e57: point clouds of this kind are not read; known: \.bin"),
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


PCD_LINES = {
    "FIELDS": "FIELDS x y z intensity",
    "SIZE": "SIZE 4 4 4 4",
    "TYPE": "TYPE F F F F",
    "COUNT": "COUNT 1 1 1 1",
    "WIDTH": "WIDTH 2",
    "HEIGHT": "HEIGHT 1",
    "POINTS": "POINTS 2",
    "DATA": "DATA ascii",
}
ROWS = "1 2 3 0.5\n4 5 6 0.25\n"


def pcd_with(start: bytes = b"", rows: str = ROWS, **changes: str) -> bytes:
    lines = {**PCD_LINES, **changes}
    return start + ("\n".join(line for line in lines.values() if line) + "\n" + rows).encode("latin-1")


@pytest.mark.parametrize(
    "content",
    [
        pcd_with(POINTS=""),
        pcd_with(b"\xef\xbb\xbf"),
        pcd_with("# Straße, non-ASCII\n".encode("latin-1")),
        pcd_with(FIELDS="COLUMNS x y z intensity"),
        pcd_with(FIELDS="fields X Y Z Reflectivity"),
        pcd_with(TYPE="TYPE f f f f"),
        pcd_with(DATA="DATA ASCII"),
        pcd_with(b"\n\n", rows="1 2 3 0.5\n\n  \n4 5 6 0.25"),
        pcd_with(COUNT="", rows="# comment\n" + ROWS),
        pcd_with(rows=ROWS.replace("\n", "\r\n")),
    ],
    ids=["no points", "bom", "comment", "columns", "names", "types", "data", "blank", "no count", "crlf"],
)
@pytest.mark.parametrize("suffix", [".pcd", ".PCD"])
def test_pcd_headers_as_they_occur(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    read = read_point_file(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read.select(["x", "y", "z", "intensity"]), [[1, 2, 3, 0.5], [4, 5, 6, 0.25]])


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_elements_before_the_vertices(tmp_path: Path, order: str) -> None:
    header = f"ply\nformat {order} 1.0\ncomment Größe\nobj_info any thing\n"
    header += "element camera 1\nproperty float f\nproperty uchar n\n"
    header += "element strip 2\nproperty list uchar int ids\n\nelement vertex 2\n"
    header += "property float z\nproperty double y\nproperty float x\nproperty uchar scalar_Intensity\nend_header\n"
    sign = ">" if "big" in order else "<"
    strips = [[7, 8, 9], []]
    if order == "ascii":
        body = b"1.5 3\n3 7 8 9\n0\n3 2 1 200\n6 5 4 100\n"
    else:
        body = np.array([1.5], sign + "f4").tobytes() + b"\3"
        body += b"".join(bytes([len(ids)]) + np.array(ids, sign + "i4").tobytes() for ids in strips)
        kind = [("z", sign + "f4"), ("y", sign + "f8"), ("x", sign + "f4"), ("i", "u1")]
        body += np.array([(3, 2, 1, 200), (6, 5, 4, 100)], kind).tobytes()
    (tmp_path / "a.ply").write_bytes(header.encode("latin-1") + body)
    np.testing.assert_array_equal(read_points(tmp_path / "a.ply"), [[1, 2, 3, 200], [4, 5, 6, 100]])


@given(
    columns=st.permutations(["x", "y", "z", "Reflectance", "ring", "label"]),
    rows=st.integers(0, 5),
    kind=st.sampled_from(["<f4", "<f8"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_columns_come_by_name_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, columns: list[str], rows: int, kind: str, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, len(columns))).astype(np.float32)
    size, count = kind[-1], len(columns)
    header = f"FIELDS {' '.join(columns)}\nSIZE {f'{size} ' * count}\nTYPE {'F ' * count}\nWIDTH {rows}\nDATA binary\n"
    path = tmp_path_factory.mktemp("cloud") / "a.pcd"
    path.write_bytes(header.encode() + values.astype(kind).tobytes())
    read = read_point_file(path)
    for wanted, name in (("x", "x"), ("intensity", "Reflectance"), ("ring", "ring"), ("label", "label")):
        np.testing.assert_array_equal(read.select([wanted])[:, 0], values[:, columns.index(name)])
    with pytest.raises(DataError, match=r"a\.pcd: has no column for 'elongation'; it has x, y, z, Reflectance"):
        read.select(["x", "elongation"])


def test_arrays_with_named_columns(tmp_path: Path) -> None:
    table = np.array([(1, 0.5, 2, 3)], [("z", "f4"), ("intensity", "f8"), ("y", "i4"), ("x", ">f4")])
    np.save(tmp_path / "a.npy", table)
    np.testing.assert_array_equal(read_points(tmp_path / "a.npy"), [[3, 2, 1, 0.5]])


@pytest.mark.parametrize("announced", [10**9, 10**15])
@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_headers_that_promise_too_much(tmp_path: Path, announced: int, kind: str) -> None:
    rows = np.array([16, 4294967295], "<u4").tobytes().decode("latin-1") if "compressed" in kind else ROWS
    (tmp_path / "a.pcd").write_bytes(pcd_with(POINTS=f"POINTS {announced}", DATA=f"DATA {kind}", rows=rows))
    with pytest.raises(DataError, match=r"a\.pcd: damaged"):
        read_points(tmp_path / "a.pcd")


@pytest.mark.parametrize("text", ["POINTS -1", "POINTS two"])
def test_counts_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pcd").write_bytes(pcd_with(POINTS=text))
    with pytest.raises(DataError, match=r"a\.pcd: damaged"):
        read_points(tmp_path / "a.pcd")
