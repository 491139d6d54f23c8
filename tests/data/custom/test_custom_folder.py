"""A folder of one's own data: its files, settings and splits, and what is said of wrong ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from custom_folder import dataset, make_folder, prepared, run

from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.data.custom import CustomFrames
from pcdet_ext.data.custom.layout import find_files, frames_of_split, natural
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.data.prepare import prepare
from pcdet_ext.files import DataError

WRONG = {
    "labels": (lambda root: (root / "labels/004.txt").write_text("1 2 3\n"), r"labels/004\.txt:1: .*columns"),
    "nan": (lambda root: (root / "labels/004.txt").write_text("1 2 nan 1 1 1 0 Person\n"), r"004\.txt:1: .*finite"),
    "size": (lambda root: (root / "labels/004.txt").write_text("1 2 3 1 0 1 0 Person\n"), r"004\.txt:1: .*positive"),
    "degrees": (lambda root: (root / "labels/004.txt").write_text("1 2 3 1 1 1 90 Person\n"), r"004\.txt:1: .*degrees"),
    "no label": (lambda root: (root / "labels/004.txt").unlink(), r"points/004\.pcd: has no label file .*empty \.txt"),
    "no cloud": (lambda root: (root / "points/004.pcd").unlink(), r"labels/004\.txt: frame '004' has no point cloud"),
    "cut cloud": (lambda root: (root / "points/004.pcd").write_text("VERSION 0.7\n"), r"004\.pcd: damaged"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named_or_left_out_and_counted(tmp_path: Path, wrong: str) -> None:
    root = make_folder(tmp_path, 6)
    change, message = WRONG[wrong]
    change(root)
    with pytest.raises(DataError, match=message):
        prepared(root, ("all",), database=[])
    found = prepare(CustomFrames(root), ("all",), database=[], on_error="skip", progress=False)[0]
    assert (found.frames, len(found.skipped)) == (5, 1)


def test_unknown_class(tmp_path: Path) -> None:
    root = make_folder(tmp_path, 6, settings="classes: [Fork lift, Persons]\n")
    with pytest.raises(DataError, match=r"000\.txt:2: unknown class 'Person'; did you mean 'Persons'"):
        prepared(root, ("all",))


def test_two_files_for_one_frame(tmp_path: Path) -> None:
    root = make_folder(tmp_path, 2)
    (root / "labels" / "001.json").write_text("[]")
    with pytest.raises(DataError, match=r"001\.txt: frame '001' has another file, 001\.json"):
        CustomFrames(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("intensity_scal: 255", r"dataset\.yaml:1.*did you mean 'intensity_scale'"),
        ("point_features: [intensity, x, y, z]", r"dataset\.yaml.*x, y, z and then"),
        ("heading_unit: turns", r"dataset\.yaml:1.*heading_unit"),
        ("max_sweeps: 0", r"max_sweeps must lie in \[1, 400\]"),
        ("intensity_scale: 0", "must be positive"),
        ("max_sweeps: 2", r"dataset\.yaml: max_sweeps: .* needs their poses"),
    ],
)
def test_wrong_settings(tmp_path: Path, text: str, message: str) -> None:
    root = make_folder(tmp_path, 3, settings=f"{text}\n")
    with pytest.raises((ConfigError, DataError), match=message):
        CustomFrames(root)


def test_no_data_here_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"points is missing, which holds the clouds .* beside labels/FRAME\.txt"):
        CustomFrames(tmp_path)
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "a.e57").write_text("")
    with pytest.raises(DataError, match=r"holds no point cloud .*\.e57"):
        CustomFrames(tmp_path)


def empty_files(root: Path, names: list[str]) -> Path:
    for name in names:
        for path in (root / "points" / f"{name}.pcd", root / "labels" / f"{name}.txt"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    return root


def test_the_made_split_keeps_frames_where_they_are(tmp_path: Path) -> None:
    few = [str(i) for i in range(200)]
    folder = find_files(empty_files(tmp_path, few))
    train, val = (frames_of_split(folder, split, 0.2) for split in ("train", "val"))
    assert sorted([*train, *val]) == sorted(few)
    assert 0.1 < len(val) / 200 < 0.3
    assert train == sorted(train, key=int)  # 9 before 10
    more = find_files(empty_files(tmp_path, [str(i) for i in range(200, 260)]))
    assert set(val) <= set(frames_of_split(more, "val", 0.2))
    assert set(train) <= set(frames_of_split(more, "train", 0.2))
    assert frames_of_split(folder, "all", 0.2) == sorted(few, key=int)
    with pytest.raises(DataError, match="split 'vall' is none of the made ones; did you mean 'val'"):
        frames_of_split(folder, "vall", 0.2)


def test_whole_sequences_are_held_back(tmp_path: Path) -> None:
    names = [f"drive_{d}/{i}" for d in range(7) for i in range(3)]
    folder = find_files(empty_files(tmp_path, names))
    sides = {split: {n.split("/")[0] for n in frames_of_split(folder, split, 0.2)} for split in ("train", "val")}
    assert sides["train"]
    assert sides["val"]
    assert not sides["train"] & sides["val"]


def test_two_frames_make_a_split_and_one_does_not(tmp_path: Path) -> None:
    folder = find_files(empty_files(tmp_path, ["a", "b"]))
    assert len(frames_of_split(folder, "train", 0.2)) == len(frames_of_split(folder, "val", 0.2)) == 1
    with pytest.raises(DataError, match="one frame alone"):
        frames_of_split(find_files(empty_files(tmp_path / "one", ["a"])), "val", 0.2)


def test_lists_of_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path, 6)
    lists = root / "ImageSets"
    lists.mkdir()
    (lists / "train.txt").write_text("003\n001\n")
    (lists / "val.txt").write_text("000\n")
    (lists / "test.txt").write_text("005\n")
    (root / "labels" / "005.txt").unlink()
    prepared(root, ("train", "val", "test"))
    assert dataset(root).frames.frame_ids == ["003", "001"]
    assert not dataset(root, "test").frames.labelled
    assert run("prepare", "custom", "--root", root, "--splits", "train", "val", "test", "--quiet") == 0
    text = capsys.readouterr().out
    assert "in none of the splits train, val, test, and not looked at: 2 frames" in text
    assert "suspicious" not in text
    (lists / "val.txt").write_text("000\n\n000\n")
    with pytest.raises(DataError, match=r"val\.txt:3: frame '000' stands in line 1 already"):
        prepared(root, ("val",))
    (lists / "val.txt").write_text("999\n")
    with pytest.raises(DataError, match="frame '999' has no point cloud"):
        prepared(root, ("val",))
    with pytest.raises(DataError, match=r"trian\.txt: no such split; did you mean 'train'"):
        prepared(root, ("trian",))


@pytest.mark.parametrize("folder", ["points", "labels"])
def test_names_of_files_that_are_not_utf8(tmp_path: Path, folder: str) -> None:
    make_folder(tmp_path, 2, ".npy")
    suffix = b".npy" if folder == "points" else b".txt"
    Path(os.fsdecode(os.fsencode(tmp_path / folder) + b"/caf\xe9" + suffix)).touch()
    with pytest.raises(DataError, match=f"{folder}/caf.*the name of this file is not UTF-8"):
        CustomFrames(tmp_path)


def test_natural_order() -> None:
    assert sorted(["a10", "a9", "a", "b1", "10", "9", "a9b2"], key=natural) == [
        "9",
        "10",
        "a",
        "a9",
        "a9b2",
        "a10",
        "b1",
    ]
    assert sorted(["²", "2", "٣"], key=natural) == ["2", "٣", "²"]  # digits of other scripts, and what is none


def test_other_splits_and_folders(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", 4)
    out = tmp_path / "prepared"
    assert run("prepare", "custom", "--root", root, "--out", out, "--splits", "all", "--quiet") == 0
    content = yaml.safe_load((out / "config.yaml").read_text())
    assert content["data"]["index"] == str(out)
    assert content["data"]["split"] == content["test"]["split"] == "all"
    assert content["data"]["augment"][0]["name"] == "RandomFlip"  # no objects were cut out
    settings = config.load(out / "config.yaml")
    assert len(build_dataset(settings["data"], "train", training=True)) == 4
    assert len(build_dataset(settings["data"], "all", training=False)) == 4
