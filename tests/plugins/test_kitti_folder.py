"""A folder in KITTI's layout, completed for other code bases."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from pcdet_ext.files import DataError
from pcdet_ext.plugins import imports
from pcdet_ext.plugins.kitti_folder import NOTHING, complete
from pcdet_ext.plugins.openpcdet import environment

CAR, IGNORED = "Car 0 0 0 1 2 3 4 1.5 1.6 3.9 1 1 9 0", "DontCare -1 -1 -10 0 0 5 5 -1 -1 -1 -1000 -1000 -1000 -10"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("training/calib", "training/label_2", "ImageSets"):
        (tmp_path / part).mkdir(parents=True)
    for name, rows in (("000000", [IGNORED, CAR]), ("000001", []), ("000002", [CAR, IGNORED])):
        (tmp_path / "training" / "calib" / f"{name}.txt").write_text("P2: 0\n")
        (tmp_path / "training" / "label_2" / f"{name}.txt").write_text("".join(f"{row}\n" for row in rows))
    (tmp_path / "ImageSets" / "train.txt").write_text("000001\n000002\n")
    (tmp_path / "ImageSets" / "val.txt").write_text("000000\n")
    return tmp_path


def labels(folder: Path, name: str) -> list[str]:
    return (folder / "training" / "label_2" / f"{name}.txt").read_text().splitlines()


def test_what_is_missing_is_written_and_what_is_there_stays(folder: Path) -> None:
    pictures = folder / "training" / "image_2"
    pictures.mkdir()
    Image.new("L", (7, 5)).save(pictures / "000002.png")
    assert complete(folder, (20, 10)) == 2
    assert Image.open(pictures / "000000.png").size == (20, 10)
    assert Image.open(pictures / "000002.png").size == (7, 5)
    assert labels(folder, "000000") == [CAR, IGNORED]
    assert [row.split()[0] for row in labels(folder, "000001")] == ["DontCare"]
    assert labels(folder, "000002") == [CAR, IGNORED]
    assert (folder / "ImageSets" / "trainval.txt").read_text() == "000000\n000001\n000002\n"
    assert (folder / "ImageSets" / "test.txt").read_text() == ""
    assert complete(folder) == 0


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not in KITTI's layout"):
        complete(tmp_path)


def test_openpcdet_reads_label_files_as_kitti_writes_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imports._SAID.clear()
    reader = ModuleType("pcdet.utils.object3d_kitti")
    reader.__dict__["Object3d"] = str
    environment._read_labels_as_kitti_has_them(reader)
    found = {path.stem: reader.get_objects_from_label(path) for path in (folder / "training" / "label_2").iterdir()}
    assert found == {"000000": [CAR, IGNORED], "000001": [NOTHING], "000002": [CAR, IGNORED]}
    assert labels(folder, "000000") == [IGNORED, CAR]
    assert capsys.readouterr().err.count("label files without a row get one DontCare") == 1
