"""Recall of place recognition against a count by hand, one query after the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.evaluation.places import PlaceEvaluator, Visit, evaluate
from pcdet_ext.files import DataError
from pcdet_ext.structures import Descriptor, Sample


def by_hand(visits: list[Visit], values: np.ndarray, radius: float, candidates: int) -> dict[tuple[str, str], dict]:
    """For each pair of runs: queries, share right at each N, share right at one percent."""
    found = {}
    runs = list(dict.fromkeys(v.run for v in visits))
    for query in runs:
        for database in runs:
            if query == database:
                continue
            rows = [i for i, v in enumerate(visits) if v.run == database]
            right = np.zeros(candidates)
            count, percent = 0, 0
            for i, visit in enumerate(visits):
                near = [j for j in rows if np.hypot(visits[j].x - visit.x, visits[j].y - visit.y) <= radius]
                if visit.run != query or not near:
                    continue
                count += 1
                ranked = sorted(rows, key=lambda j: (np.linalg.norm(values[j] - values[i]), j))
                for n in range(1, candidates + 1):
                    right[n - 1] += any(j in near for j in ranked[:n])
                percent += any(j in near for j in ranked[: max(round(len(rows) / 100), 1)])
            if count:
                found[query, database] = {"queries": count, "at": right / count, "percent": percent / count}
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), runs=st.integers(2, 4), candidates=st.integers(1, 30))
def test_recall_is_what_a_count_by_hand_gives(seed: int, runs: int, candidates: int) -> None:
    rng = np.random.default_rng(seed)
    visits = [Visit(f"run {rng.integers(runs)}", *rng.uniform(0, 60, 2)) for _ in range(60)]
    values = rng.normal(size=(60, 3)).astype(np.float32)
    wanted = by_hand(visits, values.astype(np.float64), 8.0, candidates)
    result = evaluate(visits, values, 8.0, candidates)
    assert result is not None
    assert set(result.pairs) == set(wanted)
    for pair, recall in result.pairs.items():
        assert recall.queries == wanted[pair]["queries"]
        np.testing.assert_allclose(recall.at, wanted[pair]["at"])
        assert recall.one_percent == pytest.approx(wanted[pair]["percent"])
    mean = np.mean([w["at"] for w in wanted.values()], axis=0)
    np.testing.assert_allclose(result.groups["all"].at, mean)
    assert result.score == pytest.approx(100 * mean[0])


def test_one_percent_of_a_large_database_may_be_more_than_the_candidates() -> None:
    rng = np.random.default_rng(0)
    database = [Visit("a", 10.0 * i, 0.0) for i in range(600)]
    queries = [Visit("b", 10.0 * i, 1.0) for i in range(0, 600, 7)]
    values = np.concatenate([np.arange(600), np.arange(0, 600, 7) + rng.normal(0, 4, len(queries))])[:, None]
    result = evaluate(database + queries, values.astype(np.float32), 3.0, candidates=2)
    assert result is not None
    found = result.pairs["b", "a"]
    off = np.abs(values[600:, 0] - np.arange(0, 600, 7))
    assert found.one_percent >= (off < 2.5).mean()  # the right one is among six when it is less than three rows away
    assert found.one_percent > found.at[-1]


def test_queries_of_the_opposite_direction_are_measured_on_their_own() -> None:
    there = [Visit("there", 10.0 * i, 0.0, heading=0.0) for i in range(4)]
    back = [Visit("back", 10.0 * i, 2.0, heading=np.pi if i < 2 else 0.1) for i in range(4)]
    values = np.array([0, 1, 2, 3, 5, 1, 2, 3], np.float32)[
        :, None
    ]  # the first of `back` looks like the last of `there`
    result = evaluate(there + back, values, 3.0, candidates=1)
    assert result is not None
    assert result.pairs["back", "there"].at[0] == 0.75
    opposite = result.groups["opposite direction"]
    assert opposite.queries == 4
    assert opposite.at[0] == pytest.approx((0.5 + 0.5) / 2)
    assert "opposite direction" in result.table()


def test_views_are_compared_with_each_other() -> None:
    ground = [Visit("g", 10.0 * i, 0.0, view="ground") for i in range(3)]
    aerial = [Visit("a", 10.0 * i, 0.0, view="aerial") for i in range(3)]
    values = np.array([0, 1, 2, 0, 1, 2], np.float32)[:, None]
    result = evaluate(ground + aerial, values, 3.0, candidates=2)
    assert result is not None
    assert result.values["ground in aerial recall@1"] == 100
    assert {"all", "ground in aerial", "aerial in ground"} <= set(result.groups)
    (plot,) = result.plots()
    assert set(plot.curves) == set(result.groups)


def sample(frame_id: str) -> Sample:
    return Sample(np.zeros((1, 3), np.float32), ("x", "y", "z"), frame_id)


def test_evaluator_merges_the_frames_of_processes_and_writes_descriptors(tmp_path: Path) -> None:
    visits = {f"{run}{i}": Visit(run, 20.0 * i, 0.0) for run in "ab" for i in range(3)}
    values = {name: np.array([float(name[1]), 1.0], np.float32) for name in visits}
    whole, *parts = (PlaceEvaluator(visits, 5.0) for _ in range(3))
    for number, name in enumerate(visits):
        whole.add(sample(name), Descriptor(values[name]))
        parts[number % 2].add(sample(name), Descriptor(values[name]))
    parts[0].merge(parts[1].state())
    first, second = whole.result(), parts[0].result()
    assert first is not None
    assert second is not None
    assert first.to_json() == second.to_json()
    assert first.score == 100
    whole.check_folder(tmp_path)
    (path,) = whole.write(tmp_path)
    whole.check_folder(tmp_path)
    with np.load(path) as content:
        assert content["frame_ids"].tolist() == list(visits)
    with pytest.raises(DataError, match="other frames"):
        PlaceEvaluator({n: v for n, v in visits.items() if n != "a0"}, 5.0).check_folder(tmp_path)
    path.write_bytes(b"PK\x03\x04" + bytes(range(200)))
    with pytest.raises(DataError, match=r"descriptors\.npz: no readable \.npz .*; name an empty folder"):
        whole.check_folder(tmp_path)


def test_what_cannot_be_measured_is_refused() -> None:
    apart = {"a": Visit("a", 0.0, 0.0), "b": Visit("b", 100.0, 0.0)}
    with pytest.raises(ValueError, match="no frame is within 5 m of a frame of another run"):
        PlaceEvaluator(apart, 5.0)
    with pytest.raises(ValueError, match="finite"):
        evaluate(list(apart.values()), np.full((2, 1), np.nan, np.float32), 5.0)
    with pytest.raises(ValueError, match="candidates"):
        evaluate(list(apart.values()), np.zeros((2, 1), np.float32), 5.0, 0)
