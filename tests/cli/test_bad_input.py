"""What commands say of input and output that cannot work: one line that names it, and an exit code, before any work."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.cli.command import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the commands below name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x\n")
    (tmp_path / "bad.yaml").write_text("model: [\n")
    np.full((50, 4), np.nan, np.float32).tofile("nan.bin")
    np.zeros((0, 4), np.float32).tofile("empty.bin")
    np.ones((8, 4), np.float32).tofile("some.bin")
    np.ones((8, 4), np.float32).tofile("folder/some.bin")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("train bad.yaml", 2, "bad.yaml: while parsing"),
        ("train kitti/demo --devices 0", 2, "devices must be at least 1, got 0"),
        ("train kitti/demo --nodes 0", 2, "nodes must be at least 1, got 0"),
        ("train kitti/demo --strategy nosuch", 2, "strategy 'nosuch'"),
        ("train kitti/demo --out file", 2, "file: is a file; name a folder"),
        ("train kitti/demo --resume folder", 2, "folder: is a folder, not a checkpoint"),
        ("train kitti/demo train.learning_rate=.nan", 2, "train.learning_rate: must be a finite number, got nan"),
        ("train kitti/demo train.init_from=folder --out new", 2, "folder: is a folder, not a checkpoint"),
        ("train kitti/demo data.root=nowhere --out new", 2, "data.root=DIR names the folder of the data set"),
        ("track folder --data nowhere --out new.json", 2, "nowhere: no such file or folder"),
        ("track nowhere --data folder --out new.json", 2, "nowhere: no such file or folder"),
        ("evaluate once --ground-truth folder --results file --json file", 2, "file: would replace a file that this"),
        ("evaluate once --ground-truth folder --results file --plots file", 2, "file: is a file; name a folder"),
        ("compare folder folder --out x.png --json x.png", 2, "x.png: would replace a file"),
        ("compare folder folder --names differences b", 2, "take another name"),
        ("visualize kitti/demo some.bin --out x.html", 2, "kitti/demo: no such file; did you mean 'kitti/demo_sim'"),
        ("test folder", 2, "folder: is a folder, not a checkpoint"),
        ("test x.ckpt --json folder", 2, "folder: is a folder; name a file to write"),
        ("test x.ckpt --json file/x.json", 2, "file: is a file; name a folder"),
        ("test x.ckpt --plots file/x", 2, "file is a file; name a folder"),
        ("test x.ckpt --out file", 2, "file: is a file; name a folder"),
        ("simulate --frames 1 --out file", 2, "file: is a file; name a folder"),
        ("simulate --frames 1 --out new --beams 0", 2, "beams must be at least 1, got 0"),
        (
            "simulate --frames 1 --out new --azimuths 1000000000",
            2,
            "beams times azimuths must be at most 10000000, got 64",
        ),
        ("simulate --frames 99999999999 --out new", 2, "frames must be at most 1000000 for kitti, got 99999999999"),
        ("simulate --format waymo --scenes 99999 --frames 1 --out new", 2, "scenes must be at most 10000 for waymo"),
        ("simulate --format waymo --frames 1 --out new --side-beams 999999", 2, "pixels, got 999999 × 150"),
        ("simulate --frames 1 --out new --seed -1", 2, "seed must be at least 0, got -1"),
        (
            "simulate --frames 1 --out new --scenes 2",
            2,
            "is for argoverse2, nuscenes, once, places, semantickitti and waymo, not for",
        ),
        ("simulate --format waymo --frames 1 --out new --version v1.0-mini", 2, "--version is for nuscenes, not for"),
        ("simulate --format nuscenes --frames 1 --out new --scenes 0", 2, "scenes must be at least 1, got 0"),
        ("simulate --format nuscenes --frames 1 --out new --version v2", 2, "version must be one of v1.0-mini"),
        ("simulate --format waymo --frames 1 --out new --side-beams 0", 2, "side_rows must be at least 1, got 0"),
        ("visualize nan.bin --out a.png", 1, "nan.bin: has no finite point, nor boxes: there is nothing to draw"),
        ("visualize empty.bin --out a.html", 1, "empty.bin: has no finite point, nor boxes"),
        ("visualize some.bin --out folder --style page --score nan", 2, "score must be a number, got nan"),
        ("visualize some.bin --out file", 2, "file: is a file; name a folder"),
        ("visualize some.bin folder/some.bin --out new", 2, "some.png: would be the picture of some.bin and of folder"),
        ("benchmark models kitti/demo --rounds 0", 2, "rounds must be at least 1, got 0"),
        ("benchmark models kitti/demo --threads 0", 2, "threads must be at least 1, got 0"),
        ("benchmark ops --threads -1", 2, "threads must be at least 1, got -1"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(
    here: Path, line: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert main(shlex.split(line)) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(here.rglob("*")) == before


def test_a_simulation_that_is_there_already_is_not_done_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open3d")
    arguments = shlex.split("simulate --frames 1 --beams 8 --azimuths 60 --workers 1 --out streets")
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    capsys.readouterr()
    assert main(arguments) == 1
    assert "streets: holds these frames already, there is nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
