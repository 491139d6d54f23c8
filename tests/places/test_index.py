"""The index of descriptors: both engines against brute force, saving, and what is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.files import DataError
from pcdet_ext.places import PlaceIndex

WITHOUT = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")
ENGINES: list[Any] = ["torch", pytest.param("faiss", marks=WITHOUT)]


def brute_force(database: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    distance = np.linalg.norm(database.astype(np.float64) - query.astype(np.float64), axis=1)
    return sorted(range(len(database)), key=lambda i: (distance[i], i))[:k]


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60), k=st.integers(1, 70), parts=st.integers(1, 3))
def test_neighbours_are_those_of_brute_force(engine: Any, seed: int, count: int, k: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, 5)).astype(np.float32)
    index = PlaceIndex(5, engine)
    for part in np.array_split(values, parts):
        index.add(part)
    queries = np.concatenate([rng.normal(size=(4, 5)).astype(np.float32), values[:2]])
    found = index.search(torch.from_numpy(queries), k)
    for row, distances, query in zip(found.rows, found.distances, queries, strict=True):
        assert row.tolist() == brute_force(values, query, k)
        np.testing.assert_allclose(distances, np.linalg.norm(values[row] - query, axis=1), rtol=1e-5, atol=1e-6)
    assert found.ids == tuple(tuple(map(str, row)) for row in found.rows.tolist())


@pytest.mark.parametrize("engine", ENGINES)
def test_of_equal_descriptors_the_first_added_come_first(engine: Any) -> None:
    index = PlaceIndex(2, engine)
    index.add(np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32), ["a", "b", "c", "d"])
    assert index.search(np.array([1, 0], np.float32), 3).ids == (("a", "c", "d"),)


@pytest.mark.parametrize("engine", ENGINES)
def test_of_more_equal_descriptors_than_are_looked_at_the_first_added_come_first(engine: Any) -> None:
    values = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    values[5:55] = values[5]
    index = PlaceIndex(16, engine)
    index.add(values)
    found = index.search(np.repeat(values[5:6], 30, 0) + np.float32(0.01), 3)
    assert found.rows.tolist() == [[5, 6, 7]] * 30


@pytest.mark.parametrize("engine", ENGINES)
def test_nearly_equal_descriptors_far_from_zero_are_told_apart(engine: Any) -> None:
    rng = np.random.default_rng(0)
    values = (10 + 1e-3 * rng.normal(size=(2000, 64))).astype(np.float32)
    queries = (10 + 1e-3 * rng.normal(size=(40, 64))).astype(np.float32)
    index = PlaceIndex(64, engine)
    index.add(values)
    found = index.search(queries, 5)
    assert found.rows.tolist() == [brute_force(values, query, 5) for query in queries]


@pytest.mark.parametrize("engine", ENGINES)
def test_descriptors_whose_squares_overflow_are_told_apart(engine: Any) -> None:
    values = np.float32(1e25) * np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    index = PlaceIndex(4, engine)
    index.add(values)
    assert index.search(values, 2).rows.tolist() == [brute_force(values, query, 2) for query in values]


@WITHOUT
def test_clear_answers_of_faiss_are_not_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    index = PlaceIndex(8, "faiss")
    index.add(values)
    monkeypatch.setattr(index, "_compared", lambda queries, count: pytest.fail("compared with all"))
    assert index.search(values, 1).rows[:, 0].tolist() == list(range(500))


@pytest.mark.parametrize("engine", ENGINES)
def test_saved_index_is_the_same(engine: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    index = PlaceIndex(4, engine)
    index.add(rng.normal(size=(7, 4)), [f"frame {i}" for i in range(7)], rng.uniform(0, 9e6, (7, 2)))
    index.add(rng.normal(size=4).astype(np.float32))
    again = PlaceIndex.load(index.save(tmp_path / "places.npz"), engine)
    queries = rng.normal(size=(3, 4))
    a, b = index.search(queries, 8), again.search(queries, 8)
    np.testing.assert_array_equal(a.rows, b.rows)
    np.testing.assert_array_equal(a.positions, b.positions)
    assert a.ids == b.ids
    assert "7" in b.ids[0]
    assert (a.positions[a.rows < 7][:, 2] == 0).all()
    assert np.isnan(a.positions[a.rows == 7]).all()
    again.add(queries)
    assert len(again) == 11


def test_automatic_engine_is_faiss_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcdet_ext.places.index.find_spec", lambda name: None)
    assert PlaceIndex(2).engine == "torch"

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("pcdet_ext.places.index.import_module", missing)
    with pytest.raises(ImportError, match=r"pcdet_ext\[faiss\]"):
        PlaceIndex(2, "faiss")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    index = PlaceIndex(3, "torch")
    with pytest.raises(ValueError, match="the index is empty"):
        index.search(np.zeros(3))
    with pytest.raises(ValueError, match=r"must be \[N, 3\] or \[3\], got \[2, 4\]"):
        index.add(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="finite"):
        index.add(np.full(3, np.nan))
    with pytest.raises(ValueError, match="2 descriptors, but 1 ids"):
        index.add(np.zeros((2, 3)), ["a"])
    with pytest.raises(ValueError, match="2 descriptors, but 3 positions"):
        index.add(np.zeros((2, 3)), positions=np.zeros((3, 2)))
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="positions must be finite"):
            index.add(np.zeros((1, 3)), positions=np.array([[0, wrong, 0]]))
    with pytest.raises(ValueError, match="ids: 'a' stands twice in the index"):
        index.add(np.zeros((2, 3)), ["a", "a"])
    assert len(index) == 0  # nothing of what was refused is kept
    index.add(np.zeros((2, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="ids: 'b' stands twice in the index"):
        index.add(np.zeros((1, 3)), ["b"])
    with pytest.raises(ValueError, match="k must be"):
        index.search(np.zeros(3), 0)
    with pytest.raises(TypeError, match=r"k must be a whole number, got 1\.5"):
        index.search(np.zeros(3), 1.5)  # type: ignore[arg-type]
    for size in (2.5, "x", None, True):
        with pytest.raises(TypeError, match="size must be a whole number"):
            PlaceIndex(size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"written as \.npz"):
        index.save(tmp_path / "index.bin")
    with pytest.raises(ValueError, match="engine must be"):
        PlaceIndex(3, "annoy")  # type: ignore[arg-type]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.npz"
    with pytest.raises(DataError, match="no such file"):
        PlaceIndex.load(path)
    index = PlaceIndex(3, "torch")
    index.add(np.eye(3))
    content = index.save(path).read_bytes()
    path.write_bytes(content[:-40])
    with pytest.raises(DataError, match=r"index\.npz: no readable \.npz"):
        PlaceIndex.load(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"index\.npz: no readable \.npz"):
        PlaceIndex.load(path)
    parts = {
        "descriptors": np.eye(3, dtype=np.float32),
        "ids": np.array(["a", "b", "c"]),
        "positions": np.zeros((3, 3)),
    }
    np.savez(path, format=np.array(2), **parts)
    with pytest.raises(DataError, match="format 2"):
        PlaceIndex.load(path)
    np.savez(path, format=np.array(1), **(parts | {"ids": np.array(["a"])}))
    with pytest.raises(DataError, match="damaged: 3 descriptors, but 1 ids"):
        PlaceIndex.load(path)
    np.savez(path, format=np.array(1), **(parts | {"ids": np.array(["a"] * 3)}))
    with pytest.raises(DataError, match="damaged: ids: 'a' stands twice"):
        PlaceIndex.load(path)
    np.savez(path, format=np.array(1), **(parts | {"positions": np.array([[0, np.nan, 0]] * 3)}))
    with pytest.raises(DataError, match="damaged: positions must be finite, or NaN in all columns"):
        PlaceIndex.load(path)
    np.savez(path, format=np.array(1), **(parts | {"ids": np.array([{}] * 3, dtype=object)}))
    with pytest.raises(DataError, match=r"index\.npz: no readable \.npz"):
        PlaceIndex.load(path)
