"""Place recognition: recall of the frames of one run among those of another, by the distance of their descriptors.

As in PointNetVLAD (Uy and Lee, CVPR 2018) and what followed it: for each ordered pair of runs, the frames of one are
looked up among those of the other by the L2 distance of descriptors; a query is right at N when one of its N nearest
frames was taken within a radius of it, and a query without any such frame is left out. What is reported is the mean
over the pairs of runs. Recall at one percent takes max(round(database / 100), 1) frames.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.files import DataError, atomic_write, read_arrays
from pcdet_ext.structures import Array, Descriptor, Sample

FILE = "descriptors.npz"
CHUNK = 1024  # queries whose distances to a whole database are in memory at once
MOST_ROWS = 40  # pairs of runs that a table lists; of more it has the means alone
Metric = Callable[[Array, Array], Array]
OPPOSITE = "opposite direction"
SHOWN = (1, 5, 10, 25)


@dataclass(frozen=True)
class Visit:
    """When and how a frame was taken: its run, its position in metres, heading in radians (None: unknown), its view."""

    run: str
    x: float
    y: float
    z: float = 0.0
    heading: float | None = None
    view: str = ""


@dataclass(frozen=True, eq=False)
class Run:
    """The frames of one run: descriptors float32 [N, D], xy float64 [N, 2], headings float64 [N] (NaN: unknown)."""

    name: str
    view: str
    descriptors: Array
    xy: Array
    headings: Array


@dataclass(frozen=True, eq=False)
class Recall:
    """How one run is found in another, or the mean of several such.

    queries: how many were looked up; at: float64 [candidates], the share of them that is right at N = 1, 2, …;
    one_percent: the share that is right among one percent of the database.
    """

    queries: int
    at: Array
    one_percent: float

    @staticmethod
    def of(ranks: Array, candidates: int, percent: int) -> Recall:
        """Recall from the ranks of the right frames.

        Args:
            ranks: int64 [Q], from 0, the rank of the first right frame of each query.
            candidates: how many frames at most are looked at.
            percent: number of frames in one percent of the database.
        """
        found = np.array([(ranks < n).mean() for n in range(1, candidates + 1)])
        return Recall(len(ranks), found, float((ranks < percent).mean()))

    @staticmethod
    def mean(parts: Sequence[Recall]) -> Recall:
        """The mean, each part counting the same."""
        at = np.mean([part.at for part in parts], axis=0)
        return Recall(sum(p.queries for p in parts), at, float(np.mean([p.one_percent for p in parts])))


@dataclass(frozen=True, eq=False)
class PlaceResult(Result):
    """Recall in percent. pairs: by (query run, database run); groups: means over pairs of runs, "all" first."""

    pairs: Mapping[tuple[str, str], Recall] = field(default_factory=dict)
    groups: Mapping[str, Recall] = field(default_factory=dict)

    def table(self) -> str:
        """A line for each pair of runs, and one for each mean."""
        rows = [(f"{query} in {database}", recall) for (query, database), recall in self.pairs.items()]
        rows = rows if len(rows) <= MOST_ROWS else []
        rows += [(f"mean of {len(self.pairs)} pairs" if n == "all" else n, r) for n, r in self.groups.items()]
        shown = [n for n in SHOWN if n <= len(self.groups["all"].at)]
        width = max(len(name) for name, _ in rows)
        head = "".join(f"{f'@{n}':>8}" for n in shown)
        lines = [f"{'recall (percent)':{width}} {'queries':>8}{head}{'@1%':>8}"]
        for name, recall in rows:
            numbers = "".join(f"{100 * recall.at[n - 1]:8.2f}" for n in shown)
            lines.append(f"{name:{width}} {recall.queries:8}{numbers}{100 * recall.one_percent:8.2f}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything, in percent."""

        def plain(recall: Recall) -> dict[str, Any]:
            at = [100 * float(v) for v in recall.at]
            return {"queries": recall.queries, "recall": at, "one_percent": 100 * recall.one_percent}

        pairs = [{"query": q, "database": d} | plain(recall) for (q, d), recall in self.pairs.items()]
        return super().to_json() | {"pairs": pairs, "groups": {n: plain(r) for n, r in self.groups.items()}}

    def plots(self) -> list[Plot]:
        """Recall over the number of candidates, a curve for each mean."""
        curves = {n: (np.arange(1, len(r.at) + 1), 100 * r.at) for n, r in self.groups.items()}
        return [Plot("recall", "candidates", "recall (percent)", curves)]


def squared_distances(queries: Array, database: Array) -> Array:
    """float64 [Q, N]: squared Euclidean distances of descriptors, up to the square of each query, which ranks none."""
    a, b = queries.astype(np.float64), database.astype(np.float64)
    return (b**2).sum(1) - 2 * a @ b.T


def evaluate(
    visits: Sequence[Visit], descriptors: Array, radius: float, candidates: int = 25, metric: Metric = squared_distances
) -> PlaceResult | None:
    """Recall of frames by their descriptors.

    Args:
        visits: when and how each of N frames was taken.
        descriptors: float32 [N, D].
        radius: metres in x and y within which two frames show the same place.
        candidates: how many nearest frames are looked at.
        metric: gives from descriptors [Q, D] and [N, D] distances [Q, N], or what ranks the N alike.

    Returns:
        None where no frame of a run was taken at a place of another one.

    Raises:
        ValueError: for numbers out of range, descriptors that are not finite, and another number of them than visits.
    """
    _check(radius, candidates)
    if descriptors.ndim != 2 or len(descriptors) != len(visits):
        raise ValueError(f"descriptors must be [{len(visits)}, D], got {list(descriptors.shape)}")
    if not np.isfinite(descriptors).all():
        raise ValueError("descriptors must be finite")
    pairs: dict[tuple[str, str], Recall] = {}
    grouped: dict[str, list[Recall]] = {}
    runs = _runs(visits, descriptors)
    several_views = len({run.view for run in runs}) > 1
    for query, database in permutations(runs, 2):
        found = _looked_up(query, database, radius, candidates, metric)
        if found is None:
            continue
        pairs[query.name, database.name] = found[0]
        grouped.setdefault("all", []).append(found[0])
        if several_views:
            grouped.setdefault(f"{query.view} in {database.view}", []).append(found[0])
        if found[1] is not None:
            grouped.setdefault(OPPOSITE, []).append(found[1])
    if not pairs:
        return None
    groups = {name: Recall.mean(parts) for name, parts in grouped.items()}
    values = dict(_values(groups, candidates))
    return PlaceResult(values["recall@1"], values, "", pairs, groups)


def _values(groups: Mapping[str, Recall], candidates: int) -> Iterator[tuple[str, float]]:
    for name, recall in groups.items():
        prefix = "" if name == "all" else f"{name} "
        for n in SHOWN:
            if n <= candidates:
                yield f"{prefix}recall@{n}", 100 * float(recall.at[n - 1])
        yield f"{prefix}recall@1%", 100 * recall.one_percent


def _check(radius: float, candidates: int) -> None:
    if not 0 < radius < np.inf:
        raise ValueError(f"radius must be above 0, got {radius}")
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {candidates}")


def _runs(visits: Sequence[Visit], descriptors: Array) -> list[Run]:
    members: dict[str, list[int]] = {}
    for number, visit in enumerate(visits):
        members.setdefault(visit.run, []).append(number)
    runs = []
    for name, rows in members.items():
        own = [visits[row] for row in rows]
        headings = np.array([np.nan if v.heading is None else v.heading for v in own])
        xy = np.array([(v.x, v.y) for v in own])
        runs.append(Run(name, own[0].view, descriptors[rows], xy, headings))
    return runs


def _looked_up(
    query: Run, database: Run, radius: float, candidates: int, metric: Metric
) -> tuple[Recall, Recall | None] | None:
    """Recall of all queries that have a match, and of those that face away from all their matches; None for none.

    Runs of different views do not face each other.
    """
    matches = cKDTree(database.xy).query_ball_point(query.xy, radius)
    asked = np.array([row for row, found in enumerate(matches) if found], np.int64)
    if not len(asked):
        return None
    percent = max(round(len(database.xy) / 100), 1)
    nearest = nearest_rows(database.descriptors, query.descriptors[asked], max(candidates, percent), metric)
    ranks = np.array([_first(row, matches[q]) for row, q in zip(nearest, asked, strict=True)])
    same = query.view == database.view
    away = np.array([same and _faces_away(query.headings[q], database.headings[matches[q]]) for q in asked])
    opposite = Recall.of(ranks[away], candidates, percent) if away.any() else None
    return Recall.of(ranks, candidates, percent), opposite


def _first(nearest: Array, matches: Sequence[int]) -> int:
    """The rank of the first match in a list of rows; beyond its end where there is none."""
    hits = np.flatnonzero(np.isin(nearest, matches))
    return int(hits[0]) if len(hits) else np.iinfo(np.int64).max


def _faces_away(heading: float, others: Array) -> bool:
    """Whether a heading differs by over a quarter of a turn from all others; False where one is not known."""
    return bool((np.cos(others - heading) < 0).all())


def nearest_rows(database: Array, queries: Array, count: int, metric: Metric = squared_distances) -> Array:
    """Rows of the database that are nearest to each query, of equal ones the first.

    Args:
        database: floating-point [N, D].
        queries: floating-point [Q, D].
        count: how many are wanted.
        metric: what is small for what is near, [Q, N] from queries and database.

    Returns:
        int64 [Q, min(count, N)].
    """
    parts = (metric(queries[start : start + CHUNK], database) for start in range(0, len(queries), CHUNK))
    return np.concatenate([np.argsort(distance, axis=1, kind="stable")[:, :count] for distance in parts])


class PlaceEvaluator:
    """Recall of the frames of a data set (see `Evaluator`).

    Args:
        visits: when and how each frame was taken, by its id.
        radius: metres in x and y within which two frames show the same place.
        candidates: how many nearest frames are looked at.

    Raises:
        ValueError: for numbers out of range, and where no frame of a run was taken at a place of another run.
    """

    def __init__(self, visits: Mapping[str, Visit], radius: float, candidates: int = 25) -> None:
        _check(radius, candidates)
        self.visits, self.radius, self.candidates = visits, radius, candidates
        if not _has_revisit(list(visits.values()), radius):
            runs = ", ".join(dict.fromkeys(visit.run for visit in visits.values()))
            raise ValueError(f"radius: no frame is within {radius:g} m of a frame of another run; the runs are {runs}")
        self._found: dict[Hashable, Array] = {}

    def add(self, sample: Sample, predictions: Descriptor) -> None:
        """Take the descriptor of one frame."""
        self._found[sample.frame_id] = np.asarray(predictions.numpy().values, np.float32)

    def state(self) -> Mapping[Hashable, Any]:
        """Descriptors by frame."""
        return dict(self._found)

    def merge(self, state: Mapping[Hashable, Any]) -> None:
        """Take the frames of another process."""
        self._found.update(state)

    def result(self) -> PlaceResult | None:
        """Recall over all frames added, in the order of the data set."""
        names = [name for name in self.visits if name in self._found]
        if not names:
            return None
        descriptors = np.stack([self._found[name] for name in names])
        return evaluate([self.visits[name] for name in names], descriptors, self.radius, self.candidates)

    def check_folder(self, folder: str | Path) -> None:
        """Raises DataError when a folder has descriptors of other frames."""
        path = Path(folder) / FILE
        if not path.exists():
            return
        try:
            (frame_ids,) = read_arrays(path, "frame_ids")
        except DataError as error:
            raise DataError(f"{error}; name an empty folder") from error
        others = set(map(str, frame_ids.ravel().tolist())) - set(self.visits)
        if others:
            raise DataError(f"{path}: has descriptors of other frames, as {min(others)}; name an empty folder")

    def write(self, folder: str | Path) -> list[Path]:
        """All descriptors as one file, `descriptors.npz`: frame_ids [N] and descriptors float32 [N, D]."""
        path = Path(folder) / FILE
        names = [name for name in self.visits if name in self._found]
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, frame_ids=np.array(names), descriptors=np.stack([self._found[n] for n in names]))
        return [path]


def _has_revisit(visits: Sequence[Visit], radius: float) -> bool:
    xy = np.array([(v.x, v.y) for v in visits]).reshape(-1, 2)
    runs = np.array([v.run for v in visits])
    pairs = cKDTree(xy).query_pairs(radius, output_type="ndarray") if len(xy) else np.zeros((0, 2), np.int64)
    return bool((runs[pairs[:, 0]] != runs[pairs[:, 1]]).any())
