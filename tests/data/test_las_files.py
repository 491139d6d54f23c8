"""LAS and LAZ files, written by laspy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.data.points import read_point_file
from pcdet_ext.files import DataError


def test_las_files(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    pytest.importorskip("lazrs")
    for suffix in (".las", ".laz"):
        path = tmp_path / f"a{suffix}"
        header = laspy.LasHeader(point_format=1, version="1.2")
        header.scales, header.offsets = [0.001] * 3, [100, 0, 0]
        las = laspy.LasData(header)
        las.x, las.y, las.z = np.array([[101.5, 98.25], [0, 1], [-1, 0.125]])
        las.intensity, las.gps_time = np.array([5, 65535]), np.array([1.5, 2.5])
        las.write(path)
        content = read_point_file(path)
        wanted = content.select(["x", "y", "z", "intensity", "gps_time"])
        np.testing.assert_allclose(wanted, [[101.5, 0, -1, 5, 1.5], [98.25, 1, 0.125, 65535, 2.5]])
        data = path.read_bytes()
        for length in (0, 50, 250, len(data) - 9):
            path.write_bytes(data[:length])
            with pytest.raises(DataError, match=rf"a\{suffix}: damaged"):
                read_point_file(path)
        many = bytearray(data)
        many[107:111] = (2**32 - 1).to_bytes(4, "little")
        path.write_bytes(many)
        with pytest.raises(DataError, match="more than the file can hold"):
            read_point_file(path)


def test_without_laspy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "laspy", None)
    (tmp_path / "a.las").write_bytes(b"LASF")
    with pytest.raises(ImportError, match=r"a\.las: .*pip install 'pcdet_ext\[las\]'"):
        read_point_file(tmp_path / "a.las")
