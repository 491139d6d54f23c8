"""Official configurations and checkpoints of octree transformers in this library."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import ConfigError
from pcdet_ext.conformance.golden import Case
from pcdet_ext.interop import from_official
from pcdet_ext.interop.checkpoints import convert, load_network
from pcdet_ext.models.networks.hotformerloc import HOTFormerLoc
from pcdet_ext.models.networks.octformer import OctreeClassifier, OctreeSegmenter

OCTFORMER = {
    "configs/seg_scannet.yaml": OctreeSegmenter,
    "configs/seg_scannet200.yaml": OctreeSegmenter,
    "builder.octsegformer_small (nout 21)": OctreeSegmenter,
    "builder.octsegformer_large (nout 201)": OctreeSegmenter,
    "configs/cls_m40.yaml": OctreeClassifier,
}


@pytest.fixture(scope="module")
def manifest(shared) -> dict:
    return json.loads((shared / "golden" / "octree" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def segmentation(shared) -> Case:
    return Case.read(shared / "golden" / "octree" / "octformer_seg.json")


def check_every_name(system: str, entry: dict) -> torch.nn.Module:
    """On the meta device, because the largest model has 161 million parameters."""
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in entry["params"]}
        module = from_official(system, entry["config"], state)
    assert len(module.state_dict()) == len(entry["params"])
    assert sum(p.numel() for p in module.parameters()) == entry["total_params"]
    return module


@pytest.mark.parametrize("name", OCTFORMER)
def test_every_name_and_shape_of_octformer_has_its_place(manifest, name):
    assert type(check_every_name("octformer", manifest[name])) is OCTFORMER[name]


def test_the_backbone_of_the_published_detector_has_its_place_without_the_head(manifest):
    entry = manifest["configs/det_sunrgbd.py"]
    config = {key: value for key, value in entry["config"].items() if key != "head"}
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in entry["params"] if name.startswith("backbone.")}
        stages = from_official("octformer", config, state)
    assert len(stages.state_dict()) == len(state)
    assert (stages.channels, stages.halvings) == ((96, 192, 384, 384), 3)


HOTFORMERLOC = {
    "models/hotformerloc_cs-wild-places_cfg.txt": (7, 64, (74, 36, 18)),
    "models/hotformerloc_wild-places_cfg.txt": (7, 48, (148, 72, 36)),
    "models/hotformerloc_cs-campus3d_cfg.txt": (7, 64, (148, 72, 36)),
    "models/hotformerloc_oxford_cfg.txt": (9, 48, (74, 36, 18)),
}


@pytest.mark.parametrize("name", HOTFORMERLOC)
def test_every_name_and_shape_of_hotformerloc_has_its_place(manifest, name):
    network = check_every_name("hotformerloc", manifest[name])
    depth, group_size, queries = HOTFORMERLOC[name]
    assert isinstance(network, HOTFormerLoc)
    assert (network.source.depth, network.stages.options.group_size) == (depth, group_size)
    assert tuple(len(pool.queries) for pool in network.pooling.pool) == queries
    assert network.normalization.cylindrical == ("cylindrical" in manifest[name]["config"].values())
    assert (network.stages.hierarchy.distribution is None) == (name == "models/hotformerloc_wild-places_cfg.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "HOTFormerLoc-Other"}, "`octree` must say its depth"),
        ({"pooling": "NetVLAD"}, "pool_method: 'NetVLAD' is not in this library"),
        ({"conv_norm": "powernorm"}, "'powernorm' is not .* known: layernorm, batchnorm. Every published model has"),
        ({"ct_size": 2}, "rt_size: 2 is not known here; known: 1"),
        ({"coordinates": "polar"}, "coordinates: 'polar' is not known here"),
        ({"input_features": "F"}, "input_features must be letters of NDLP, got 'F'"),
        ({"speed": 2}, "backbone.speed: the setting is not known here"),
    ],
)
def test_settings_of_published_models_without_counterpart_are_refused(manifest, change, message):
    config = manifest["models/hotformerloc_oxford_cfg.txt"]["config"] | change
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        from_official("hotformerloc", config)


def test_one_door_for_both(shared):
    for name in ("octformer_block_plain", "hotformer_stage_cpe", "pooling_octgem"):
        case = Case.read(shared / "golden" / "octree" / f"{name}.json")
        module = from_official("octree", case.config, case.tensors("param"))
        assert len(module.state_dict()) == len(case.tensors("param"))


def test_published_names_go_to_different_places_with_their_values(segmentation):
    state = {
        name: torch.full_like(value, float(i)) for i, (name, value) in enumerate(segmentation.tensors("param").items())
    }
    network = from_official("octformer", segmentation.config, {"model_state_dict": state})
    found = sorted(float(t.flatten()[0]) for t in network.state_dict().values())
    assert found == [float(i) for i in range(len(state))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["model"].update(use_dwconv=False, channels=[16, 28, 32, 32], num_heads=[2, 2, 4, 4]),
            "28 channels cannot be shared out",
        ),
        (lambda c: c.update(feature="NX"), "letters of NDLPF, got 'NX'"),
        (lambda c: c.update(feature="ND"), "in_channels is 10, but the input feature ND has 4"),
        (lambda c: c["model"].update(stem_up=2), "model.stem_up: the setting is not known here"),
        (lambda c: c["model"].update(head_drop=[0.5]), "dropout must be two shares"),
    ],
)
def test_settings_without_counterpart_are_refused(segmentation, change, message):
    config = copy.deepcopy(segmentation.config)
    change(config)
    with pytest.raises(ValueError, match=message):
        from_official("octformer", config)


def test_converted_networks_are_the_published_ones(segmentation, tmp_path):
    state = segmentation.tensors("param")
    official, config, out = tmp_path / "seg.pth", tmp_path / "seg.json", tmp_path / "seg.ckpt"
    torch.save({"model_state_dict": state}, official)
    config.write_text(json.dumps({"system": "octformer", "config": segmentation.config}))
    assert convert(official, config, out) == len(state)
    expected = from_official("octformer", segmentation.config, state).state_dict()
    found = load_network(out).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    torch.save({"model_state_dict": dict(list(state.items())[1:])}, official)
    with pytest.raises(CheckpointError, match=r"seg\.pth and .*seg\.json: the state dict does not fit"):
        convert(official, config, out)
    config.write_text(json.dumps({"system": "octformer"}))
    with pytest.raises(ConfigError, match="there must be a mapping 'config'"):
        convert(official, config, out)
    with pytest.raises(CheckpointError, match="is no converted network"):
        load_network(official)


def test_state_dicts_that_do_not_fit_are_refused(segmentation):
    state = segmentation.tensors("param")
    state["head.extra"] = state.pop("head.classifier.5.bias")
    with pytest.raises(ValueError, match=r"head\.extra has no place; head\.classifier\.5\.bias is missing"):
        from_official("octformer", segmentation.config, state)
