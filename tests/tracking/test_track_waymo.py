"""Tracking of results of Waymo data through the command line, by boxes alone and with a network that is trained."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_ext.cli.command import main
from pcdet_ext.data.index import FrameInfo, index_path, read_index
from pcdet_ext.data.waymo import prepare_waymo
from pcdet_ext.evaluation.waymo_boxes import Boxes, read_boxes, write_boxes
from pcdet_ext.tracking import trajectory_fit
from pcdet_ext.tracking.trajectory_drives import blocks_at, futures_at
from pcdet_ext.tracking.trajectory_network import TrajectoryNetwork
from pcdet_ext.tracking.trajectory_training import TrainingOptions
from pcdet_ext.tracking.waymo_files import CLASSES, WaymoDrives

SMALL = Path(__file__).resolve().parents[1] / "data" / "golden" / "waymo_v2"
TINY = {"hidden": 8, "heads": 2, "layers": 1, "feed": 8}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three labelled frames, prepared, and results that are their labels."""
    folder = tmp_path / "waymo"
    shutil.copytree(SMALL, folder)
    prepare_waymo(folder, ("train",), progress=False)
    write_boxes(tmp_path / "results.parquet", _results(_infos(folder)))
    return folder


def _infos(folder: Path) -> list[FrameInfo]:
    return list(read_index(index_path(folder / "pcdet_ext", "train")))


def _results(infos: list[FrameInfo]) -> Boxes:
    names, boxes, speeds, types = [], [], [], []
    for info in infos:
        assert info.boxes is not None
        assert info.pose is not None
        names += [(info.extra["context"], info.extra["timestamp_micros"])] * len(info.boxes)
        boxes.append(info.boxes[:, :7])
        speeds.append(info.boxes[:, 7:] @ info.pose[:2, :2].T)
        types += [CLASSES.index(name) + 1 for name in info.names]
    table, score = np.concatenate(boxes).astype(np.float64), np.full(len(names), 0.9, np.float32)
    return Boxes.of(names, np.array(types, np.int64), table, score=score, speed=np.concatenate(speeds))


def arguments(root: Path, tracker: str, *more: str) -> list[str]:
    results, out = root.parent / "results.parquet", root.parent / "tracks.parquet"
    return [
        "track", str(results), "--data", str(root), "--split", "train", "--tracker", tracker, "--out", str(out), *more,
    ]  # fmt: skip


def numbers_of_objects(root: Path) -> dict[int, set[str]]:
    """The numbers that the tracks of each labelled object have, found by the places of their boxes."""
    found = read_boxes(root.parent / "tracks.parquet", scores=True)
    numbers: dict[int, set[str]] = defaultdict(set)
    for info in _infos(root):
        assert info.boxes is not None
        assert info.track_ids is not None
        name = (info.extra["context"], info.extra["timestamp_micros"])
        rows = [i for i, frame in enumerate(found.frames) if frame == name]
        for box, track in zip(info.boxes, info.track_ids.tolist(), strict=True):
            gaps = np.linalg.norm(found.boxes[rows][:, :2] - box[:2], axis=1)
            if len(rows) and gaps.min() < 0.3:
                numbers[track].add(found.object_ids[rows[int(gaps.argmin())]])
    return numbers


@pytest.mark.parametrize("tracker", ["greedy", "kalman"])
def test_objects_of_a_vehicle_that_drives_keep_their_numbers(root: Path, tracker: str) -> None:
    assert main(arguments(root, tracker)) == 0
    numbers = numbers_of_objects(root)
    assert len(numbers) > 10
    assert all(len(own) == 1 for own in numbers.values())
    assert len(set.union(*numbers.values())) == len(numbers)


def test_a_network_looks_at_the_points(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = root.parent / "net.ckpt"
    trajectory_fit.save(network, TrajectoryNetwork(**TINY))
    assert main(arguments(root, "trajectory", f"network={network}", "birth_score.Vehicle=0.5", "points=8")) == 0
    found = read_boxes(root.parent / "tracks.parquet", scores=True)
    assert len(found) > 20
    assert "boxes of tracks in 3 frames" in capsys.readouterr().out


def test_the_command_trains_and_writes_after_every_epoch(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcdet_ext.cli.track_formats.TrajectoryNetwork", lambda: TrajectoryNetwork(**TINY))
    monkeypatch.setattr(trajectory_fit, "MOTION_EPOCHS", 1)
    network = root.parent / "new.ckpt"
    saved: list[Path] = []
    save = trajectory_fit.save
    monkeypatch.setattr(trajectory_fit, "save", lambda path, model: (saved.append(path), save(path, model)))
    assert main(arguments(root, "trajectory", "--fit", "1", f"network={network}", "points=8")) == 0
    out = capsys.readouterr().out
    assert out.count("motion: epoch") == 1
    assert out.count("hypotheses: epoch") == 1
    assert saved.count(network) == 2
    assert trajectory_fit.load(network).settings["hidden"] == 8


@pytest.mark.parametrize("published", [False, True])
def test_both_trainings_have_the_options_of_the_command(
    root: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    given: list[TrainingOptions] = []

    def trained(*_: object, options: TrainingOptions) -> Iterator[float]:
        given.append(options)
        return iter((0.5,))

    monkeypatch.setattr("pcdet_ext.cli.track_formats.TrajectoryNetwork", lambda: TrajectoryNetwork(**TINY))
    monkeypatch.setattr(trajectory_fit, "fit_motion", trained)
    monkeypatch.setattr(trajectory_fit, "fit", trained)
    more = ("--fit", "1", f"network={root.parent / 'new.ckpt'}", "points=8", f"published={str(published).lower()}")
    assert main(arguments(root, "trajectory", *more)) == 0
    assert [(options.points, options.published) for options in given] == [(8, published)] * 2


def test_a_training_that_is_no_longer_finite_ends_the_command(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> TrajectoryNetwork:
        network = TrajectoryNetwork(**TINY)
        torch.nn.init.constant_(network.velboxembed.out_mlps[-1].bias, 3e38)
        return network

    monkeypatch.setattr("pcdet_ext.cli.track_formats.TrajectoryNetwork", broken)
    network = root.parent / "new.ckpt"
    assert main(arguments(root, "trajectory", "--fit", "1", f"network={network}", "points=8")) == 1
    assert "training became unusable: the loss is" in capsys.readouterr().err


def test_wrong_options_are_named_before_anything_is_trained(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = root.parent / "new.ckpt"
    for more, message in (
        (("history=1",), "history must be at least 2"),
        (("bogus=1",), "bogus"),
        (("limits.Vehicel=1",), "no class is named 'Vehicel'; did you mean 'Vehicle'"),
    ):
        assert main(arguments(root, "trajectory", "--fit", "1", f"network={network}", *more)) == 2
        assert message in capsys.readouterr().err
    assert not network.exists()
    assert main([*arguments(root, "greedy"), "--json", str(root.parent / "out.json")]) == 2
    assert "--json: tracks of Waymo data are not measured" in capsys.readouterr().err
    assert main([*arguments(root, "greedy"), "--split", "other"]) == 2
    assert "prepared with the split 'other'" in capsys.readouterr().err
    assert main(arguments(root, "graph", f"network={network}")) == 2
    assert "does not work on Waymo data" in capsys.readouterr().err
    assert main(arguments(root, "kalman", "--fit", "1")) == 2
    assert "has no network to train" in capsys.readouterr().err
    wrong = [part.replace("tracks.parquet", "tracks.json") for part in arguments(root, "greedy")]
    assert main(wrong) == 2
    assert "Objects message (.bin) or a Parquet file (.parquet)" in capsys.readouterr().err


def test_drives_are_what_training_needs(root: Path) -> None:
    """Objects of earlier frames, moved to where they are now; annotated places of the next ones."""
    (drive,) = WaymoDrives.read(root, "train", root.parent / "results.parquet").training_drives()
    blocks = blocks_at(drive, 2, 4)
    assert blocks.boxes.shape[:2] == (1, 5)
    assert not bool(blocks.boxes[0, 4].any())  # before the drive
    now, moved, before = blocks.boxes[0, 0], blocks.boxes[0, 1], blocks.boxes[0, 2]
    for number, track in enumerate(drive[1].objects.tolist()):
        place = np.flatnonzero(drive[2].objects == track)
        if len(place):
            gap = [float((rows[number, :2] - now[place[0], :2]).norm()) for rows in (moved, before)]
            assert gap[0] < 0.3
            assert gap[0] <= gap[1] + 0.05
    futures = futures_at(drive, 0, 4)
    assert futures.shape == (4, 14, 7)
    assert not bool(futures[2:].any())
    lost = set(drive[0].objects) - set(drive[1].objects)
    assert [track for i, track in enumerate(drive[0].objects) if not bool(futures[0, i].any())] == sorted(lost)


def test_training_makes_the_losses_smaller(root: Path) -> None:
    drives = WaymoDrives.read(root, "train", root.parent / "results.parquet").training_drives()
    torch.manual_seed(0)
    network = TrajectoryNetwork(16, 2, 1, 16)
    motion = list(trajectory_fit.fit_motion(network, drives, 12, length=2))
    assert motion[-1] < 0.8 * motion[0]
    before = {name: value.clone() for name, value in network.velboxembed.state_dict().items()}
    options = trajectory_fit.TrainingOptions(points=8)
    losses = list(trajectory_fit.fit(network, drives, 6, length=2, options=options))
    assert losses[-1] < 0.97 * losses[0]
    after = network.velboxembed.state_dict()
    assert all(bool((after[name] == value).all()) for name, value in before.items())


def test_training_goes_on_where_little_is_there(root: Path) -> None:
    """Frames without annotations, without points and without detections: losses stay finite, or are left out."""
    (drive,) = WaymoDrives.read(root, "train", root.parent / "results.parquet").training_drives()
    bare = replace(
        drive[1], annotations=torch.zeros(0, 7), objects=np.zeros(0, np.int64), points=lambda: torch.zeros(0, 6)
    )
    none = replace(drive[2], **{name: getattr(drive[2], name)[:0] for name in ("boxes", "velocity", "score", "label")})
    network = TrajectoryNetwork(**TINY)
    options = trajectory_fit.TrainingOptions(points=8)
    for _ in range(2):
        (loss,) = trajectory_fit.fit(network, [[drive[0], bare, none]], 1, length=2, batch_size=1, options=options)
        assert np.isfinite(loss)
    assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())
    (lost,) = trajectory_fit.fit_motion(network, [[drive[0], bare]], 1, length=2)
    assert np.isnan(lost)
    with pytest.raises(ValueError, match="frames that follow one with detections"):
        trajectory_fit.fit(network, [[none, drive[2]]], 1)
