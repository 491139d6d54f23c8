"""Point files that are damaged in ways that numpy and the system report by other errors than ValueError."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.data.points import read_point_file
from pcdet_ext.files import DataError

PLY = "ply\nformat {}\nelement vertex 1{}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
PCD = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 0\nHEIGHT 1\nPOINTS 0\nDATA binary_compressed\n"


def _npz() -> bytes:
    archive = io.BytesIO()
    np.savez(archive, points=np.zeros((2, 4), np.float32))
    return archive.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.npy", b""),
        ("archive.npy", _npz()),
        ("ascii.ply", PLY.format("ascii 1.0", "0" * 30).encode()),
        ("binary.ply", PLY.format("binary_little_endian 1.0", "0" * 30).encode()),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        read_point_file(tmp_path / name)


@pytest.mark.parametrize("suffix", ["bin", "npy", "pcd", "ply"])
def test_folders_are_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"folder.{suffix}").mkdir()
    with pytest.raises(DataError, match=rf"folder\.{suffix}: .*[Ii]s a directory"):
        read_point_file(tmp_path / f"folder.{suffix}")


@pytest.mark.parametrize("body", [b"", bytes(8)])
def test_an_empty_compressed_cloud_is_read(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "empty.pcd").write_bytes(PCD.encode() + body)
    cloud = read_point_file(tmp_path / "empty.pcd")
    assert cloud.points.shape == (0, 3)
    assert cloud.columns == ("x", "y", "z")
