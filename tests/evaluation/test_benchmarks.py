"""Benchmarks by name, through the command line: official numbers, and what is said about wrong files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.cli.command import main
from pcdet_ext.evaluation.nuscenes_files import read_ground_truth, read_json, read_track_ground_truth
from pcdet_ext.evaluation.nuscenes_tables import read_tables
from pcdet_ext.evaluation.nuscenes_truth import detection_truth, tokens_of_scenes, tracking_truth
from pcdet_ext.files import DataError


@pytest.mark.parametrize("case", ["small", "edge_rules"])
def test_tables_give_the_official_ground_truth(shared: Path, case: str) -> None:
    folder = shared / "golden" / "eval_nuscenes" / case
    truth, samples = read_ground_truth(folder / "gt.json")
    tables = read_tables(folder / "tables")
    ours, own_samples = detection_truth(tables, samples.tokens)
    np.testing.assert_array_equal(own_samples.ego, samples.ego)
    np.testing.assert_array_equal(own_samples.racks.translation, samples.racks.translation)
    assert len(ours) == len(truth)
    for name, column in vars(truth).items():
        np.testing.assert_array_equal(getattr(ours, name), column, err_msg=name)


def test_tables_give_the_official_tracks(shared: Path) -> None:
    folder = shared / "golden" / "eval_nuscenes_tracking" / "small"
    truth, sequences = read_track_ground_truth(folder / "gt.json")
    ours, own = tracking_truth(read_tables(folder / "tables"), sequences.samples.tokens)
    np.testing.assert_array_equal(ours.track, truth.track)
    np.testing.assert_array_equal(ours.boxes.translation, truth.boxes.translation)
    np.testing.assert_array_equal(own.scene, sequences.scene)
    np.testing.assert_array_equal(own.timestamp, sequences.timestamp)


@pytest.mark.parametrize(("kind", "key"), [("nuscenes", "nd_score"), ("nuscenes_tracking", "amota")])
def test_the_command_line_gives_the_official_numbers(shared: Path, tmp_path: Path, kind: str, key: str) -> None:
    folder = shared / "golden" / f"eval_{kind}" / "small"
    expected = read_json(folder / "expected.json")["summary"]
    for truth in ("tables", "gt.json"):
        out = tmp_path / "out.json"
        arguments = ["--ground-truth", str(folder / truth), "--results", str(folder / "results.json")]
        assert main(["evaluate", kind, *arguments, "--json", str(out), "--plots", str(tmp_path / "plots")]) == 0
        assert json.loads(out.read_text())[key] == pytest.approx(expected[key], abs=1e-9)
    assert list((tmp_path / "plots").iterdir())


def test_regions_of_interest_count_where_there_are_maps(shared: Path, tmp_path: Path) -> None:
    folder = shared / "golden" / "eval_argoverse2" / "roi"
    expected = json.loads((folder / "expected.json").read_text())
    arguments = ["--ground-truth", str(folder / "sensor" / "val"), "--results", str(folder / "detections.feather")]
    for more, numbers in (([], expected), (["region=false"], expected["without_roi"])):
        assert main(["evaluate", "argoverse2", *arguments, "--json", str(tmp_path / "out.json"), *more]) == 0
        found = json.loads((tmp_path / "out.json").read_text())["AVERAGE_METRICS"]
        assert found["AP"] == pytest.approx(numbers["AVERAGE_METRICS"]["AP"], abs=1e-9)


@pytest.fixture
def tables(shared: Path, tmp_path: Path) -> Path:
    """A copy of a release that a test may damage."""
    shutil.copytree(shared / "golden" / "eval_nuscenes" / "small" / "tables", tmp_path / "tables")
    folder = tmp_path / "tables" / "v1.0-trainval"
    for path in [tmp_path / "tables", folder, *folder.iterdir()]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sample_annotation", "[{}]", r"sample_annotation\.json: row 0 \(without token\) lacks 'token'"),
        ("sample_annotation", '[{"token":', r"sample_annotation\.json: damaged"),
        ("sample_annotation", '{"token": 1}', r"sample_annotation\.json: no table"),
        ("sample_annotation", "[3]", r"sample_annotation\.json: a row that is no object: 3"),
        (
            "category",
            '[{"token": "a", "name": 5}]',
            r"category\.json: row 0 \(a\) is wrong \(a text was expected, got 5\)",
        ),
        ("sensor", "[]", r"calibrated_sensor\.json: row 0 .*sensor_token '\w+' is not in sensor\.json"),
        ("instance", "[]", r"sample_annotation\.json: row 0 .*instance_token '\w+' is not in instance\.json"),
        ("attribute", None, r"attribute\.json: no such file"),
    ],
)
def test_damaged_tables_are_named(tables: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (tables / f"{name}.json").unlink()
    else:
        (tables / f"{name}.json").write_text(content)
    with pytest.raises(DataError, match=message):
        _all_truth(tables)


def _all_truth(folder: Path) -> None:
    found = read_tables(folder)
    detection_truth(found, found.sample.tokens)


def test_scenes_are_chosen_by_name_or_by_the_results(tables: Path) -> None:
    found = read_tables(tables.parent)
    rows = {row["token"]: row for row in json.loads((tables / "scene.json").read_text())}
    first = json.loads((tables / "sample.json").read_text())[0]
    scene = rows[first["scene_token"]]
    tokens = tokens_of_scenes(found, None, [first["token"]])
    assert len(tokens) == scene["nbr_samples"]
    assert tokens_of_scenes(found, [scene["name"]], []) == tokens
    with pytest.raises(DataError, match="has no scene 'scene-x'"):
        tokens_of_scenes(found, ["scene-x"], [])
    with pytest.raises(DataError, match="has none of the samples of the results, such as nothing"):
        tokens_of_scenes(found, None, ["nothing"])
    shutil.copytree(tables, tables.with_name("v1.0-mini"))
    with pytest.raises(DataError, match=r"several releases \(v1\.0-mini, v1\.0-trainval\)"):
        read_tables(tables.parent)


@pytest.mark.parametrize(("kind", "case"), [("nuscenes", "edge_rules"), ("nuscenes_tracking", "constant_score")])
def test_a_ground_truth_without_boxes_is_no_table(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str, case: str
) -> None:
    folder = root / "tests" / "data" / "golden" / f"eval_{kind}" / case
    truth = json.loads((folder / "gt.json").read_text())
    truth["gt_boxes"] = {token: [] for token in truth["gt_boxes"]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    arguments = ["--ground-truth", str(tmp_path / "gt.json"), "--results", str(folder / "results.json")]
    assert main(["evaluate", kind, *arguments, "--json", str(tmp_path / "out.json")]) == 1
    assert "no box of the ground truth counts" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


SAMPLE = {"ego_translation": [0.0, 0.0, 0.0], "bicycle_racks": []}
RACK = {"translation": [0.0, 0.0, 0.0], "size": [1.0, 1.0, 1.0], "rotation": [1.0, 0.0, 0.0, 0.0]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no ground truth"),
        ({"samples": {"a": SAMPLE}}, "no ground truth"),
        ({"samples": {"a": SAMPLE}, "gt_boxes": {"b": []}}, "gt_boxes has 'b', which is not among the samples"),
        ({"samples": {"a": SAMPLE}, "gt_boxes": {"a": 3}}, "sample a: expected a list of boxes, got int"),
        ({"samples": {"a": SAMPLE | {"ego_translation": [0, 0]}}, "gt_boxes": {}}, "ego_translation must be 3 numbers"),
        ({"samples": {"a": {"bicycle_racks": []}}, "gt_boxes": {}}, "sample a: 'ego_translation' is missing"),
        ({"samples": {"a": SAMPLE | {"bicycle_racks": None}}, "gt_boxes": {}}, "a list of boxes, got NoneType"),
        (
            {"samples": {"a": SAMPLE | {"bicycle_racks": [RACK | {"size": "1"}]}}, "gt_boxes": {}},
            "sample a: bicycle rack: size must be 3 numbers",
        ),
    ],
)
def test_damaged_ground_truth_files_are_named(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"gt\.json: .*{message}"):
        read_ground_truth(path)
