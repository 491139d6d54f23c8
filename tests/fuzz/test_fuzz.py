"""A short form of the fuzzing campaign (`make fuzz`), and what it has found."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from fuzz.campaign import fuzz
from fuzz.readers import READERS, Reader

from pcdet_ext.data.points import read_point_file
from pcdet_ext.data.semantickitti.sequences import read_calibration
from pcdet_ext.data.text import read_lines
from pcdet_ext.evaluation.argoverse2_files import read_table
from pcdet_ext.evaluation.occupancy_files import read_poses
from pcdet_ext.files import DataError


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files_are_refused_or_read(reader: Reader) -> None:
    report = fuzz(reader, 12)
    assert not report.failures, str(report)
    assert sum(report.outcomes.values()) == 12
    assert report.outcomes["refused"]


def npy(header: bytes, length: int | None = None) -> bytes:
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header) if length is None else length) + header


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4), "), "damaged"),  # no end of the dict
        (npy(b"{}", 10**9), "header of 1000000000 bytes"),
        (
            npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 4), }"),
            "16000000000 bytes; 0 are there",
        ),
    ],
)
def test_headers_of_npy_files_are_held_against_their_size(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "cloud.npy").write_bytes(data)
    with pytest.raises(DataError, match=rf"cloud\.npy.*{message}"):
        read_point_file(tmp_path / "cloud.npy")


@pytest.mark.parametrize(
    ("place", "kind", "value"),
    [(94, "<H", 60_000), (96, "<I", 2**31), (100, "<I", 10**9)],  # sizes of header and of what precedes points; records
)
def test_headers_of_las_files_are_held_against_their_size(tmp_path: Path, place: int, kind: str, value: int) -> None:
    laspy = pytest.importorskip("laspy")
    las = laspy.LasData(laspy.LasHeader(point_format=0, version="1.2"))
    las.x = las.y = las.z = np.zeros(3)
    las.write(tmp_path / "cloud.las")
    data = bytearray((tmp_path / "cloud.las").read_bytes())
    data[place : place + struct.calcsize(kind)] = struct.pack(kind, value)
    (tmp_path / "cloud.las").write_bytes(data)
    with pytest.raises(DataError, match=r"cloud\.las.*announces records or points"):
        read_point_file(tmp_path / "cloud.las")


def test_a_text_with_a_character_0_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("000\n0\x000\n")
    with pytest.raises(DataError, match=r"train\.txt:2: has a character 0"):
        read_lines(tmp_path / "train.txt")


def test_whole_numbers_beyond_all_floats_are_no_places(tmp_path: Path) -> None:
    pose = {"scene_name": "a", "token": "b", "lidar2ego_rotation": [1, 0, 0, 0], "ego2global_rotation": [1, 0, 0, 0]}
    text = str(pose | {"ego2global_translation": [0, 0, 0], "lidar2ego_translation": [10**400, 0, 0]})
    (tmp_path / "poses.json").write_text(f"[{text}]".replace("'", '"'))
    with pytest.raises(DataError, match=r"poses\.json: frame 0: lidar2ego_translation must be 3 finite numbers"):
        read_poses(tmp_path / "poses.json")


def test_a_calibration_that_is_no_rotation_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text("P0: 1 0 0 0 0 1 0 0 0 0 1 0\nTr: 1 0 0 0 0 0 0 0 0 0 1 0\n")
    with pytest.raises(DataError, match=r"calib\.txt:2: Tr must begin with a rotation"):
        read_calibration(tmp_path / "calib.txt")


def test_a_feather_file_whose_texts_are_no_texts_is_refused(tmp_path: Path) -> None:
    feather = pytest.importorskip("pyarrow.feather")
    import pyarrow as pa

    feather.write_feather(pa.table({"category": ["WXYZ"]}), tmp_path / "a.feather", compression="uncompressed")
    data = (tmp_path / "a.feather").read_bytes()
    (tmp_path / "a.feather").write_bytes(data.replace(b"WXYZ", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(DataError, match=r"a\.feather: damaged"):
        read_table(tmp_path / "a.feather", ["category"])
