"""Place recognition from simulated runs to recall: training, resuming, testing, and the index, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pcdet_ext
from pcdet_ext.cli.command import main

open3d = pytest.importorskip("open3d", exc_type=ImportError)

SMALL = [
    "model.encoder.num_filters=[8]",
    "model.pooling.rings=4",
    "model.pooling.out_channels=16",
    "train.batch_size=8",
    "train.num_workers=0",
    "test.num_workers=0",
    "train.evaluate_every=2",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of data and a run of two epochs, the second one resumed."""
    data, out = tmp_path_factory.mktemp("data") / "places", tmp_path_factory.mktemp("runs")
    size = ["--scenes", "2", "--frames", "4", "--runs", "2", "--beams", "12", "--azimuths", "60", "--workers", "1"]
    assert main(["simulate", "--format", "places", "--out", str(data), "--val-fraction", "0.5", *size]) == 0
    assert main(["prepare", "places", "--root", str(data), "--quiet"]) == 0
    command = ["train", "place_recognition/demo", f"data.root={data}", *SMALL, "--device", "cpu", "--out", str(out)]
    assert main([*command, "train.epochs=1", "train.evaluate_every=0"]) == 0
    assert main([*command, "train.epochs=2", "--resume"]) == 0
    return data, out


def test_training_keeps_the_best_checkpoint_by_recall(trained: tuple[Path, Path]) -> None:
    _, out = trained
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    recalls = [value for line in lines for key, value in line.items() if key == "recall@1" or key.endswith("/recall@1")]
    assert recalls
    assert (out / "best.ckpt").exists()


def test_testing_prints_recall_and_writes_curves(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = trained
    extra = ["--plots", str(tmp_path / "plots"), "--json", str(tmp_path / "r.json"), "--out", str(tmp_path / "found")]
    assert main(["test", str(out / "last.ckpt"), "--device", "cpu", *extra]) == 0
    printed = capsys.readouterr().out
    assert "recall (percent)" in printed
    assert "mean of 2 pairs" in printed
    assert "opposite direction" in printed
    assert (tmp_path / "plots" / "recall.png").stat().st_size > 1000
    groups = json.loads((tmp_path / "r.json").read_text())["groups"]
    assert len(groups["all"]["recall"]) == 25
    with np.load(tmp_path / "found" / "descriptors.npz") as content:
        names, descriptors = content["frame_ids"].tolist(), content["descriptors"]
    describer = pcdet_ext.load(out / "last.ckpt", "cpu")
    clouds = [np.fromfile(data / f"{name}.bin", np.float32).reshape(-1, 4) for name in names]
    np.testing.assert_allclose(describer.describe(clouds).numpy(), descriptors, atol=1e-5)
    index = pcdet_ext.PlaceIndex(16)
    index.add(descriptors, names)
    assert [ids[0] for ids in index.search(describer.describe(clouds)).ids] == names


def test_benchmark_shows_scan_context_beside_ours(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "places", str(trained[1] / "last.ckpt"), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("opposite direction") for line in lines) == 2
    assert any("scan context:" in line and "ms per frame" in line for line in lines)
