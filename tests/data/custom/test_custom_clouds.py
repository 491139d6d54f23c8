"""Clouds of a folder of one's own: every kind of file, their columns, and folders that mix them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from custom_folder import NAMES, dataset, make_folder, make_scene, prepared, write_cloud

from pcdet_ext.data.custom import CustomFrames
from pcdet_ext.data.custom.clouds import find_columns
from pcdet_ext.data.custom.layout import Settings
from pcdet_ext.data.prepare import prepare
from pcdet_ext.files import DataError

KINDS = (".bin", ".npy", ".pcd", ".ply", ".las", ".laz", ".feather")


@pytest.mark.parametrize("kind", KINDS)
def test_clouds_of_every_kind_give_the_same_samples(tmp_path: Path, kind: str) -> None:
    if kind in (".las", ".laz"):
        pytest.importorskip("laspy")
    if kind == ".laz":
        pytest.importorskip("lazrs")
    root = make_folder(tmp_path, 8, kind)
    prepared(root)
    found = {s.frame_id: s for split in ("train", "val") for s in dataset(root, split)}
    assert sorted(found) == [f"{i:03d}" for i in range(8)]
    for i, (_, sample) in enumerate(sorted(found.items())):
        points, boxes = make_scene(np.random.default_rng(i))
        np.testing.assert_allclose(
            sample.points[:, :3], points[:, :3], atol=1e-6 if kind not in (".las", ".laz") else 2e-6
        )
        np.testing.assert_allclose(sample.points[:, 3], points[:, 3] / 255, rtol=1e-6)
        assert sample.targets is not None
        np.testing.assert_array_equal(sample.targets.boxes, boxes)
        assert sample.targets.names == NAMES
        assert (np.asarray(sample.targets.num_points) >= 50).all()


def test_kinds_may_be_mixed_in_one_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path, 6, ".pcd")
    points, _ = make_scene(np.random.default_rng(0))
    (root / "points" / "000.pcd").unlink()
    write_cloud(root / "points" / "000.bin", points)
    (root / "dataset.yaml").write_text("point_features: [x, y, z, intensity]\nintensity_scale: 255\n")
    prepared(root, ("all",), database=[])
    np.testing.assert_array_equal(dataset(root, "all")[0].points[:, :3], points[:, :3])


def sized(folder: Path, points: list[int], columns: int) -> list[Path]:
    folder.mkdir()
    paths = []
    for i, count in enumerate(points):
        paths.append(folder / f"{i}.bin")
        np.zeros((count, columns), "<f4").tofile(paths[-1])
    return paths


def test_columns_of_bin_files_are_found_by_size_or_asked_for(tmp_path: Path) -> None:
    four = sized(tmp_path / "four", [101, 103, 107], 4)
    assert find_columns(four, Settings()).headless == ("x", "y", "z", "intensity")
    three = sized(tmp_path / "three", [101, 103, 107], 3)
    assert find_columns(three, Settings()).features == ("x", "y", "z")
    with pytest.raises(
        DataError, match=r"which columns .* may be 3 or 4 or 6 or 8; name them in dataset\.yaml, for instance"
    ):
        find_columns(sized(tmp_path / "twelve", [12, 36], 4), Settings())
    with pytest.raises(DataError, match=r"which columns .* may be 5; name them in dataset\.yaml"):
        find_columns(sized(tmp_path / "five", [101, 103, 107], 5), Settings())
    with pytest.raises(DataError, match="no number of columns from 3 to 8 fits"):
        find_columns(sized(tmp_path / "cut", [101, 103], 1), Settings())
    five = find_columns(
        sized(tmp_path / "stated", [7], 5), Settings(point_features=["x", "y", "z", "intensity", "ring"])
    )
    assert five.read(tmp_path / "stated" / "0.bin").shape == (7, 5)


@pytest.mark.parametrize("kind", [".bin", ".npy", ".pcd"])
def test_clouds_of_different_width(tmp_path: Path, kind: str) -> None:
    root = make_folder(tmp_path, 8, kind, settings="point_features: [x, y, z, intensity]\n")
    path = root / "points" / f"003{kind}"
    points, _ = make_scene(np.random.default_rng(3))
    match kind:
        case ".bin":
            points[:, :3].astype("<f4").tofile(path)
        case ".npy":
            np.save(path, points[:, :3])
        case ".pcd":
            path.write_text(path.read_text().replace("intensity", "normal"))
    with pytest.raises(DataError, match=rf"003\{kind}.*(columns|column for 'intensity')"):
        prepared(root, ("all",), database=[])
    found = prepare(CustomFrames(root), ("all",), database=[], on_error="skip", progress=False)[0]
    assert found.frames == 7
    assert len(found.skipped) == 1


def test_some_clouds_without_intensity(tmp_path: Path) -> None:
    points, _ = make_scene(np.random.default_rng(0))
    write_cloud(tmp_path / "a.pcd", points)
    np.save(tmp_path / "b.npy", points[:, :3])
    with pytest.raises(DataError, match=r"b\.npy: has no intensity, but a\.pcd has"):
        find_columns([tmp_path / "a.pcd", tmp_path / "b.npy"], Settings())
