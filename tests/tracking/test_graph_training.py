"""Training of the graph tracker on result files, and tracking with what it learned, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_ext import checkpoint
from pcdet_ext.cli.command import main
from pcdet_ext.evaluation.nuscenes_files import Submission
from pcdet_ext.files import DataError
from pcdet_ext.tracking import graph_training
from pcdet_ext.tracking.graph_network import GraphTrackerNetwork
from pcdet_ext.tracking.graph_training import KIND, fit, load, save, training_sequences

SMALL = {"dim": 16, "heads": 4, "encoders": 1, "decoders": 1, "dropout": 0.0}


def box(token: str, x: float, y: float) -> dict[str, Any]:
    return {
        "sample_token": token, "translation": [x, y, 0], "size": [2, 2, 1.5], "rotation": [1, 0, 0, 0],
        "velocity": [4, 0],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scenes of six frames: three cars each, of which one is not found in every frame, and a false one."""
    rng = np.random.default_rng(0)
    samples, truth, found = {}, {}, {}
    for scene in "ab":
        for i in range(6):
            token = f"{scene}{i}"
            samples[token] = {
                "scene": scene, "timestamp": 500_000 * i, "ego_translation": [0, 0, 0], "bicycle_racks": [],
            }  # fmt: skip
            places = [(2.0 * i + 8 * k, 3.0 * k) for k in range(3)]
            truth[token] = [
                {**box(token, *place), "tracking_name": "car", "tracking_id": f"{scene}{k}", "num_pts": 9}
                for k, place in enumerate(places)
            ]
            seen = [(x + rng.normal(0, 0.1), y) for k, (x, y) in enumerate(places) if k or i % 3 != 1]
            found[token] = [
                {**box(token, *place), "detection_name": "car", "detection_score": 0.8, "attribute_name": ""}
                for place in [*seen, (30.0 + rng.normal(0, 5), -20.0)]
            ]
    (tmp_path / "gt.json").write_text(json.dumps({"samples": samples, "gt_boxes": truth}))
    (tmp_path / "found.json").write_text(json.dumps({"meta": {}, "results": found}))
    return tmp_path


def test_sequences_know_which_object_a_detection_is(folder: Path) -> None:
    first, second = training_sequences(Submission.read(folder / "found.json"), folder / "gt.json")
    objects = [nodes.object.tolist() for nodes, _ in first]
    assert objects[0] == [0, 1, 2, -1]
    assert objects[1] == [1, 2, -1]
    assert second[0][0].object.tolist() == [3, 4, 5, -1]
    nodes = first[0][0]
    np.testing.assert_allclose(nodes.velocity[:3, 0], 4, atol=1)
    assert [nodes.has_next.tolist() for nodes in (first[0][0], first[5][0])] == [[True] * 3 + [False], [False] * 4]


def test_fit_makes_the_loss_smaller_and_needs_windows(folder: Path) -> None:
    sequences = training_sequences(Submission.read(folder / "found.json"), folder / "gt.json")
    losses = list(fit(GraphTrackerNetwork(**SMALL), sequences, epochs=12, length=4, batch_size=2, rate=5e-3))
    assert losses[-1] < 0.7 * losses[0]
    with pytest.raises(ValueError, match="no scene has 7 frames in a row"):
        fit(GraphTrackerNetwork(**SMALL), sequences, length=7)


def test_the_command_tracks_with_a_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder / "net.ckpt", GraphTrackerNetwork(**SMALL), SMALL)
    arguments = ["track", str(folder / "found.json"), "--data", str(folder / "gt.json"), "--tracker", "graph"]
    arguments += ["--out", str(folder / "tracks.json")]
    assert main([*arguments, f"network={folder / 'net.ckpt'}"]) == 0
    assert "AMOTA" in capsys.readouterr().out
    assert main([*arguments, f"network={folder / 'no.ckpt'}"]) == 2
    assert "no.ckpt: no such checkpoint" in capsys.readouterr().err
    assert main(arguments) == 2
    with pytest.raises(DataError, match=r"gt\.json"):
        load(folder / "gt.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": KIND}, "settings of a graph tracker must be a mapping, is None"),
        ({"kind": KIND, "settings": SMALL, "state": [1]}, "state of a graph tracker must be a mapping"),
        ({"kind": KIND, "settings": {"width": 3}, "state": {}}, "the settings are none of a graph tracker"),
        ({"kind": KIND, "settings": {**SMALL, "heads": 5}, "state": {}}, "dim must be a multiple of heads"),
        ({"kind": "other"}, "no network of a graph tracker"),
    ],
)
def test_damaged_networks_are_named(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    checkpoint.write(tmp_path / "net.ckpt", content)
    with pytest.raises(DataError, match=rf"net\.ckpt: .*{message}"):
        load(tmp_path / "net.ckpt")


def test_a_home_folder_may_be_written_as_a_tilde(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    save(Path("~/net.ckpt"), GraphTrackerNetwork(**SMALL), SMALL)
    assert (folder / "net.ckpt").is_file()
    arguments = ["track", str(folder / "found.json"), "--data", str(folder / "gt.json"), "--tracker", "graph"]
    assert main([*arguments, "--out", str(folder / "tracks.json"), "--no-metric", "network=~/net.ckpt"]) == 0


def test_incomplete_batches_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six windows in batches of four: one step an epoch; of fewer windows than a batch all are one step."""
    sequences = training_sequences(Submission.read(folder / "found.json"), folder / "gt.json")
    sizes: list[int] = []
    losses = graph_training.sequence_losses

    def counted(network: Any, frames: Any, *more: Any, **options: Any) -> Any:
        sizes.append(int(frames[0].batch.max()) + 1)
        return losses(network, frames, *more, **options)

    monkeypatch.setattr(graph_training, "sequence_losses", counted)
    for batch_size, expected in ((4, [4]), (3, [3, 3]), (8, [6])):
        sizes.clear()
        assert len(list(fit(GraphTrackerNetwork(**SMALL), sequences, 1, length=4, batch_size=batch_size))) == 1
        assert sizes == expected


def test_options_are_checked_before_training_and_every_epoch_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = folder / "new.ckpt"
    arguments = ["track", str(folder / "found.json"), "--data", str(folder / "gt.json"), "--tracker", "graph"]
    arguments += ["--out", str(folder / "tracks.json"), f"network={network}"]
    assert main([*arguments, "--fit", "1", "threshold=3"]) == 2
    assert "threshold must be from 0 to 1" in capsys.readouterr().err
    assert not network.exists()

    def broken(*_: Any, **__: Any) -> Any:
        yield 1.0
        raise KeyboardInterrupt

    monkeypatch.setattr(graph_training, "fit", broken)
    main([*arguments, "--fit", "2"])
    assert load(network).dim == 128


def test_the_command_trains_a_network_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["track", str(folder / "found.json"), "--data", str(folder / "gt.json"), "--tracker", "graph"]
    arguments += ["--out", str(folder / "tracks.json"), "--fit", "1", f"network={folder / 'new.ckpt'}"]
    assert main(arguments) == 0
    assert "epoch 1: loss" in capsys.readouterr().out
    assert load(folder / "new.ckpt").dim == 128
