"""Our components in the shape of OpenPCDet's: what they read and write, and errors that name its sections."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import openpcdet_configs as configs
import pytest
import small_backbones
import torch
import yaml
from torch import Tensor, nn

from pcdet_ext.config import ConfigError
from pcdet_ext.models.heads import HEADS
from pcdet_ext.plugins.openpcdet import parts, registration, sections, weights
from pcdet_ext.structures import SparseVoxels

RANGE, SIZE, GRID = np.array(configs.RANGE, np.float32), configs.CUBIC, np.array([100, 100, 16])
ENCODER = {"NAME": "PcdetExt", "CONFIG": {"name": "DynamicVoxelVFE", "num_filters": [32]}}
CENTER = {"name": "CenterHead", "shared_channels": 16, "branch_channels": 16, "score_threshold": 0.0}


def points(count: int = 800) -> Tensor:
    """[P, 1 + 4] of two frames, as OpenPCDet's collation makes them."""
    generator = torch.Generator().manual_seed(0)
    cloud = torch.rand(count, 4, generator=generator) * torch.tensor([40.0, 40, 4, 1]) - torch.tensor([0, 20, 3, 0])
    return torch.cat([torch.arange(count)[:, None] % 2, cloud], 1)


def encoder(section: dict[str, Any] = ENCODER, **changes: Any) -> parts.Encoder:
    context = {"num_point_features": 4, "point_cloud_range": RANGE, "voxel_size": SIZE, "grid_size": GRID}
    return parts.Encoder(model_cfg=section, **context | changes, depth_downsample_factor=None)


def backbone(config: dict[str, Any], channels: int = 32, section: dict[str, Any] | None = None) -> parts.Backbone3D:
    section = {"NAME": "PcdetExt", "CONFIG": config} if section is None else section
    return parts.Backbone3D(
        model_cfg=section, input_channels=channels, grid_size=GRID, voxel_size=SIZE, point_cloud_range=RANGE
    )


def head(section: dict[str, Any], channels: int = 32) -> parts.DenseHead:
    context = {"grid_size": GRID, "point_cloud_range": RANGE, "voxel_size": SIZE, "num_class": 3}
    return parts.DenseHead(model_cfg=section, input_channels=channels, class_names=configs.CLASSES, **context)


def batch() -> dict[str, Any]:
    boxes = torch.zeros(2, 3, 8)
    boxes[0, :2] = torch.tensor([[10.0, 0, -1, 3.9, 1.6, 1.6, 0.3, 1], [20, 5, -1, 0.8, 0.6, 1.7, 0, 2]])
    boxes[1, 0] = torch.tensor([15.0, -5, -1, 1.7, 0.6, 1.7, 1, 3])
    return {"points": points(), "batch_size": 2, "gt_boxes": boxes}


def test_a_batch_goes_through_all_parts() -> None:
    vfe, lion = encoder(), backbone(configs.lion("Mamba"))
    data = lion(vfe(batch()))
    assert vfe.get_output_feature_dim() == 32
    assert data["voxel_coords"].dtype == torch.int32
    assert data["voxel_features"] is data["pillar_features"]
    assert set(lion.backbone_channels) == set(data["multi_scale_3d_features"]) == {"x_conv1", "x_conv2"}
    assert data["encoded_spconv_tensor_stride"] == 1
    expected = lion.network(encoded(vfe))
    tensor = data["encoded_spconv_tensor"]
    assert torch.equal(tensor.features, expected.features)
    assert torch.equal(tensor.indices, expected.coords)
    assert list(tensor.spatial_shape) == list(expected.grid)
    to_map = parts.MapToBEV({"NAME": "PcdetExt", "NUM_BEV_FEATURES": lion.map_channels}, GRID)
    bev = to_map(data)["spatial_features"]
    assert torch.allclose(bev, expected.dense().flatten(1, 2))
    section = {"NAME": "PcdetExt", "CONFIG": {k.lower(): v for k, v in configs.bev([1, 2]).items() if k != "NAME"}}
    section["CONFIG"]["name"] = "BaseBEVBackbone"
    flat = parts.Backbone2D(section, lion.map_channels)
    dense = head({"NAME": "PcdetExt", "STRIDE": 1, "CONFIG": CENTER}, flat.num_bev_features)
    loss, numbers = dense(flat(data)) and dense.get_loss()
    loss.backward()
    assert loss.item() == pytest.approx(sum(v for name, v in numbers.items() if name != "rpn_loss"), rel=1e-5)
    trained = nn.ModuleList([vfe, lion, flat, dense])
    assert [name for name, p in trained.named_parameters() if p.grad is None] == []
    found = dense.eval()(data)["final_box_dicts"]
    assert len(found) == 2
    assert int(found[0]["pred_labels"].min()) >= 1
    assert data["batch_box_preds"].shape[:2] == data["batch_cls_preds"].shape[:2]
    count = len(found[1]["pred_boxes"])
    assert torch.equal(data["batch_box_preds"][1, :count], found[1]["pred_boxes"])
    assert torch.equal(data["batch_cls_preds"][1, :count].amax(1), found[1]["pred_scores"])


def encoded(vfe: parts.Encoder) -> SparseVoxels:
    data = vfe(batch())
    return SparseVoxels(data["voxel_features"], data["voxel_coords"], (16, 100, 100), 2)


def test_coordinates_come_as_floats_and_features_under_either_name() -> None:
    flat = backbone(small_backbones.FLATFORMER)
    features = torch.rand(6, 32)
    coords = torch.tensor([[0, 0, y, 3] for y in range(6)]).float()
    expected = flat({"voxel_features": features, "voxel_coords": coords, "batch_size": 1})["voxel_features"]
    found = flat({"pillar_features": features, "voxel_coords": coords, "batch_size": 1})
    assert torch.equal(found["pillar_features"], expected)
    assert found["voxel_coords"].dtype == torch.int32


def test_hard_voxels_come_from_the_data_processor() -> None:
    vfe = encoder({"NAME": "PcdetExt", "CONFIG": {"name": "MeanVFE"}})
    data = {
        "voxels": torch.arange(24.0).view(2, 3, 4),
        "voxel_num_points": torch.tensor([2.0, 3.0]),
        "voxel_coords": torch.tensor([[0.0, 1, 2, 3], [0, 4, 5, 6]]),
        "batch_size": 1,
    }
    data["voxels"][0, 2] = 0
    found = vfe(data)["voxel_features"]
    assert torch.allclose(found, torch.stack([data["voxels"][0, :2].mean(0), data["voxels"][1].mean(0)]))


def test_targets_are_labelled_boxes_without_the_padding() -> None:
    dense = head({"NAME": "PcdetExt", "STRIDE": 1, "CONFIG": CENTER})
    first, second = dense._targets(batch()["gt_boxes"])
    assert (first.labels.tolist(), second.labels.tolist()) == ([0, 1], [2])
    assert first.boxes.shape == (2, 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: backbone({"name": "LION", "mixr": {}}), r"MODEL\.BACKBONE_3D\.CONFIG\.mixr: LION has no such key"),
        (
            lambda: backbone({"name": "LION", "mixer": {"name": "Mamba", "states": 4}}),
            r"MODEL\.BACKBONE_3D\.CONFIG\.mixer\.states: Mamba has no such key; did you mean 'd_state'",
        ),
        (lambda: backbone({"name": "Lion"}), r"MODEL\.BACKBONE_3D\.CONFIG\.name: no backbone is named 'Lion'"),
        (
            lambda: backbone({}, section={"NAME": "PcdetExt", "CONFG": {"name": "LION"}}),
            r"MODEL\.BACKBONE_3D\.CONFG: PcdetExt has no such key; did you mean 'CONFIG'",
        ),
        (
            lambda: backbone({}, section={"NAME": "PcdetExt"}),
            r"MODEL\.BACKBONE_3D: PcdetExt needs CONFIG: {name: …}, with a name out of DSVT, FlatFormer",
        ),
        (
            lambda: backbone(configs.lion("Mamba") | {"scales": [[[3, 2, 2]]], "windows": [[16, 13, 13]]}),
            r"MODEL\.BACKBONE_3D\.CONFIG: LION: .*",
        ),
        (
            lambda: backbone({"NAME": "DSTV", "INPUT_LAYER": {}}),
            r"MODEL\.BACKBONE_3D\.CONFIG\.NAME: 'DSTV' is not in this library; did you mean 'DSVT'",
        ),
        (
            lambda: backbone({"NAME": "DSVT"}),
            r"MODEL\.BACKBONE_3D\.CONFIG: BACKBONE_3D needs 'INPUT_LAYER'",
        ),
        (
            lambda: encoder(point_cloud_range=np.array([0, -20, -3, 40.2, 20, 1], np.float32)),
            r"DATA_CONFIG\.POINT_CLOUD_RANGE: 0 to 40\.2 along x holds 100\.5 voxels .* x up to 40 fits",
        ),
        (
            lambda: encoder({"NAME": "PcdetExt", "CONFIG": {"name": "DynamicPillarVFE"}}),
            r"MODEL\.VFE: DynamicPillarVFE makes a grid of \[1, 100, 100\] cells .* for pillars let",
        ),
        (lambda: head({"NAME": "PcdetExt", "CONFIG": CENTER}), r"MODEL\.DENSE_HEAD: STRIDE, .* is needed"),
        (
            lambda: head({"NAME": "PcdetExt", "STRIDE": 1, "CLASS_AGNOSTIC": True, "CONFIG": CENTER}),
            r"MODEL\.DENSE_HEAD\.CLASS_AGNOSTIC: .* write False",
        ),
        (lambda: parts.MapToBEV({"NAME": "PcdetExt"}, GRID), r"MODEL\.MAP_TO_BEV: NUM_BEV_FEATURES, .* is needed"),
        (lambda: parts.Backbone2D({"NAME": "PcdetExt"}, None), r"MODEL\.BACKBONE_2D: there is no map to read"),
    ],
)
def test_wrong_settings_name_their_section(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_is_missing_in_a_batch_names_the_section_that_reads_it() -> None:
    flat = backbone(small_backbones.FLATFORMER)
    with pytest.raises(ConfigError, match=r"MODEL\.VFE: reads batch_dict\['points'\], .* there are batch_size"):
        encoder()({"batch_size": 2})
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE_3D: reads batch_dict\['voxel_features'\]"):
        flat({"voxel_coords": torch.zeros(0, 4), "batch_size": 1})
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE_3D: built for 32 channels, .* of MODEL\.VFE has \[3, 8\]"):
        flat({"voxel_features": torch.zeros(3, 8), "voxel_coords": torch.zeros(3, 4), "batch_size": 1})
    coords = torch.tensor([[0, 0, 100, 0]])
    with pytest.raises(ConfigError, match=r"go up to \[0, 100, 0\] \(z, y, x\), beyond the grid \[16, 100, 100\]"):
        flat({"voxel_features": torch.zeros(1, 32), "voxel_coords": coords, "batch_size": 1})
    dense = head({"NAME": "PcdetExt", "STRIDE": 2, "CONFIG": CENTER})
    with pytest.raises(ConfigError, match=r"MODEL\.DENSE_HEAD\.STRIDE makes a map of \[50, 50\]"):
        dense({"spatial_features_2d": torch.zeros(1, 32, 100, 100)})


def test_channels_and_stride_follow_and_are_checked() -> None:
    flat = backbone(small_backbones.FLATFORMER)
    cfg: dict[str, Any] = {"MAP_TO_BEV": {"NAME": "HeightCompression"}}
    registration._fill_map(cfg, [flat])
    assert cfg["MAP_TO_BEV"]["NUM_BEV_FEATURES"] == 32 * 16
    cfg["MAP_TO_BEV"]["NUM_BEV_FEATURES"] = 256
    with pytest.raises(ConfigError, match=r"MODEL\.MAP_TO_BEV\.NUM_BEV_FEATURES is 256, .* has 512 channels"):
        registration._fill_map(cfg, [flat])
    cfg = {"BACKBONE_3D": {"NAME": "VoxelBackBone8x"}, "BACKBONE_2D": configs.bev([1, 2])}
    assert registration.map_stride(cfg, []) == 8
    cfg |= {"BACKBONE_2D": configs.bev([2, 2]), "DENSE_HEAD": {"NAME": "PcdetExt"}}
    registration._fill_head(cfg, [flat])
    assert cfg["DENSE_HEAD"] == {"NAME": "PcdetExt", "CLASS_AGNOSTIC": False, "STRIDE": 2}
    cfg["DENSE_HEAD"]["STRIDE"] = 4
    with pytest.raises(ConfigError, match=r"MODEL\.DENSE_HEAD\.STRIDE is 4, but the map has a stride of 2"):
        registration._fill_head(cfg, [flat])


def test_optimizers_get_the_parameters_that_they_did_not_see() -> None:
    lion = backbone(configs.lion("Mamba"))
    model = nn.Sequential(lion, nn.Linear(2, 2))
    leaves = [m for m in model.modules() if not list(m.children())]
    seen = list(dict.fromkeys(p for m in leaves for p in m.parameters()))
    assert len(seen) < len(list(model.parameters()))  # the state matrices of Mamba stand beside submodules
    optimizer = torch.optim.Adam(seen)
    registration._complete(optimizer, model)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    registration._complete(optimizer, model)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def published(shared: Path, system: str, case: str) -> dict[str, Any]:
    config = json.loads((shared / "golden" / system / f"{case}.json").read_text(encoding="utf-8"))["config"]
    return dict(config)


def test_published_sections_stand_as_they_are(shared: Path) -> None:
    lion = published(shared, "lion", "backbone_mamba")["BACKBONE_3D"]
    found = sections.node("BACKBONE_3D", lion)
    assert (found["name"], found["mixer"]["name"]) == ("LION", "Mamba")
    assert sections.node("BACKBONE_3D", {"NAME": "PcdetExt", "CONFIG": lion}) == found
    dsvt = published(shared, "dsvt", "pipeline_center_b2")["BACKBONE_3D"] | {"NAME": "DSVT"}
    assert sections.node("BACKBONE_3D", {"NAME": "PcdetExt", "CONFIG": dsvt})["name"] == "DSVT"
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE_3D\.CONFIG: .* a grid \(z, y, x\) of .* \[16, 100, 100\]"):
        backbone(dsvt)
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE_3D: .* voxels with channels .* makes 7"):
        backbone({}, 7, lion)
    scatter = published(shared, "scatterformer", "detector_center")
    section = scatter["BACKBONE_3D"] | {"NAME": "ScatterFormer"}
    assert sections.node("BACKBONE_3D", section)["name"] == "ScatterFormer"
    flat = scatter["BACKBONE_2D"] | {"NAME": "CascadeDEDBackbone"}
    assert sections.node("BACKBONE_2D", flat)["name"] == "CascadeDEDBackbone"
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE_3D: MODEL\.BACKBONE_3D\.WINDOWS: the setting is not known"):
        sections.node("BACKBONE_3D", lion | {"WINDOWS": 3})


def test_configurations_build_on_others_as_theirs_do(tmp_path: Path) -> None:
    base = tmp_path / "cfgs" / "dataset_configs" / "kitti.yaml"
    base.parent.mkdir(parents=True)
    base.write_text("DATASET: KittiDataset\nDATA_PROCESSOR: [1, 2]\nINFO_PATH: {train: [a], test: [b]}\n")
    own = tmp_path / "cfgs" / "models" / "lion.yaml"
    own.parent.mkdir()
    text = {"DATA_CONFIG": {"_BASE_CONFIG_": "cfgs/dataset_configs/kitti.yaml", "INFO_PATH": {"train": ["c"]}}}
    own.write_text(yaml.safe_dump(text | {"DATA_PROCESSOR": [3]}))
    found = weights.read_config(own)
    assert found["DATA_CONFIG"]["INFO_PATH"] == {"train": ["c"], "test": ["b"]}
    assert found["DATA_CONFIG"]["DATASET"] == "KittiDataset"
    base.unlink()
    with pytest.raises(ConfigError, match=r"lion\.yaml: _BASE_CONFIG_ cfgs/dataset_configs/kitti\.yaml is neither in"):
        weights.read_config(own)


def test_a_configuration_that_builds_on_itself_is_refused(tmp_path: Path) -> None:
    for name, base in (("a.yaml", "b.yaml"), ("b.yaml", "a.yaml"), ("c.yaml", "c.yaml")):
        (tmp_path / name).write_text(f"DATA_CONFIG: {{_BASE_CONFIG_: {base}}}\n")
    with pytest.raises(
        ConfigError, match=r"a\.yaml: _BASE_CONFIG_: a\.yaml builds on b\.yaml builds on a\.yaml, .*circle"
    ):
        weights.read_config(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"c\.yaml builds on c\.yaml"):
        weights.read_config(tmp_path / "c.yaml")
    (tmp_path / "deep.yaml").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"deep\.yaml: "):
        weights.read_config(tmp_path / "deep.yaml")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("DATA_CONFIG",), "^DATA_CONFIG is missing"),
        (("MODEL",), "^MODEL is missing"),
        (("CLASS_NAMES",), "^CLASS_NAMES is missing"),
        (("MODEL", "VFE"), r"^MODEL\.VFE is missing"),
        (("MODEL", "DENSE_HEAD"), r"^MODEL\.DENSE_HEAD is missing"),
        (("DATA_CONFIG", "DATA_PROCESSOR"), r"^DATA_CONFIG\.DATA_PROCESSOR is missing"),
        (("DATA_CONFIG", "POINT_CLOUD_RANGE"), "^DATA_CONFIG: POINT_CLOUD_RANGE is missing"),
        (("DATA_CONFIG", "POINT_FEATURE_ENCODING"), "^DATA_CONFIG: POINT_FEATURE_ENCODING is missing"),
    ],
)
def test_a_missing_section_is_named(path: tuple[str, ...], message: str) -> None:
    cfg = copy.deepcopy(configs.with_backbone("kitti", small_backbones.FLATFORMER, configs.FLAT))
    weights.library_settings(cfg)
    inner = cfg
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(ConfigError, match=message):
        weights.library_settings(cfg)


def test_parts_of_models_that_have_no_counterpart_are_refused() -> None:
    cfg = configs.with_backbone("kitti", small_backbones.FLATFORMER, configs.FLAT)
    cfg["MODEL"]["IMAGE_BACKBONE"] = {"NAME": "SwinTransformer"}
    with pytest.raises(ConfigError, match=r"MODEL\.IMAGE_BACKBONE: has no counterpart"):
        weights.library_settings(cfg)


def test_detectors_of_two_stages_cannot_be_converted() -> None:
    cfg = configs.with_backbone("kitti", small_backbones.FLATFORMER, configs.FLAT)
    cfg["MODEL"]["ROI_HEAD"] = {"NAME": "SECONDHead"}
    with pytest.raises(ConfigError, match=r"MODEL\.ROI_HEAD: detectors of two stages"):
        weights.library_settings(cfg)


def test_there_are_heads_that_read_maps() -> None:
    assert {"AnchorHead", "CenterHead", "TransFusionHead"} <= set(HEADS.names())
