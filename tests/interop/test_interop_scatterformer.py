"""Official ScatterFormer configurations and checkpoints in this library."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from pcdet_ext import config as configuration
from pcdet_ext.conformance.golden import Case
from pcdet_ext.engine.optimizer import OneCycle
from pcdet_ext.interop import from_official
from pcdet_ext.models.detector import build_detector
from pcdet_ext.structures import SparseVoxels

COVERED = {
    "waymo_models/scatterformer.yaml": "waymo/scatterformer.yaml",
    "nuscenes_models/scatterformer.yaml": "nuscenes/scatterformer.yaml",
}
GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden" / "scatterformer"


@pytest.fixture(scope="module")
def manifest(shared) -> dict:
    return json.loads((shared / "golden" / "scatterformer" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def case(shared) -> Case:
    return Case.read(shared / "golden" / "scatterformer" / "detector_center.json")


@pytest.fixture(scope="module")
def transfusion(shared) -> dict:
    return Case.read(shared / "golden" / "scatterformer" / "detector_transfusion.json").config


def test_every_published_model_is_accounted_for(manifest):
    assert set(manifest) == set(COVERED)


@pytest.mark.parametrize("name", COVERED)
def test_every_name_and_shape_of_a_published_model_has_its_place(manifest, name):
    entry = manifest[name]
    state = {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(entry["params"])}
    detector = from_official("scatterformer", entry["config"], state)
    found = sorted(float(t.flatten()[0]) for t in detector.state_dict().values())
    assert found == [float(i) for i, (key, _) in enumerate(entry["params"]) if key != "global_step"]
    assert sum(p.numel() for p in detector.parameters()) == entry["total_params"]
    assert detector.backbone.in_grid == tuple(entry["config"]["sparse_shape_stem"])
    assert detector.backbone.out_grid[1:] == tuple(entry["config"]["sparse_shape_stage2"][1:])


@pytest.mark.parametrize(("name", "path"), COVERED.items())
def test_our_configurations_are_the_published_ones(root, manifest, name, path):
    settings = configuration.load(root / "configs" / path)
    published = manifest[name]["config"]
    with torch.device("meta"):
        ours, official = build_detector(settings), from_official("scatterformer", published)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in official.state_dict().items()}
    assert list(settings["data"]["point_features"]) == published["point_features"]
    for part in ("encoder", "backbone", "bev_backbone", "head"):
        mine, theirs = (plain_settings(getattr(detector, part)) for detector in (ours, official))
        assert mine == theirs, part
    assert ours.backbone.pool.nonnegative_query


def plain_settings(module: torch.nn.Module) -> dict:
    """What a component was set to, as far as it keeps it. The order of voxels in memory does not matter."""
    hidden = {"training", "x_major"}
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in hidden}


@pytest.mark.parametrize(("name", "path"), COVERED.items())
def test_our_training_is_the_published_one(root, manifest, name, path):
    published = manifest[name]["config"]
    ours, theirs = configuration.load(root / "configs" / path)["train"], published["optimization"]
    fade = published["hook"]["DisableAugmentationHook"]
    assert (ours["epochs"], ours["batch_size"]) == (theirs["NUM_EPOCHS"], theirs["BATCH_SIZE_PER_GPU"])
    assert (ours["learning_rate"], ours["weight_decay"]) == (theirs["LR"], theirs["WEIGHT_DECAY"])
    assert (ours["pct_start"], ours["div_factor"]) == (theirs["PCT_START"], theirs["DIV_FACTOR"])
    assert ours["grad_norm_clip"] == theirs["GRAD_NORM_CLIP"]
    assert list(OneCycle.momentum) == theirs["MOMS"]
    assert ours["fade_epochs"] == fade["NUM_LAST_EPOCHS"]


def test_backbone_alone_runs(shared):
    golden = Case.read(shared / "golden" / "scatterformer" / "backbone.json")
    backbone = from_official("scatterformer", golden.config, {"model_state": golden.tensors("param")})
    grid = tuple(reversed(golden.config["grid_size"]))
    features, coords = golden.tensor("in.voxel_features"), golden.tensor("in.voxel_coords")
    found = backbone(SparseVoxels(features, coords, grid, golden.config["batch_size"]))
    assert found.features.shape == golden.arrays["out.features"].shape
    assert not backbone.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("backbone_3d.app.norm.bias"), "backbone.pool.norm.bias is missing"),
        (lambda s: s.update({"backbone_3d.app.extra": torch.zeros(1)}), "backbone_3d.app.extra has no place"),
        (lambda s: s.update({"vfe.pfn_layers.0.norm.bias": torch.zeros(3)}), r"norm.bias is \(3,\), not \(8,\)"),
        (lambda s: s.clear(), "and [0-9]+ more"),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(case, change, message):
    state = case.tensors("param")
    change(state)
    with pytest.raises(ValueError, match=message):
        from_official("scatterformer", case.config, state)


def _set(path: str, value: object):
    def change(config: dict) -> None:
        *parents, last = path.split(".")
        for key in parents:
            config = config[key]
        config[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("voxel_size"), "of the detector needs voxel_size; it has"),
        (lambda c: c["BACKBONE_3D"].pop("WIN_SIZE"), "of the backbone needs WIN_SIZE; it has FEATURE_DIM"),
        (lambda c: c["BACKBONE_2D"].pop("NUM_SBB"), "of the 2-D backbone needs NUM_SBB"),
        (_set("BACKBONE_3D.NAME", "DSVT"), "BACKBONE_3D: 'DSVT' is not in this library; known: ScatterFormer"),
        (_set("BACKBONE_2D.NAME", "BaseBEVBackbone"), "known: CascadeDEDBackbone"),
        (_set("VFE.NAME", "MeanVFE"), "VFE: 'MeanVFE'"),
        (_set("BACKBONE_3D.WIN_SIZE", 11), "window must be even"),
        (_set("BACKBONE_3D.FEATURE_DIM", 30), "got 4 and 30 channels"),
        (_set("BACKBONE_2D.DOWN_STRIDES", [2, 2, 2]), "set to a stride of 2, but its map has 4"),
        (_set("DENSE_HEAD.NAME", "PointHead"), "'PointHead' is not in this library"),
    ],
)
def test_settings_without_counterpart_are_refused(case, change, message):
    config = copy.deepcopy(case.config)
    change(config)
    with pytest.raises(ValueError, match=message):
        from_official("scatterformer", config)


@pytest.mark.parametrize(("key", "value"), [("QUERY_LOCAL", False), ("CLASS_AGNOSTIC", True), ("ACTIVATION", "gelu")])
def test_query_heads_of_another_kind_are_refused(transfusion, key, value):
    config = copy.deepcopy(transfusion)
    config["DENSE_HEAD"][key] = value
    with pytest.raises(ValueError, match=f"{key}: {value!r} is not known here"):
        from_official("scatterformer", config)


@pytest.mark.parametrize(
    "name", ["sla_layer", "cwi_ffn", "block_batch2", "pillar_pool", "vfe", "bev_ded", "backbone", "detector_center"]
)
def test_parts_load_alone(shared, name):
    golden = Case.read(shared / "golden" / "scatterformer" / f"{name}.json")
    state = golden.tensors("param")
    module = from_official("scatterformer", golden.config, state)
    assert len(module.state_dict()) == len([key for key in state if key != "global_step"])
    with pytest.raises(ValueError, match="is missing"):
        from_official("scatterformer", golden.config, {})


@pytest.mark.parametrize("given", [True, False])
def test_an_encoder_alone_does_not_read_whether_to_use_offsets_from_the_mean(given):
    golden = Case.read(GOLDEN / "vfe.json")
    module = from_official("scatterformer", {**golden.config, "USE_CLUSTER_XYZ": given}, golden.tensors("param"))
    assert module.out_channels == 32


def test_a_configuration_of_nothing_known_is_refused():
    with pytest.raises(ValueError, match=r"needs one of BACKBONE_3D, WIN_SIZE.*; it has FEATURE_DIM"):
        from_official("scatterformer", {"FEATURE_DIM": 32})
    with pytest.raises(ValueError, match="of the attention layer needs dim; it has num_heads"):
        from_official("scatterformer", {"num_heads": 4})


def test_a_backbone_needs_its_geometry():
    with pytest.raises(
        ValueError, match="of the backbone needs input_channels, grid_size; it has FEATURE_DIM, WIN_SIZE"
    ):
        from_official("scatterformer", {"FEATURE_DIM": 32, "WIN_SIZE": 12})
