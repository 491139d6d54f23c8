"""The examples of README.md do what it says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import pcdet_ext


def examples(root: Path, title: str) -> list[str]:
    """The code blocks of a section of README.md, without their fences."""
    text = (root / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^##+ ", text.partition(f"# {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^```(?:python|yaml)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_ten_lines_with_a_packaged_model(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = examples(root, "Install")
    exec(compile(code, "README.md", "exec"), {})
    models, found = capsys.readouterr().out.splitlines()
    assert "lion/nuscenes_mamba" in models
    assert re.fullmatch(r"\d+ boxes, the best score 0\.\d+", found)


def test_ten_lines(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = examples(root, "Ten lines")
    checkpoint, frame = re.findall(r'"([\w/]+\.(?:ckpt|bin))"', code)
    monkeypatch.chdir(tmp_path)
    Path(frame).parent.mkdir(parents=True)
    np.random.default_rng(0).uniform([0, -8, -2, 0], [16, 8, 0, 1], (500, 4)).astype(np.float32).tofile(frame)
    small = pcdet_ext.build("kitti/demo", ["data.point_cloud_range=[0, -8, -3, 16, 8, 1]"], "cpu")
    monkeypatch.setattr(pcdet_ext, "load", lambda path, device: {checkpoint: small}[path], raising=False)
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"\d+ detections", capsys.readouterr().out.splitlines()[-1])


def test_official_models_and_plain_modules(root: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = examples(root, "As a plugin, and with official checkpoints")
    assert len(blocks) == 2
    manifest = json.loads((shared / "golden" / "openpcdet" / "manifest.json").read_text())
    names = {"config": manifest["kitti_models/pointpillar.yaml"]["config"], "state_dict": None}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["detector"].classes == ("Car", "Pedestrian", "Cyclist")
    assert "(1, 400, 352)" in capsys.readouterr().out


def test_no_example_is_left_out(root: Path) -> None:
    fences = re.findall(r"^```python$", (root / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    sections = ("Install", "Ten lines", "As a plugin, and with official checkpoints", "Your own parts")
    blocks = [block for title in sections for block in examples(root, title)]
    assert len(fences) == sum(re.search(r"^(from|import) ", block, re.MULTILINE) is not None for block in blocks)


def test_parts_of_ones_own(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    blocks = examples(root, "Your own parts")
    assert len(blocks) == 2
    for block in blocks:
        path = tmp_path / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(block)
    detector = pcdet_ext.build(tmp_path / "my_model.yaml", ["data.point_cloud_range=[0, -8, -3, 16, 8, 1]"], "cpu")
    outwards = sys.modules["my_parts.orders"].Outwards
    keys, asked = outwards.keys, []
    monkeypatch.setattr(outwards, "keys", lambda self, voxels: asked.append(len(voxels)) or keys(self, voxels))
    points = np.random.default_rng(0).uniform([0, -8, -2, 0], [16, 8, 0, 1], (500, 4)).astype(np.float32)
    detector.detect(points)
    assert sum(asked) > 0
