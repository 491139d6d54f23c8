"""The command that lays one cloud over another: what it prints and writes, and what it says when that cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_ext.cli.command import main
from pcdet_ext.models.registration import RegistrationNetwork
from pcdet_ext.registration import pose_error
from pcdet_ext.registration.training import RegistrationTrainer, RegistrationTraining
from pcdet_ext.structures import Array


def scene(seed: int) -> Array:
    """Float32 [N, 3]: flat ground and walls of different lengths, heights and directions."""
    rng = np.random.default_rng(seed)
    parts = [np.column_stack([rng.uniform(-20, 20, (6000, 2)), rng.normal(0, 0.02, 6000)])]
    for _ in range(16):
        along = rng.uniform(0, rng.uniform(2, 7), 600)
        turn, height = rng.uniform(0, math.pi), rng.uniform(1, 6)
        x, y = rng.uniform(-14, 14, 2)
        parts.append(
            np.column_stack([x + along * math.cos(turn), y + along * math.sin(turn), rng.uniform(0, height, 600)])
        )
    return np.concatenate(parts).astype(np.float32)


def turn(degrees: float, x: float, y: float) -> Array:
    found, angle = np.eye(4), math.radians(degrees)
    found[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    found[:2, 3] = x, y
    return found


RIGHT = turn(70, 3, -2)


@pytest.fixture
def clouds(tmp_path: Path) -> list[str]:
    """Files of a cloud and of the same one turned; the first also has a point that is none."""
    source = scene(0)
    np.save(tmp_path / "a.npy", np.concatenate([source, [[np.nan, 0, 0]]]).astype(np.float32))
    np.save(tmp_path / "b.npy", (source @ RIGHT[:3, :3].T + RIGHT[:3, 3]).astype(np.float32))
    return [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]


def test_the_pose_is_printed_and_written(clouds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open3d")
    pytest.importorskip("matplotlib")
    written, picture = tmp_path / "pose.json", tmp_path / "pose.png"
    assert main(["register", *clouds, "--json", str(written), "--out", str(picture)]) == 0
    found = json.loads(written.read_text(encoding="utf-8"))
    assert pose_error(np.array(found["pose"]), RIGHT).within(2.0, 0.3)
    lines = capsys.readouterr().out.splitlines()
    np.testing.assert_allclose([[float(v) for v in line.split()] for line in lines[1:5]], found["pose"], atol=1e-5)
    assert lines[5].startswith(f"{found['inliers']} of {found['matches']} correspondences")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_network_takes_its_place(clouds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open3d")
    torch.manual_seed(0)
    network = RegistrationNetwork((-32, -32, -2, 32, 32, 8), 0.5, 16, 2, 16, [(8.0, 0.0)], 8)
    path = tmp_path / "net.ckpt"
    RegistrationTrainer(network, RegistrationTraining()).save(path)
    a = str(tmp_path / "few.npy")
    np.save(a, np.load(clouds[0])[::24])
    assert main(["register", a, a, str(path), "--json", str(tmp_path / "same.json")]) == 0
    found = json.loads((tmp_path / "same.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose(found["pose"], np.eye(4), atol=1e-3)
    assert found["inliers"] == found["matches"] > 100  # every point finds itself
    assert found["checkpoint"] == str(path)


def test_clouds_of_different_places_have_no_pose(
    clouds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open3d")
    other, written = tmp_path / "other.npy", tmp_path / "none.json"
    np.save(other, np.random.default_rng(1).uniform(-15, 15, (4000, 3)).astype(np.float32))
    assert main(["register", clouds[0], str(other), "--json", str(written)]) == 1
    printed = capsys.readouterr()
    assert "no pose was found: at most" in printed.err
    assert not printed.out
    assert json.loads(written.read_text(encoding="utf-8"))["pose"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_there_is_named(clouds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open3d")
    assert main(["register", *clouds, "net.ckpt", "--device", "cuda"]) == 2
    assert "device 'cuda' cannot be used" in capsys.readouterr().err


def test_the_ground_is_kept_when_asked_for(clouds: list[str], tmp_path: Path) -> None:
    pytest.importorskip("open3d")
    found = {}
    for ground in ("0", "0.4"):
        written = tmp_path / f"{ground}.json"
        assert main(["register", *clouds, "--ground", ground, "--json", str(written)]) == 0
        found[ground] = json.loads(written.read_text(encoding="utf-8"))
    assert found["0"]["matches"] > found["0.4"]["matches"]
    assert (found["0"]["ground_metres"], found["0.4"]["ground_metres"]) == (0, 0.4)


def test_bad_input_is_named(clouds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("open3d")
    a, b = clouds
    empty, damaged = tmp_path / "empty.npy", tmp_path / "no.ckpt"
    np.save(empty, np.full((3, 3), np.nan, np.float32))
    damaged.write_bytes(b"no checkpoint")
    far = tmp_path / "far.npy"
    np.save(far, np.array([[0, 0, 0], [1e30, 0, 0]], np.float32))
    for words, code, message in (
        ([a, str(tmp_path / "missing.npy")], 2, "missing.npy: no such file"),
        ([a, str(empty)], 1, "empty.npy: has no points with finite coordinates"),
        ([a, b, str(damaged)], 1, "no.ckpt"),
        ([a, b, "--out", str(tmp_path / "pose.jpg")], 2, "pose.jpg: the picture is a .png file"),
        ([a, b, "--json", a], 2, "a.npy: would replace a file that this command reads or writes"),
        ([a, b, "--min-inliers", "0"], 2, "min_inliers must be at least 3, got 0"),
        ([a, b, "--ground", "nan"], 2, "ground must be at least 0 and finite, got nan"),
        ([a, b, "--device", "cpu"], 2, "--device: is that of a network; without a checkpoint FPFH is computed"),
        ([a, b, str(damaged), "--device", "nowhere"], 2, "device 'nowhere' cannot be used"),
        ([a, str(far)], 1, "far.npy: 1 of 2 points are over 1e+07 m away"),
    ):
        assert main(["register", *words]) == code, words
        assert message in capsys.readouterr().err
