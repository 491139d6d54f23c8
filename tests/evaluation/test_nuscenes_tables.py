"""The tables of nuScenes as columns: read in pieces, by token, in any layout of folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.evaluation import nuscenes_columns
from pcdet_ext.evaluation.nuscenes_columns import NONE, UNKNOWN, read_table, stream
from pcdet_ext.evaluation.nuscenes_files import read_json
from pcdet_ext.evaluation.nuscenes_tables import Tables, find_tables
from pcdet_ext.evaluation.nuscenes_truth import _boxes, check_categories, samples_of_annotations, velocities
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array

values = st.one_of(st.integers(-(10**15), 10**15), st.floats(allow_nan=False), st.text(), st.booleans(), st.none())
rows = st.lists(st.dictionaries(st.text(), st.one_of(values, st.lists(values))), max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, 40), st.sampled_from([None, 0, 2]))
def test_rows_come_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, content: list, piece: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("tables") / "table.json"
    path.write_text(json.dumps(content, indent=indent))
    longest = max([1, *(len(json.dumps([row], indent=indent)) + 20 for row in content)])  # indented as in the file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuscenes_columns, "_PIECE", max(piece, longest))
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


def write_annotations(folder: Path, times: list[float], **changes: object) -> Tables:
    """Annotations a, b, c of one object that moves from sample to sample, and d of another, at times in seconds."""
    places = [[0.0, 0, 0], [1, 0, 0], [4, 2, 1], [5, 5, 5]]
    links = [("", "b"), ("a", "c"), ("b", ""), ("", "")]
    samples = [{"token": str(i), "scene_token": "s", "timestamp": round(t * 1e6)} for i, t in enumerate(times)]
    rows = [
        {"token": token, "sample_token": str(i), "instance_token": "o", "prev": links[i][0], "next": links[i][1]}
        | {"translation": places[i], "size": [1.0, 1.0, 1.0], "rotation": [1.0, 0, 0, 0], "attribute_tokens": []}
        | {"num_lidar_pts": 1, "num_radar_pts": 0}
        for i, token in enumerate("abcd")
    ]
    rows[1] |= changes
    (folder / "sample.json").write_text(json.dumps(samples))
    (folder / "sample_annotation.json").write_text(json.dumps([{k: v for k, v in r.items() if v != ...} for r in rows]))
    return Tables(folder)


def test_velocity_is_a_difference_quotient_over_the_neighbours(tmp_path: Path) -> None:
    times, every = np.array([10.0, 10.5, 12.0, 3.0]), np.arange(4)
    found = velocities(write_annotations(tmp_path, times.tolist()), every)
    np.testing.assert_allclose(found[:3], [[2, 0, 0], [2, 1, 0.5], [2, 4 / 3, 2 / 3]])
    assert np.isnan(found[3]).all()
    late = velocities(write_annotations(tmp_path, (times + [0, 0, 0.01, 0]).tolist()), every)
    assert np.isnan(late[2]).all()  # 1.51 s to its only neighbour
    assert not np.isnan(late[1]).any()  # 2.01 s between both
    np.testing.assert_array_equal(velocities(write_annotations(tmp_path, times.tolist()), np.array([1])), found[[1]])
    assert np.isnan(velocities(write_annotations(tmp_path, (times * 2).tolist()), every)[1]).all()  # 4 s


def test_the_place_of_a_wrong_neighbour_is_not_known(tmp_path: Path) -> None:
    for wrong in (..., [float("inf"), 0, 0], [1e200, 0, 0]):
        tables = write_annotations(tmp_path, [10.0, 10.5, 11.0, 3.0], translation=wrong)
        assert np.isnan(velocities(tables, np.array([0, 2]))).all()


@pytest.mark.parametrize("times", [[0.0] * 4, [11.0, 10.5, 12, 3], [10.0, 12.5, 12, 3]])
def test_neighbours_in_the_wrong_order_are_named(tmp_path: Path, times: list[float]) -> None:
    tables = write_annotations(tmp_path, times)
    with pytest.raises(
        DataError, match=r"sample_annotation\.json: [abc]: (prev is .* not earlier|next is .* not later)"
    ):
        velocities(tables, np.arange(4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"translation": [10**400, 0, 0]}, r"row 1 \(b\) is wrong \(int too large"),
        ({"size": ...}, r"row 1 \(b\) lacks 'size'"),
        ({"rotation": "1000"}, r"row 1 \(b\) is wrong \(4 numbers were expected, got '1000'"),
        ({"translation": [0, 1e10, 0]}, "b: translation is beyond 1e\\+09"),
        ({"size": [1e300, 1, 1]}, "b: size is beyond 1000"),
        ({"rotation": [1e300, 0, 0, 0]}, "b: rotation is beyond"),
        ({"rotation": [1e5, 0, 0, 0]}, "b: rotation must be a quaternion of length 1"),
        ({"num_lidar_pts": -5}, r"row 1 \(b\): num_lidar_pts is -5, expected a whole number of at least 0"),
        ({"num_lidar_pts": 1e30}, r"num_lidar_pts is 1e\+30, expected a whole number"),
        ({"num_lidar_pts": 2**40}, "more points than a scan can have"),
        ({"num_lidar_pts": 2.5}, "num_lidar_pts is 2.5, expected a whole number"),
        ({"instance_token": ""}, r"row 1 \(b\): instance_token is empty, expected a token of instance\.json"),
    ],
)
def test_a_wrong_annotation_does_harm_to_its_own_rows_alone(tmp_path: Path, changes: dict, message: str) -> None:
    tables = write_annotations(tmp_path, [10.0, 10.5, 11.0, 3.0], **changes)
    (tmp_path / "instance.json").write_text('[{"token": "o", "category_token": "c"}]')
    (tmp_path / "category.json").write_text('[{"token": "c", "name": "vehicle.car"}]')
    (tmp_path / "attribute.json").write_text("[]")

    def look_at(rows: Array) -> None:
        tables.categories(rows)
        _boxes(tables, rows, rows, np.full(len(rows), "car"))

    look_at(np.array([0, 2, 3]))
    with pytest.raises(DataError, match=rf"sample_annotation\.json: {message}|sample_annotation\.json: .*{message}"):
        look_at(np.arange(4))


def test_an_annotation_without_sample_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 \(b\): sample_token is empty"):
        samples_of_annotations(write_annotations(tmp_path, [1.0, 2, 3, 4], sample_token=""))
    with pytest.raises(DataError, match=r"row 1 \(b\) lacks 'sample_token'"):
        write_annotations(tmp_path, [1.0, 2, 3, 4], sample_token=...).annotation.check()


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '[{"token": ' + "[" * 100_000, '[{"token": "a", "n": ' + "1" * 5000 + "}]"],
    ids=["lists", "lists in a row", "digits"],
)
def test_json_that_no_reader_takes_names_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"table\.json: damaged"):
        list(stream(path))
    with pytest.raises(DataError, match=r"table\.json: damaged"):
        read_json(path)


def test_an_empty_token_is_no_row_where_one_is_needed(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text('[{"token": "a", "prev": ""}, {"token": "b", "prev": "a"}]')
    table = read_table(tmp_path / "table.json", {"prev": str})
    assert table.optional_rows(table, "prev").tolist() == [NONE, 0]
    with pytest.raises(DataError, match=r"row 0 \(a\): prev is empty, expected a token of table\.json"):
        table.rows(table, "prev")


@pytest.mark.parametrize("value", [1e300, -1e300, float("inf"), 0.5, 2**53 + 2])
def test_whole_numbers_are_held_exactly(tmp_path: Path, value: float) -> None:
    (tmp_path / "table.json").write_text(json.dumps([{"token": "a", "time": 2**53}, {"token": "b", "time": value}]))
    table = read_table(tmp_path / "table.json", {"time": 0})
    assert table.whole("time", np.array([0])).tolist() == [2**53]
    with pytest.raises(DataError, match=r"table\.json: row 1 \(b\): time is .* expected a whole number"):
        table.whole("time")


def test_categories_that_nuscenes_does_not_have_are_told(caplog: pytest.LogCaptureFixture) -> None:
    check_categories("category.json", ["vehicle.car", "animal"])
    assert not caplog.text
    check_categories("category.json", ["vehicle.car", "vehicle.auto", "vehicle.auto"])
    assert (
        "category.json: 2 of 3 objects are of categories that nuScenes does not have, as 'vehicle.auto'" in caplog.text
    )
    with pytest.raises(DataError, match=r"category\.json: 1 of 1 objects .* a car, for example, is 'vehicle\.car'"):
        check_categories("category.json", ["auto"])
