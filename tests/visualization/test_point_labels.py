"""Pictures of points by class: what was found, or else what is labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_reader import channel_in, points_in

from pcdet_ext.cli.command import main
from pcdet_ext.data import semantickitti
from pcdet_ext.structures import PointLabels, Targets
from pcdet_ext.visualization.frames import frame_scenes
from pcdet_ext.visualization.levels import UNLABELLED_COLOUR, levels, point_colours
from pcdet_ext.visualization.page import page_data
from pcdet_ext.visualization.scene import Scene, labelled_points, with_point_labels
from pcdet_ext.visualization.view import _point_colours, _rgb

NAMES = ("road", "car", "pole")


def scene(labels: list[int]) -> Scene:
    points = np.column_stack([np.arange(len(labels))] * 3 + [np.zeros(len(labels))]).astype(np.float32)
    return with_point_labels(
        Scene(points, title="a", point_features=("x", "y", "z", "timestamp")),
        PointLabels(np.array(labels), np.ones(len(labels)), NAMES),
    )


def test_each_class_has_a_colour_and_what_has_none_is_grey() -> None:
    told = levels(scene([0, 2, -1, 2]))
    assert told.title == "points by class"
    assert [told.labels[i] for i in told.level] == ["road", "pole", "no label", "pole"]
    assert [told.colours[i] for i in told.level][2] == UNLABELLED_COLOUR
    assert len(set(point_colours(19))) == 20
    colours = _point_colours(scene([0, -1]))
    np.testing.assert_allclose(colours, [_rgb(told.colours[0]), _rgb(UNLABELLED_COLOUR)])


def test_labels_stay_with_points_that_are_left_out_or_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scene([0, 1, 2, 1])
    whole.points[1, 0] = np.nan
    assert np.asarray(whole.finite().point_labels.labels).tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="3 points are finite, but 4 have labels"):
        with_point_labels(whole, whole.point_labels)
    assert labelled_points(Targets()) is None
    monkeypatch.setattr("pcdet_ext.visualization.page.MOST_POINTS", 2)
    data, blob = page_data([scene([0, 1, 1, 2])])
    assert labels_in(data, blob) == [["road", "pole"]]
    np.testing.assert_allclose(points_in(data["frames"][0], blob)[:, 0], [0, 3], atol=1e-4)


def labels_in(data: dict[str, Any], blob: bytes) -> list[list[str]]:
    """The class of each point in each frame of a page."""
    names = [entry["name"] for entry in data["colourings"][0]["classes"]]
    return [[names[i] for i in channel_in(frame, blob, "class")] for frame in data["frames"]]


def test_a_page_of_several_frames_shows_classes() -> None:
    data, blob = page_data([scene([0, 1]), scene([2, -1])])
    assert labels_in(data, blob) == [["road", "car"], ["pole", "no label"]]
    (by, *_) = data["colourings"]
    assert by["name"] == "class"
    assert [entry["colour"] for entry in by["classes"]] == point_colours(3)


def test_frames_of_a_data_set_and_results_of_any_code_base_are_drawn(tmp_path: Path) -> None:
    root, results = tmp_path / "data", tmp_path / "results"
    folder = root / "sequences" / "08"
    (folder / "velodyne").mkdir(parents=True)
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-60, 60, (200, 2)), rng.uniform(-2, 1, 200), rng.random(200)])
    points.astype("<f4").tofile(folder / "velodyne" / "000000.bin")
    ids = rng.choice([40, 10, 70], 200)
    semantickitti.write_labels(folder / "labels" / "000000.label", ids)
    other = np.roll(ids, 1)
    semantickitti.write_labels(results / "sequences" / "08" / "predictions" / "000000.label", other)
    assert main(["prepare", "semantickitti", "--root", str(root), "--splits", "val", "--quiet"]) == 0
    dataset = semantickitti.SemanticKittiDataset(
        root=str(root),
        classes=["road", "car", "vegetation"],
        point_cloud_range=[-30, -30, -5, 30, 30, 5],
        split="val",
    )
    number = {40: 0, 10: 1, 70: 2}
    rows = dataset[0].point_rows
    assert 0 < len(rows) < 200
    (labelled,) = frame_scenes(dataset, [0], "val")
    assert np.asarray(labelled.point_labels.labels).tolist() == [number[i] for i in ids[rows].tolist()]
    (found,) = frame_scenes(dataset, [0], "val", results=dataset.read_results(results))
    assert np.asarray(found.point_labels.labels).tolist() == [number[i] for i in other[rows].tolist()]
    command = ["visualize", "semantickitti/demo", f"data.root={root}", "--frame", "08_000000", "--results"]
    for name in ("a.png", "a.html"):
        assert main([*command, str(results), "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 10_000
    assert main([*command, str(root), "--out", str(tmp_path / "b.png")]) == 2
