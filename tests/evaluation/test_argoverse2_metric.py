"""Argoverse 2 detection metrics: rules by hand, and tables that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from pcdet_ext.evaluation.argoverse2 import Config, Cuboids, categories_present, evaluate
from pcdet_ext.evaluation.argoverse2_files import (
    numbered,
    read_annotations,
    read_detections,
    read_region,
    read_table,
    region_mask,
)
from pcdet_ext.evaluation.benchmarks import argoverse2
from pcdet_ext.files import DataError


def cuboids(x: list[float], score: list[float] | None = None, points: int = 9, name: str = "BUS") -> Cuboids:
    count = len(x)
    return Cuboids(
        sweep=np.zeros(count, np.int64),
        category=np.full(count, name),
        center=np.column_stack([x, np.zeros(count), np.zeros(count)]),
        size=np.tile([10.0, 3.0, 3.0], (count, 1)),
        rotation=np.tile([1.0, 0, 0, 0], (count, 1)),
        score=np.array(score if score is not None else [0.0] * count),
        num_points=np.full(count, points),
    )


def test_only_the_best_detection_that_looks_at_an_object_may_match_it() -> None:
    result = evaluate(cuboids([0]), cuboids([3, 0], [0.9, 0.8]))
    assert result.classes["BUS"].true_positives == (0, 0, 0, 1)
    assert result.detections.hits.tolist() == [[False, False, False, True], [False] * 4]


def test_only_the_best_of_a_class_in_a_sweep_count() -> None:
    result = evaluate(cuboids([0]), cuboids([0, 50, 60, 200], [0.1, 0.9, 0.8, 0.95]), Config(max_detections=2))
    assert result.detections.counts.tolist() == [False, True, True, False]
    assert result.classes["BUS"].ap == 0


def test_a_class_without_annotations_has_the_worst_numbers() -> None:
    found = evaluate(cuboids([0]), cuboids([0], [0.5])).classes
    assert found["BUS"].metrics == pytest.approx({"AP": 1.0, "ATE": 0.0, "ASE": 0.0, "AOE": 0.0, "CDS": 1.0})
    assert found["DOG"].metrics == {"AP": 0.0, "ATE": 2.0, "ASE": 1.0, "AOE": np.pi, "CDS": 0.0}
    assert categories_present(cuboids([0])) == ("BUS",)


def test_empty_tables_are_accepted() -> None:
    for truth, detections in ((cuboids([]), cuboids([0], [0.5])), (cuboids([0]), cuboids([])), (cuboids([]),) * 2):
        assert evaluate(truth, detections).average["AP"] == 0


def test_the_mask_grows_by_five_metres() -> None:
    mask, origin = region_mask(
        [np.array([[0.0, 0.0], [40.0, 0.0], [40.0, 20.0], [0.0, 20.0]]), np.array([[60.0, 30.0]])]
    )
    assert origin.tolist() == [0, 0]
    row, column = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]] / 10
    gap = np.hypot(np.maximum(column - 40, 0), np.maximum(row - 20, 0))
    near = (gap <= 5) | (np.hypot(column - 60, row - 30) <= 5)
    assert (mask == near).mean() > 0.9999


COLUMNS = {
    **{key: [0.0] for key in ("tx_m", "ty_m", "tz_m", "qx", "qy", "qz")},
    **{key: [1.0] for key in ("length_m", "width_m", "height_m", "qw", "score")},
    "log_id": ["a"], "timestamp_ns": [5], "category": ["BUS"], "num_interior_pts": [3],
}  # fmt: skip


def test_tables_are_numbered_together(tmp_path: Path) -> None:
    feather.write_feather(pa.table(COLUMNS), tmp_path / "d.feather")
    other = {**COLUMNS, "timestamp_ns": [4]}
    feather.write_feather(pa.table(other), tmp_path / "a.feather")
    truth, found, sweeps = numbered(read_annotations(tmp_path / "a.feather"), read_detections(tmp_path / "d.feather"))
    assert sweeps == [("a", 4), ("a", 5)]
    assert (truth.sweep.tolist(), found.sweep.tolist()) == ([0], [1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": None}, "no column 'score'; there are "),
        ({"tx_m": [float("nan")]}, "row 0: tx_m, ty_m, tz_m not finite"),
        ({"qw": [0.0]}, "row 0: a rotation of zeros"),
        ({"qw": [1e300]}, "row 0: rotation must be a quaternion of length 1"),
        ({"length_m": [0.0]}, r"row 0: length_m, width_m, height_m must be positive, are \[0.0, 1.0, 1.0\]"),
        ({"timestamp_ns": [0.5]}, "column 'timestamp_ns' must have whole numbers, is of double"),
        ({"timestamp_ns": pa.array([None], pa.int64())}, "column 'timestamp_ns' .* of int64, 1 cells of it empty"),
        ({"tx_m": ["1.5"]}, "column 'tx_m' must have numbers, is of string"),
        ({"score": [True]}, "column 'score' must have numbers, is of bool"),
        ({"category": [3]}, "column 'category' must have texts, is of int64"),
        ({"log_id": pa.array([None], pa.string())}, "column 'log_id' must have texts, is of string, 1 cells"),
    ],
)
def test_wrong_tables_name_the_row(tmp_path: Path, changes: dict[str, list | None], message: str) -> None:
    table = {k: v for k, v in {**COLUMNS, **changes}.items() if v is not None}
    feather.write_feather(pa.table(table), tmp_path / "d.feather")
    with pytest.raises(DataError, match=rf"d\.feather: {message}"):
        read_detections(tmp_path / "d.feather")


def test_detections_that_count_nowhere_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [("a", 5, "BUS"), ("a", 5, "Bus"), ("z", 5, "BUS"), ("a", 6, "BUS")]
    feather.write_feather(pa.table(COLUMNS), tmp_path / "a.feather")

    def evaluated(chosen: list[int], **options: object) -> float:
        columns = dict(
            zip(("log_id", "timestamp_ns", "category"), zip(*(rows[i] for i in chosen), strict=True), strict=True)
        )
        table = {k: list(v) if k in columns else v * len(chosen) for k, v in {**COLUMNS, **columns}.items()}
        feather.write_feather(pa.table(table), tmp_path / "d.feather")
        return argoverse2(tmp_path / "a.feather", tmp_path / "d.feather", **options).classes["BUS"].ap

    assert evaluated([0]) == pytest.approx(1)
    assert not caplog.text
    assert 0.9 < evaluated([0, 1, 2, 3]) < 1
    for message in (
        "d.feather: 1 of 4 detections are of categories that the benchmark does not have, as 'Bus'; they do not count",
        "d.feather: 1 of 4 detections are of logs without annotations, as 'z'; they are false",
        "d.feather: 1 of 4 detections are of timestamps without annotations, as 'a at 6'; they are false",
    ):
        assert message in caplog.text
    for chosen, what in (
        ([1], r"category that the benchmark has; known: .*; the first is of 'Bus', a at 5"),
        ([2], "log and timestamp with annotations; the first is of 'BUS', z at 5"),
        ([3], "log and timestamp with annotations; the first is of 'BUS', a at 6"),
        ([2, 3], "log and timestamp with annotations; the first is of 'BUS', z at 5"),
    ):
        with pytest.raises(DataError, match=rf"d\.feather: no detection is of a {what}"):
            evaluated(chosen)
    with pytest.raises(ValueError, match="Argoverse 2 has no category 'Bus'; known: ARTICULATED_BUS"):
        evaluated([0], classes=["Bus"])


def test_damaged_and_missing_tables_are_named(tmp_path: Path) -> None:
    (tmp_path / "d.feather").write_bytes(b"ARROW1 and nothing else")
    for name, message in (("d.feather", "damaged"), ("none.feather", "no such file")):
        with pytest.raises(DataError, match=rf"{name}: {message}"):
            read_detections(tmp_path / name)
    with pytest.raises(DataError, match="no annotations"):
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ([], "drivable area 0 must have corners at finite places"),
        ([(0, 0), (float("nan"), 0)], "drivable area 0 must have corners at finite places"),
        ([(0, 0), (9000, 10)], "extend over 9000 m × 10 m, more than 4000 m"),
        ([(0, 0), (10**400, 10)], "damaged map"),
    ],
)
def test_maps_that_make_no_sense_are_refused(tmp_path: Path, corners: list[tuple[float, float]], message: str) -> None:
    area = {"area_boundary": [{"x": x, "y": y} for x, y in corners]}
    path = tmp_path / "map" / "log_map_archive_a.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"drivable_areas": {"0": area}}))
    with pytest.raises(DataError, match=rf"log_map_archive_a\.json: .*{message}"):
        read_region(tmp_path)


def test_texts_that_are_no_utf_8_are_refused(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32).tobytes()), pa.py_buffer(b"\xff\xfe")]
    )
    feather.write_feather(pa.table({"category": texts}), str(tmp_path / "a.feather"))
    with pytest.raises(DataError, match=r"a\.feather: damaged "):
        read_table(tmp_path / "a.feather", ("category",))
