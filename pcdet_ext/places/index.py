"""An index of descriptors of places: exact nearest neighbours, with faiss where it is installed, else with torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.files import DataError, atomic_write, read_arrays
from pcdet_ext.structures import Array, tensor_of

FORMAT = 1
CHUNK = 256  # queries whose distances to all descriptors are in memory at once
SPARE = 8  # neighbours more than asked for that faiss is asked for, to tell whether its answer is certain

Engine = Literal["auto", "faiss", "torch"]


@dataclass(frozen=True, eq=False)
class Matches:
    """The nearest descriptors of each of Q queries, the nearest first.

    rows: int64 [Q, K], numbers of the descriptors in the order in which they were added; distances: float32 [Q, K];
    ids: their names; positions: float64 [Q, K, 3], NaN where none was given.
    """

    rows: Array
    distances: Array
    ids: tuple[tuple[str, ...], ...]
    positions: Array


class PlaceIndex:
    """Descriptors [N, D] of places with their names and positions, in which others are looked up by Euclidean distance.

    Args:
        size: D of the descriptors.
        engine: "faiss", "torch", or "auto" for faiss where it is installed. Both find the same neighbours, by
            distances in float64; of equally near ones those added first. Where the rounding of faiss leaves open which
            are nearest, as among many nearly equal descriptors, the query is compared with all descriptors.

    Raises:
        TypeError: the size is no whole number.
        ValueError: for a size below 1, or an unknown engine.
        ImportError: faiss is asked for and not installed.
    """

    def __init__(self, size: int, engine: Engine = "auto") -> None:
        size = _whole(size, "size")
        if engine not in ("auto", "faiss", "torch"):
            raise ValueError(f"engine must be 'auto', 'faiss' or 'torch', got {engine!r}")
        self.size = size
        self.engine: str = ("faiss" if find_spec("faiss") else "torch") if engine == "auto" else engine
        self._faiss: Any = _flat_index(size) if self.engine == "faiss" else None
        self.descriptors = np.zeros((0, size), np.float32)
        self.ids: tuple[str, ...] = ()
        self.positions = np.zeros((0, 3))
        self._longest = 0.0  # the largest norm of a descriptor

    def __len__(self) -> int:
        """N, how many descriptors there are."""
        return len(self.ids)

    def add(
        self,
        descriptors: Tensor | Array,
        ids: Sequence[str] | None = None,
        positions: Tensor | Array | None = None,
    ) -> None:
        """Take descriptors.

        Args:
            descriptors: [N, D], or one [D], finite.
            ids: a name for each, which no other descriptor of the index has; the numbers in the order of adding, as
                text, when None.
            positions: [N, 2 or 3], x, y and z in metres (z 0 without one), finite; NaN when None.

        Raises:
            ValueError: for other shapes, values that are not finite, another number of names or positions, and names
                that come twice.
        """
        rows = self._checked(descriptors, "descriptors")
        names = tuple(str(len(self) + i) for i in range(len(rows))) if ids is None else tuple(map(str, ids))
        places = np.full((len(rows), 3), np.nan) if positions is None else _positions(positions)
        if positions is not None and not np.isfinite(places).all():
            raise ValueError("positions must be finite; give none (None) where they are not known")
        self._take(rows, names, places)

    def _take(self, rows: Array, names: tuple[str, ...], places: Array) -> None:
        """Keep descriptors with names, and positions [N, 3], rows of NaN where one is not known."""
        for what, values in {"ids": names, "positions": places}.items():
            if len(values) != len(rows):
                raise ValueError(f"{len(rows)} descriptors, but {len(values)} {what}")
        self._check_new(names)
        self.descriptors = np.concatenate([self.descriptors, rows])
        self.ids, self.positions = self.ids + names, np.concatenate([self.positions, places])
        if self._faiss is not None and len(rows):
            self._longest = max(self._longest, float(np.linalg.norm(rows.astype(np.float64), axis=1).max()))
            self._faiss.add(rows)

    def _check_new(self, names: Sequence[str]) -> None:
        known = set(self.ids)
        for name in names:
            if name in known:
                raise ValueError(f"ids: {name!r} stands twice in the index")
            known.add(name)

    def search(self, descriptors: Tensor | Array, k: int = 1) -> Matches:
        """The k nearest of all descriptors, or all where there are fewer.

        Args:
            descriptors: [Q, D], or one [D] (Q is 1 then), finite.
            k: how many.

        Raises:
            TypeError: k is no whole number.
            ValueError: for other shapes, values that are not finite, k below 1, and an empty index.
        """
        queries, k = self._checked(descriptors, "descriptors"), _whole(k, "k")
        if not len(self):
            raise ValueError("the index is empty: add descriptors first")
        count = min(k, len(self))
        parts = [self._nearest(queries[i : i + CHUNK], count) for i in range(0, len(queries), CHUNK)]
        rows = np.concatenate([np.zeros((0, count), np.int64), *(r for r, _ in parts)])
        distances = np.concatenate([np.zeros((0, count), np.float32), *(d for _, d in parts)])
        ids = tuple(tuple(self.ids[i] for i in row) for row in rows.tolist())
        return Matches(rows, distances, ids, self.positions[rows])

    def _nearest(self, queries: Array, count: int) -> tuple[Array, Array]:
        """Rows and distances [Q, count], of faiss where they are certain, else of a comparison with all descriptors."""
        if self._faiss is None:
            return self._compared(queries, count)
        rows, distances, certain = self._proposed(queries, count)
        if not certain.all():
            rows[~certain], distances[~certain] = self._compared(queries[~certain], count)
        return rows, distances

    def _compared(self, queries: Array, count: int) -> tuple[Array, Array]:
        """Rows and distances [Q, count] by the distances to all descriptors, taken in float64 from differences."""
        every = torch.cdist(
            torch.from_numpy(queries).double(),
            torch.from_numpy(self.descriptors).double(),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        last = every.topk(count, dim=1, largest=False).values.amax(1, keepdim=True)
        rows = np.empty((len(queries), count), np.int64)
        distances = np.empty((len(queries), count), np.float32)
        for i, (distance, near) in enumerate(zip(every.numpy(), (every <= last).numpy(), strict=True)):
            found = np.flatnonzero(near)
            rows[i] = found[np.argsort(distance[found], kind="stable")[:count]]
            distances[i] = distance[rows[i]]
        return rows, distances

    def _proposed(self, queries: Array, count: int) -> tuple[Array, Array, Array]:
        """Rows and distances [Q, count] among the candidates of faiss, and whether they are certain, bool [Q].

        faiss takes |q|^2 + |d|^2 - 2 qd in float32, which is wrong by at most (D + 4) eps (|q| + |d|)^2. The result is
        certain when all descriptors that faiss left out are farther than the last one taken in spite of that.
        """
        wanted = min(count + SPARE, len(self))
        squared, rows = self._faiss.search(queries, wanted)
        rows = np.sort(rows.astype(np.int64), axis=1)
        exact = queries.astype(np.float64)
        distance = np.sqrt(((self.descriptors[rows].astype(np.float64) - exact[:, None]) ** 2).sum(2))
        order = np.argsort(distance, axis=1, kind="stable")[:, :count]
        rows, distance = np.take_along_axis(rows, order, 1), np.take_along_axis(distance, order, 1)
        longest = np.linalg.norm(exact, axis=1) + self._longest
        error = (self.size + 4) * float(np.finfo(np.float32).eps) * longest**2
        farthest = squared.max(1).astype(np.float64)
        certain = np.isfinite(farthest) & (farthest - error > distance[:, -1] ** 2)
        return rows, distance.astype(np.float32), certain

    def save(self, path: str | Path) -> Path:
        """Write everything to a file .npz, atomically; returns its path. Raises ValueError for another suffix."""
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"{path}: an index is written as .npz")
        ids = np.array(self.ids, dtype=np.str_)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, format=np.array(FORMAT), descriptors=self.descriptors, ids=ids, positions=self.positions)
        return path

    @staticmethod
    def load(path: str | Path, engine: Engine = "auto") -> PlaceIndex:
        """An index that `save` wrote. Reading it runs no code. Raises DataError for anything else."""
        path = Path(path)
        stored, descriptors, ids, positions = read_arrays(path, "format", "descriptors", "ids", "positions")
        if stored.shape or stored.dtype.kind not in "iu":
            raise DataError(f"{path}: no index of places: its format is {stored.dtype} {list(stored.shape)}")
        version = int(stored)
        if version != FORMAT:
            raise DataError(f"{path}: an index of format {version}; this version reads {FORMAT}")
        if descriptors.ndim != 2 or descriptors.dtype != np.float32 or not descriptors.shape[1]:
            raise DataError(f"{path}: damaged: descriptors are {descriptors.dtype} {list(descriptors.shape)}")
        index = PlaceIndex(descriptors.shape[1], engine)
        try:
            places = _positions(positions)
            known = np.isfinite(places).all(1)
            if not (known | np.isnan(places).all(1)).all():
                raise ValueError("positions must be finite, or NaN in all columns where they are not known")
            index._take(index._checked(descriptors, "descriptors"), tuple(map(str, ids.tolist())), places)
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: damaged: {error}") from error
        return index

    def _checked(self, descriptors: Tensor | Array, name: str) -> Array:
        """Descriptors as a contiguous array float32 [N, D]."""
        values = tensor_of(descriptors).detach().cpu().numpy()
        values = values[None] if values.ndim == 1 else values
        if values.ndim != 2 or values.shape[1] != self.size:
            raise ValueError(f"{name} must be [N, {self.size}] or [{self.size}], got {list(values.shape)}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite")
        return np.ascontiguousarray(values, np.float32)


def _whole(value: Any, name: str) -> int:
    """A whole number of at least 1. Raises TypeError for anything but one, ValueError for one below 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def _positions(positions: Tensor | Array) -> Array:
    """Positions as float64 [N, 3]."""
    values = np.asarray(tensor_of(positions).detach().cpu().numpy(), np.float64)
    if values.ndim != 2 or values.shape[1] not in (2, 3):
        raise ValueError(f"positions must be [N, 2 or 3], got {list(values.shape)}")
    return values if values.shape[1] == 3 else np.column_stack([values, np.zeros(len(values))])


def _flat_index(size: int) -> Any:
    """An exact index of faiss. Raises ImportError that says how to install it."""
    try:
        faiss: Any = import_module("faiss")
    except ImportError as error:
        raise ImportError("engine 'faiss' needs faiss: pip install 'pcdet_ext[faiss]'") from error
    return faiss.IndexFlatL2(size)
