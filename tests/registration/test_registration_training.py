"""Training of a network for registration on a few clouds, its file, and the command that does all of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_ext import checkpoint
from pcdet_ext.benchmark.registration import Registered, recall, table
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.cli.command import main
from pcdet_ext.data.places import Frame, PlaceFrames, PlacesDataset, write_frames
from pcdet_ext.data.prepare import prepare
from pcdet_ext.models.registration import RegistrationNetwork
from pcdet_ext.registration import PoseError, load_network
from pcdet_ext.registration.pairs import CloudPairs
from pcdet_ext.registration.training import RegistrationTrainer, RegistrationTraining


def small() -> RegistrationNetwork:
    torch.manual_seed(0)
    return RegistrationNetwork((-16, -16, -3, 16, 16, 5), 1.0, 16, 2, 16, [(8.0, 0.0), (8.0, 0.5)], 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs along one street of boxes in either split, the second one the other way."""
    root = tmp_path_factory.mktemp("registration")
    frames = []
    for split, seed in (("train", 1), ("val", 2)):
        rng = np.random.default_rng(seed)
        low = rng.uniform((-15, -12, -1.8), (25, 12, -1.8), (30, 3))
        world = [low + rng.uniform(size=(80, 30, 3)) * rng.uniform(0.3, 4, (30, 3))]
        world.append(np.concatenate([rng.uniform(-15, 25, (2000, 1, 2)), np.full((2000, 1, 1), -1.8)], 2))
        points = np.concatenate([part.reshape(-1, 3) for part in world])
        for run, heading in (("there", 0.0), ("back", np.pi)):
            for i in range(3):
                frame = Frame(f"{split}_{run}_{i}.npy", f"{split} {run}", split, 6.0 * i, 0.0, heading=heading)
                local = (points - frame.pose()[:3, 3]) @ frame.pose()[:3, :3]
                np.save(root / frame.cloud, local[rng.random(len(local)) < 0.7].astype(np.float32))
                frames.append(frame)
    write_frames(root, frames)
    prepare(PlaceFrames(root), progress=False)
    return root


def pairs(folder: Path) -> CloudPairs:
    everything = (-1e4,) * 3 + (1e4,) * 3
    return CloudPairs(
        PlacesDataset(root=folder, point_cloud_range=everything, positive_radius=15, negative_radius=30), 5, 15
    )


def test_training_lowers_the_loss_and_goes_on_from_its_file(folder: Path, tmp_path: Path) -> None:
    options, path, frames = RegistrationTraining(steps=8), tmp_path / "a.ckpt", pairs(folder)
    trainer = RegistrationTrainer(small(), options)
    losses = []
    while not trainer.finished:
        losses.append(trainer.advance(frames))
        if trainer.step == 5:
            trainer.save(path)
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    again = RegistrationTrainer.load(path)
    assert (again.step, again.options) == (5, options)
    assert [again.advance(frames) for _ in range(3)] == losses[5:]
    assert again.finished


def test_the_learning_rate_rises_and_falls() -> None:
    options = RegistrationTraining(steps=100, learning_rate=1.0)
    rates = [options.rate(step) for step in range(100)]
    assert rates.index(max(rates)) == 9
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.0)


def test_a_network_comes_back_from_its_file(tmp_path: Path) -> None:
    network, path = small().eval(), tmp_path / "a.ckpt"
    RegistrationTrainer(network, RegistrationTraining()).save(path)
    again = load_network(path)
    assert again.settings == network.settings
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))
    checkpoint.write(tmp_path / "b.ckpt", {"config": {"model": {}}, "model": {}})
    with pytest.raises(CheckpointError, match=r"b.ckpt: holds no network for registration"):
        load_network(tmp_path / "b.ckpt")
    content = checkpoint.read(path)
    checkpoint.write(path, {key: content[key] for key in ("config", "model")})
    with pytest.raises(CheckpointError, match=r"a.ckpt: holds no training of a network for registration"):
        RegistrationTrainer.load(path)
    content["config"]["network"]["channel"] = 3
    checkpoint.write(path, {key: content[key] for key in ("config", "model")})
    with pytest.raises(CheckpointError, match=r"a.ckpt: its settings make no network for registration"):
        load_network(path)


def test_wrong_numbers_of_a_training_are_refused() -> None:
    with pytest.raises(ValueError, match="steps and batch_size must be at least 1, got 0 and 1"):
        RegistrationTraining(steps=0)
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        RegistrationTraining(learning_rate=float("nan"))


def test_the_command_trains_once_and_measures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open3d")
    monkeypatch.setattr("pcdet_ext.benchmark.registration.RegistrationNetwork", small)
    path, out = tmp_path / "net.ckpt", tmp_path / "all.json"
    words = ["benchmark", "registration", str(folder), str(path), "--steps", "2", "--pairs", "2", "--json", str(out)]
    for ground in ("0", "0.4"):
        assert main([*words, "--ground", ground]) == 0
        written = path.stat().st_mtime_ns
        kept = None if ground == "0" else 0.4
        assert json.loads(out.read_text(encoding="utf-8"))["ground_metres"] == kept
    assert path.stat().st_mtime_ns == written
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["recall"]["all"]["FPFH"] == 1.0  # a cloud and most of the same points
    assert [len(rows) for rows in found["pairs"].values()] == [2, 2]
    assert "recall in percent: rotation below 5°, translation below 2 m" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "0"], "pairs must be at least 1, got 0"),
        (["--pairs", "-1"], "pairs must be at least 1, got -1"),
        (["--apart", "9", "5"], "apart must be two distances, the smaller first, got 9 and 5"),
        (["--ground", "-1"], "ground must be at least 0 and finite, got -1.0"),
        (["--steps", "0"], "steps and batch_size must be at least 1, got 0 and 1"),
    ],
)
def test_numbers_that_measure_nothing_are_refused(
    words: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open3d")
    assert main(["benchmark", "registration", str(folder), str(tmp_path / "no.ckpt"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "no.ckpt").exists()


def test_the_table_has_intervals_and_what_one_found_alone() -> None:
    right, wrong = Registered(PoseError(1, 0.5), True, 0.1), Registered(PoseError(math.inf, math.inf), True, 0.1)
    lines = table({"a": [right] * 8 + [wrong] * 2, "b": [right] * 2 + [wrong] * 8})
    # The Wilson interval of 8 of 10 and 2 of 10, and six coins that fell the same way: 2 / 2^6.
    assert "80.0 (49.0 to 94.3)" in lines[2]
    assert "20.0 (5.7 to 51.0)" in lines[2]
    assert lines[3].split() == ["same", "direction", "0", "-", "-"]
    assert "found by a alone 6, by b alone 0; as uneven by chance: 0.031" in lines[5]
    assert "a: mean error where found 1.00° and 50 cm" in lines[6]


def test_recall_of_groups() -> None:
    def one(rotation: float, translation: float, opposite: bool) -> Registered:
        return Registered(PoseError(rotation, translation), opposite, 0.1)

    shares = recall({"a": [one(4, 1, False), one(6, 1, True), one(1, 3, True), one(1, 1, True)]})
    assert shares["all"]["a"] == 0.5
    assert shares["same direction"]["a"] == 1.0
    assert shares["opposite direction"]["a"] == pytest.approx(1 / 3)
