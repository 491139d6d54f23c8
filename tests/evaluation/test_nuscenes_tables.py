"""The tables of nuScenes as columns: read in pieces, by token, in any layout of folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.evaluation import nuscenes_tables
from pcdet_ext.evaluation.nuscenes_tables import NONE, UNKNOWN, find_tables, read_table, stream
from pcdet_ext.evaluation.nuscenes_truth import _velocities
from pcdet_ext.files import DataError

values = st.one_of(st.integers(-(10**15), 10**15), st.floats(allow_nan=False), st.text(), st.booleans(), st.none())
rows = st.lists(st.dictionaries(st.text(), st.one_of(values, st.lists(values))), max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, 40), st.sampled_from([None, 0, 2]))
def test_rows_come_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, content: list, piece: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("tables") / "table.json"
    path.write_text(json.dumps(content, indent=indent))
    longest = max([1, *(len(json.dumps(row, indent=indent)) + 20 for row in content)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuscenes_tables, "_PIECE", max(piece, longest))
        assert list(stream(path)) == content


@pytest.mark.parametrize("text", ['[{"a": 1}, {"b"', "[", '[{"a": 1}', "", '[{"a": 1}] {', '[{"a": tru}]'])
def test_a_table_that_is_cut_short_is_no_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(DataError, match=r"table\.json: (damaged or cut short|no table)"):
        list(stream(tmp_path / "table.json"))


def test_columns_and_the_rows_that_tokens_name(tmp_path: Path) -> None:
    content = [
        {"token": t, "prev": p, "place": [i, 1.5], "time": i, "tags": ["x"] * i} for i, (t, p) in enumerate(PAIRS)
    ]
    (tmp_path / "table.json").write_text(json.dumps(content))
    kinds = {"prev": str, "place": 2, "time": 0, "tags": tuple[str, ...]}
    table = read_table(tmp_path / "table.json", kinds, lambda row: row["time"] != 1)
    assert table.tokens == ["a", "c", "d"]
    np.testing.assert_array_equal(table.numbers["place"], [[0, 1.5], [2, 1.5], [3, 1.5]])
    assert table.whole("time").tolist() == [0, 2, 3]
    assert table.lists["tags"] == [(), ("x", "x"), ("x", "x", "x")]
    assert table.find(table.texts["prev"]).tolist() == [NONE, 0, UNKNOWN]
    with pytest.raises(DataError, match=r"row 2 \(d\): prev 'b' is not in table\.json"):
        table.rows(table, "prev")


PAIRS = [("a", ""), ("b", "a"), ("c", "a"), ("d", "b")]


def test_a_count_that_is_no_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text('[{"token": "a", "count": 1}, {"token": "b", "count": NaN}]')
    table = read_table(tmp_path / "table.json", {"count": 0})
    with pytest.raises(DataError, match=r"table\.json: row 1 \(b\): count is nan"):
        table.whole("count")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"token": "a", "place": [1]}, r"row 1 \(a\) is wrong \(2 numbers were expected"),
        ({"token": "a", "place": ["1", 2]}, r"row 1 \(a\) is wrong"),
        ({"token": "a", "place": None}, r"row 1 \(a\) is wrong"),
        ({"token": "b"}, r"row 1 \(b\) lacks 'place'"),
        ({"token": "z", "place": [1, 2]}, "several rows have the token 'z'"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict, message: str) -> None:
    (tmp_path / "table.json").write_text(json.dumps([{"token": "z", "place": [1, 2]}, row]))
    with pytest.raises(DataError, match=rf"table\.json: {message}"):
        read_table(tmp_path / "table.json", {"place": 2})


def test_tables_are_found_as_released_and_as_openpcdet_has_them(tmp_path: Path) -> None:
    released, doubled = tmp_path / "a" / "v1.0-mini", tmp_path / "b" / "v1.0-mini" / "v1.0-mini"
    for folder in (released, doubled):
        folder.mkdir(parents=True)
        (folder / "sample.json").write_text("[]")
    assert find_tables(tmp_path / "a") == find_tables(released) == released
    assert find_tables(tmp_path / "b") == find_tables(tmp_path / "b" / "v1.0-mini", "v1.0-mini") == doubled
    with pytest.raises(DataError, match=r"no tables of v1\.0-test; it has v1\.0-mini"):
        find_tables(tmp_path / "a", "v1.0-test")
    with pytest.raises(DataError, match="no tables of nuScenes"):
        find_tables(tmp_path)


def test_velocity_is_a_difference_quotient_over_the_neighbours() -> None:
    places = np.array([[0.0, 0, 0], [1, 0, 0], [4, 2, 1], [5, 5, 5]])
    before, after = np.array([NONE, 0, 1, NONE]), np.array([1, 2, NONE, NONE])
    times = np.array([10.0, 10.5, 12.0, 3.0])
    found = _velocities(places, times, before, after)
    np.testing.assert_allclose(found[:3], [[2, 0, 0], [2, 1, 0.5], [2, 4 / 3, 2 / 3]])
    assert np.isnan(found[3]).all()
    late = _velocities(places, times + [0, 0, 0.01, 0], before, after)
    assert np.isnan(late[2]).all()  # 1.51 s to its only neighbour
    assert not np.isnan(late[1]).any()  # 2.01 s between both
    assert np.isnan(_velocities(places, times * 2, before, after)[1]).all()  # 4 s
