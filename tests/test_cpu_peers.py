"""The comparison of PointPillars with other libraries on the CPU: settings, arithmetic, and how they are asked."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from pcdet_ext import config
from pcdet_ext.plugins.mmdet3d.weights import library_settings

STUB = """
import json, sys
print(json.dumps({"versions": {"stub": "1"}}), flush=True)
for number, line in enumerate(sys.stdin):
    request = json.loads(line)
    if request["frame"] == "bad":
        raise ValueError("no such frame")
    if request["do"] == "time":
        print(json.dumps({"seconds": SECONDS + number, "busy": 2.0}), flush=True)
    else:
        print(json.dumps({"parts": {"encoder": 0.25}}), flush=True)
"""


@pytest.fixture(scope="module")
def cpu_peers(root: Path) -> Iterator[ModuleType]:
    """benchmarks/cpu_peers.py, which is no part of the package."""
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        yield importlib.import_module("cpu_peers")
    finally:
        sys.path.remove(str(root / "benchmarks"))


@pytest.fixture(scope="module")
def worker(cpu_peers: ModuleType) -> ModuleType:
    return importlib.import_module("pointpillars_peers.worker")


def stub(folder: Path, seconds: float) -> Path:
    """An interpreter that, whatever it is told to run, answers as a library whose passes take longer each time."""
    script, python = folder / f"stub_{seconds}.py", folder / f"python_{seconds}"
    script.write_text(STUB.replace("SECONDS", str(seconds)))
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {script}\n")
    python.chmod(0o755)
    return python


def test_the_network_is_that_of_the_published_configuration(cpu_peers: ModuleType) -> None:
    """Beside what pads pillars and what follows the network, which is said in pointpillars_peers/network.py."""
    ours = library_settings(cpu_peers.network.mmdetection3d()).plain()
    published = config.load(config.find("kitti/pointpillars")).plain()
    for name in ("classes", "point_cloud_range", "point_features"):
        assert ours["data"][name] == published["data"][name]
    for name in ("encoder", "bev_backbone", "head"):
        for key, value in published["model"][name].items():
            if (name, key) not in {("head", "nms"), ("head", "anchors"), ("encoder", "use_absolute_xyz")}:
                assert ours["model"][name].get(key) == value, (name, key)
    assert ours["model"]["voxel_size"] == published["model"]["voxel_size"]
    for one, other in zip(ours["model"]["head"]["anchors"], published["model"]["head"]["anchors"], strict=True):
        assert one | other == one
        assert not one["align_center"]


def test_both_forms_of_the_settings_agree(cpu_peers: ModuleType) -> None:
    theirs, model = cpu_peers.network.open3d_ml(), cpu_peers.network.mmdetection3d()["model"]
    assert theirs["backbone"].items() <= model["backbone"].items()
    assert theirs["neck"].items() <= model["neck"].items()
    assert theirs["scatter"].items() <= model["middle_encoder"].items()
    generator = model["bbox_head"]["anchor_generator"]
    assert all(theirs["head"][name] == generator[name] for name in ("ranges", "sizes", "rotations"))
    rows, columns = theirs["scatter"]["output_shape"]
    low, high = np.array(theirs["point_cloud_range"]).reshape(2, 3)
    assert np.allclose((high - low) / theirs["voxelize"]["voxel_size"], [columns, rows, 1])


def test_libraries_take_turns_and_medians_are_of_their_passes(cpu_peers: ModuleType, tmp_path: Path) -> None:
    workers = {str(s): cpu_peers.Worker.start(stub(tmp_path, s), f"stub_{s}", tmp_path, 1) for s in (10.0, 20.0)}
    try:
        taken = cpu_peers.measure(workers, "frame", rounds=3)
    finally:
        for each in workers.values():
            each.end()
    assert taken["10.0"] == {"seconds": [11.0, 12.0, 13.0], "busy": [2.0] * 3, "parts": {"encoder": 0.25}}
    assert taken["20.0"]["seconds"] == [21.0, 22.0, 23.0]
    assert workers["10.0"].versions == {"stub": "1"}
    orders = [cpu_peers.rotated(["a", "b", "c"], number) for number in range(3)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_a_library_that_ends_or_is_missing_is_named(cpu_peers: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(cpu_peers.PeerError, match="python is missing; sh benchmarks/install"):
        cpu_peers.Worker.start(tmp_path / "python", "open3d_ml", tmp_path, 1)
    ends = cpu_peers.Worker.start(stub(tmp_path, 1.0), "stub", tmp_path, 1)
    for _ in range(2):  # asked again, it says the same
        with pytest.raises(cpu_peers.PeerError, match="code 1; its last words: ValueError: no such frame"):
            ends.ask(do="time", frame="bad")


def found(boxes: list[list[float]], scores: list[float], labels: list[int], logits: float = 0.0) -> dict:
    rows = np.array(boxes, np.float32).reshape(-1, 7)
    return {
        "boxes": rows,
        "scores": np.array(scores),
        "labels": np.array(labels),
        "logits": np.full((2, 3, 18), logits),
    }


def test_boxes_are_looked_for_among_those_of_their_class(cpu_peers: ModuleType) -> None:
    box, near, far = [1, 2, 3, 4, 2, 1, np.pi - 1e-4], [1, 2, 3, 4, 2, 1, 1e-4 - np.pi], [1.01, 2, 3, 4, 2, 1, 3]
    ours = found([box, box], [0.5, 0.4], [0, 1])
    assert cpu_peers.unmatched(ours, found([near, near], [0.4, 0.5], [1, 0])) == 0
    assert cpu_peers.unmatched(ours, found([near], [0.5], [0])) == 1
    assert cpu_peers.unmatched(ours, found([box, far], [0.5, 0.4], [0, 1])) == 1
    assert cpu_peers.unmatched(ours, found([box, box], [0.5, 0.5], [0, 1])) == 1
    assert cpu_peers.unmatched(found([], [], []), ours) == 0


def test_the_best_peer_counts(cpu_peers: ModuleType, tmp_path: Path) -> None:
    names = (*cpu_peers.OURS, "slow", "fast")
    for number, name in enumerate(names):
        np.savez(cpu_peers.results_file(tmp_path, name, "f"), **found([], [], [], 0.5 * number))
    taken = {n: {"seconds": [s, s, 9.0], "busy": [1.0], "parts": {}} for n, s in zip(names, (1, 3, 5, 2), strict=True)}
    results = {name: {"boxes": 0, "map": [2, 3], "channels": [18, 42, 12]} for name in names}
    summary = cpu_peers.summary(taken, results, tmp_path, "f")
    assert (summary["best_peer"], summary["ratio"]) == ("fast", 2.0)
    assert summary["libraries"]["slow"]["times_ours"] == 5.0
    assert summary["libraries"]["fast"]["logits_apart"] == 1.5
    said = cpu_peers.lines({"name": "f", "points": 7, "pillars": 3, **summary})
    assert said[0] == "f: 7 points, 3 pillars"
    assert said[-1] == "  the best peer, fast, takes 2.00 times as long as ours"
    json.dumps(summary)
    alone = cpu_peers.summary({n: taken[n] for n in names[:2]}, results, tmp_path, "f")
    assert (alone["best_peer"], alone["ratio"]) == (None, None)
    other = found([], [], []) | {"logits": np.zeros((3, 2, 18))}
    np.savez(cpu_peers.results_file(tmp_path, "fast", "f"), **other)
    with pytest.raises(ValueError, match="must agree"):
        cpu_peers.summary(taken, results, tmp_path, "f")


class TinyLibrary:
    """Two stages, of which the second runs twice and in all takes longer, and a rest."""

    def __init__(self, worker: ModuleType) -> None:
        self.worker = worker
        self.stages = {"first": nn.Identity(), "second": nn.Identity()}
        self.stages["second"].register_forward_hook(lambda *_: time.sleep(0.02))

    def detect(self, points: np.ndarray):
        x = torch.from_numpy(points)
        for name in ("first", "second", "second"):
            x = self.stages[name](x)
        return self.worker.Boxes(x.numpy()[:, :7], np.ones(len(x)), np.zeros(len(x), np.int64))

    def maps(self, points: np.ndarray):
        return self.worker.Maps(np.zeros((2, 3, 18)), [18, 42, 12])


def test_a_process_answers_what_it_is_asked(worker: ModuleType, tmp_path: Path) -> None:
    library = TinyLibrary(worker)
    np.save(tmp_path / "frame.npy", np.ones((5, 7), np.float32))
    assert worker.answer(library, tmp_path, {"do": "time", "frame": "frame"})["seconds"] >= 0.04
    parts = worker.answer(library, tmp_path, {"do": "parts", "frame": "frame"})["parts"]
    assert list(parts) == ["first", "second", "rest"]
    assert parts["second"] >= 0.04
    assert parts["rest"] >= 0
    assert not library.stages["first"]._forward_hooks
    out = tmp_path / "out.npz"
    told = worker.answer(library, tmp_path, {"do": "results", "frame": "frame", "out": str(out)})
    assert told == {"boxes": 5, "map": [2, 3], "channels": [18, 42, 12]}
    with np.load(out) as saved:
        assert saved["boxes"].shape == (5, 7)
    with pytest.raises(ValueError, match="got 'dance'"):
        worker.answer(library, tmp_path, {"do": "dance", "frame": "frame"})


def test_a_bias_lets_as_many_anchors_pass_as_are_wanted(cpu_peers: ModuleType) -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Module()
            self.head.conv_cls = nn.Conv2d(1, 3, 1)
            self.values = torch.randn(1, 1000, 3)

        def forward(self, _: object):
            bias = self.head.conv_cls.bias.mean()
            return type("Output", (), {"logits": self.values + bias})

    model = Tiny()
    nn.init.zeros_(model.head.conv_cls.bias)
    cpu_peers.set_bias(model, None)
    best = model(None).logits[0].amax(1).sigmoid()
    assert int((best > cpu_peers.network.SCORE).sum()) == cpu_peers.CANDIDATES


def test_frames_have_names_of_their_own(cpu_peers: ModuleType, tmp_path: Path) -> None:
    points = np.zeros((5, 4), np.float32)
    files = [tmp_path / day / name for day, name in (("day1", "10.bin"), ("day2", "10.bin"), ("day2", "11.bin"))]
    files.append(tmp_path / "simulated.bin")
    for number, path in enumerate(files):
        path.parent.mkdir(exist_ok=True)
        np.full((number + 1, 4), number, np.float32).tofile(path)
    frames = cpu_peers.named_frames(points, [files[0], files[2]])
    assert {name: len(cloud) for name, cloud in frames.items()} == {"simulated": 5, "10": 1, "11": 3}
    with pytest.raises(cpu_peers.PeerError, match=r"day2/10\.bin: has the name '10', as has .*day1/10\.bin"):
        cpu_peers.named_frames(points, files)
    with pytest.raises(
        cpu_peers.PeerError, match=r"simulated\.bin: has the name 'simulated', as has the simulated frame"
    ):
        cpu_peers.named_frames(points, [files[3]])


def test_where_nothing_can_be_written_nothing_is_measured(
    cpu_peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu_peers, "usual_frame", lambda settings: pytest.fail("it was measured"))
    assert cpu_peers.main(["--json", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
