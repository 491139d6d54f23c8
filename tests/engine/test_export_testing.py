"""Exported models measured beside the checkpoint that they were made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pcdet_ext.cli.command import main

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CHECKPOINT = "kitti/demo_sim"


def test_models_are_measured_beside_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = str(tmp_path / "kitti"), tmp_path / "ap.json"
    model, other, nothing = (str(tmp_path / name) for name in ("a.onnx", "b.onnx", "none.onnx"))
    assert main(["simulate", "--format", "kitti", "--frames", "3", "--out", data]) == 0
    assert main(["prepare", "kitti", "--root", data, "--splits", "all"]) == 0
    assert main(["export", CHECKPOINT, model]) == 0
    Path(other).write_bytes(Path(model).read_bytes().replace(b'["Car"]', b'["Bus"]'))
    command = ["test", CHECKPOINT, f"data.root={data}", "test.num_workers=0", "--split", "all", "--json", str(out)]
    capsys.readouterr()
    assert main([*command, "--onnx", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 frames of all"
    assert lines[1].split() == ["PyTorch", "a.onnx"]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["a.onnx"]["megabytes"] == pytest.approx(Path(model).stat().st_size / 1e6)
    assert found["a.onnx"]["values"] == found["PyTorch"]["values"]
    assert found["PyTorch"]["values"]["Car bev moderate R40"] > 5
    for file, message in ((other, "is a model with classes ['Bus'], not one exported from"), (nothing, "is no ONNX")):
        assert main([*command, "--onnx", file]) == 1
        assert message in capsys.readouterr().err
    assert main([*command, "--onnx", model, "--out", str(tmp_path / "results")]) == 2
