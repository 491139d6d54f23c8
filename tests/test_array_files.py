"""Arrays in .npz files: what NumPy writes is read, what is damaged is refused before memory is taken for it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.files import DataError, MissingFileError, read_arrays
from pcdet_ext.places import PlaceIndex


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def archive(path: Path, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_numpy_are_read(save: Callable[..., None], tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "scalar": np.array(3),
        "empty": np.zeros((0, 4), np.float32),
        "zeros": np.zeros((300, 1000)),
        "text": np.array(["a", "bcd"]),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    save(tmp_path / "a.npz", **values)
    for expected, found in zip(values.values(), read_arrays(tmp_path / "a.npz", *values), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(10**12, 256), (-1, -4), (5,), (10**30,)])
def test_shapes_that_the_file_does_not_hold_are_refused(shape: tuple[int, ...], method: int, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", method, values=header(shape) + bytes(16))
    with pytest.raises(DataError, match=r"a\.npz: .* 16 are there"):
        read_arrays(path, "values")


def test_index_of_a_stated_size_beyond_memory_is_refused(tmp_path: Path) -> None:
    path = PlaceIndex(3, "torch").save(tmp_path / "index.npz")
    with np.load(path) as content:
        parts = {name: content[name] for name in content.files if name != "descriptors"}
    np.savez(path, **parts)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("descriptors.npy", header((10**12, 256)))
    with pytest.raises(DataError, match=r"index\.npz: .*descriptors\.npy is said to be float32"):
        PlaceIndex.load(path)


def test_a_directory_that_states_too_many_bytes_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", values=header((10**8,)) + bytes(16))
    size = len(header((10**8,)))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (size + 4 * 10**8).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match="more than the file can hold"):
        read_arrays(path, "values")


def test_objects_and_missing_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(MissingFileError, match="no such file"):
        read_arrays(path, "values")
    np.savez(path, values=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"a\.npz: no readable"):
        read_arrays(path, "values")
    with pytest.raises(DataError, match=r"other\.npy"):
        read_arrays(path, "other")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "a.npz"


@settings(max_examples=200, deadline=None)
@given(data=st.data(), packed=st.booleans())
def test_damage_is_a_data_error_or_harmless(damaged: Path, data: st.DataObject, packed: bool) -> None:
    (np.savez_compressed if packed else np.savez)(damaged, values=np.arange(5))
    content = bytearray(damaged.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    with suppress(DataError):
        (values,) = read_arrays(damaged, "values")
        assert values.nbytes <= 1032 * len(content)
