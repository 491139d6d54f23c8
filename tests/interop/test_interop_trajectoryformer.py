"""Published configurations and parameter names of TrajectoryFormer in this library."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pcdet_ext.interop import from_official, trajectoryformer
from pcdet_ext.tracking.trajectory import TrajectoryOptions
from pcdet_ext.tracking.trajectory_motion import MotionPredictor
from pcdet_ext.tracking.trajectory_network import TrajectoryNetwork


@pytest.fixture(scope="module")
def manifest(shared: Path) -> dict[str, Any]:
    entries = json.loads((shared / "golden" / "tracking" / "manifest.json").read_text())
    for entry in entries.values():
        if "same_params_as" in entry:
            entry["params"] = entries[entry["same_params_as"]]["params"]
    return entries


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("trajectoryformer_centerpoint", TrajectoryNetwork),
        ("trajectoryformer_mppnet", TrajectoryNetwork),
        ("trajectoryformer_motionpred", MotionPredictor),
    ],
)
def test_every_name_and_shape_has_its_place(manifest: dict[str, Any], name: str, kind: type) -> None:
    entry = manifest[name]
    state = {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(entry["params"])}
    network = from_official("trajectoryformer", entry["config"], state)
    assert type(network) is kind
    own = network.state_dict()
    if isinstance(network, MotionPredictor):
        assert network.published  # the velocities of nearest detections, and overlaps
    assert {key for key in state if not key.startswith(trajectoryformer.UNUSED)} == set(own)
    assert all(torch.equal(own[key], state[key].to(own[key].dtype)) for key in own)


def test_the_unused_layers_are_all_that_the_published_count_has_more(manifest: dict[str, Any]) -> None:
    entry = manifest["trajectoryformer_centerpoint"]
    state = {key: torch.zeros(shape) for key, shape in entry["params"]}
    network = from_official("trajectoryformer", entry["config"], state)
    unused = sum(value.numel() for key, value in state.items() if key.startswith(trajectoryformer.UNUSED))
    assert sum(p.numel() for p in network.parameters()) + unused == entry["trainable_parameters"]


def test_the_default_options_are_the_published_values(manifest: dict[str, Any]) -> None:
    found = trajectoryformer.tracker_options(manifest["trajectoryformer_centerpoint"]["config"]["model"])
    own = TrajectoryOptions()
    for name in ("kept_score", "birth_score", "limits"):
        assert {key.upper(): value for key, value in getattr(own, name).items()} == getattr(found, name)
    for name in ("predictions", "history", "points", "new_overlap", "first_class"):
        assert getattr(own, name) == getattr(found, name)
    assert found.published
    assert not own.published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"point_dim": 31}, "point_dim: only 30 is known"),
        ({"bogus": 1}, "model.bogus: the setting is not known"),
        ({"eval_class": "CAR"}, "eval_class must be one of VEHICLE"),
    ],
)
def test_settings_without_counterpart_are_refused(manifest: dict[str, Any], change: dict, message: str) -> None:
    config = copy.deepcopy(manifest["trajectoryformer_mppnet"]["config"])
    config["model"] |= change
    with pytest.raises(ValueError, match=message):
        from_official("trajectoryformer", config)


def test_a_parameter_that_is_missing_is_named(manifest: dict[str, Any]) -> None:
    entry = manifest["trajectoryformer_motionpred"]
    state = {key: torch.zeros(shape) for key, shape in entry["params"]}
    del state["velboxembed.out_mlps.6.bias"]
    with pytest.raises(ValueError, match=r"velboxembed.out_mlps.6.bias is missing"):
        from_official("trajectoryformer", entry["config"], state)
