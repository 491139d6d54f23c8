"""Small mmdetection3d configurations for tests, as dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_backbones import DSVT, FLATFORMER, HOTFORMER, OCTFORMER, SCATTERFORMER, SEQUENCE

Config = dict[str, Any]
CLASSES = ["Pedestrian", "Cyclist", "Car"]
RANGE = [0, -20, -3, 40, 20, 1]
FLAT = [0.4, 0.4, 4]
CUBIC = [0.4, 0.4, 0.25]
MIXERS: dict[str, Config] = {
    "mamba": {"name": "Mamba", "d_state": 4},
    "retnet": {"name": "RetNet", "num_heads": 2},
    "rwkv": {"name": "RWKV"},
    "xlstm": {"name": "XLSTM"},
    "ttt": {"name": "TTT", "num_heads": 2},
}


def preprocessor(voxel_size: list[float], dynamic: bool) -> Config:
    """data_preprocessor with its voxel layer."""
    layer: Config = {"max_num_points": 20, "point_cloud_range": RANGE, "voxel_size": voxel_size}
    layer |= {"max_voxels": (8000, 8000)}
    if dynamic:
        layer |= {"max_num_points": -1, "max_voxels": (-1, -1)}
    kind = "dynamic" if dynamic else "hard"
    return {"type": "Det3DDataPreprocessor", "voxel": True, "voxel_type": kind, "voxel_layer": layer}


def second(in_channels: int | None, strides: list[int]) -> Config:
    """backbone and neck, narrow; without channels the plugin derives them."""
    backbone: Config = {"type": "SECOND", "layer_nums": [1, 1], "layer_strides": strides, "out_channels": [32, 32]}
    backbone |= {} if in_channels is None else {"in_channels": in_channels}
    neck = {"type": "SECONDFPN", "in_channels": [32, 32], "upsample_strides": [1, 2], "out_channels": [32, 32]}
    return {"backbone": backbone, "neck": neck}


def anchor_head() -> Config:
    """bbox_head with train_cfg and test_cfg, of PointPillars and SECOND."""
    low, high = [0, -20], [40, 20]
    assigner = {
        "type": "Max3DIoUAssigner",
        "iou_calculator": {"type": "mmdet3d.BboxOverlapsNearest3D"},
        "pos_iou_thr": 0.5,
        "neg_iou_thr": 0.35,
        "min_pos_iou": 0.35,
        "ignore_iof_thr": -1,
    }
    head = {
        "type": "Anchor3DHead",
        "num_classes": 3,
        "in_channels": 64,
        "feat_channels": 64,
        "use_direction_classifier": True,
        "assign_per_class": True,
        "anchor_generator": {
            "type": "AlignedAnchor3DRangeGenerator",
            "ranges": [[*low, z, *high, z] for z in (-0.6, -0.6, -1.78)],
            "sizes": [[0.8, 0.6, 1.73], [1.76, 0.6, 1.73], [3.9, 1.6, 1.56]],
            "rotations": [0, 1.57],
            "reshape_out": False,
        },
        "diff_rad_by_sin": True,
        "bbox_coder": {"type": "DeltaXYZWLHRBBoxCoder"},
        "loss_cls": {
            "type": "mmdet.FocalLoss",
            "use_sigmoid": True,
            "gamma": 2.0,
            "alpha": 0.25,
            "loss_weight": 1.0,
        },
        "loss_bbox": {"type": "mmdet.SmoothL1Loss", "beta": 1.0 / 9.0, "loss_weight": 2.0},
        "loss_dir": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.2},
    }
    train = {"assigner": [dict(assigner) for _ in range(3)], "allowed_border": 0, "pos_weight": -1, "debug": False}
    test = {
        "use_rotate_nms": True,
        "nms_across_levels": False,
        "nms_thr": 0.1,
        "score_thr": 0.01,
        "min_bbox_size": 0,
        "nms_pre": 100,
        "max_num": 50,
    }
    return {"bbox_head": head, "train_cfg": train, "test_cfg": test}


def pointpillars() -> Config:
    """Stock PointPillars."""
    return {
        "type": "VoxelNet",
        "data_preprocessor": preprocessor(FLAT, False),
        "voxel_encoder": {
            "type": "PillarFeatureNet",
            "in_channels": 4,
            "feat_channels": [32],
            "with_distance": False,
            "voxel_size": FLAT,
            "point_cloud_range": RANGE,
        },
        "middle_encoder": {"type": "PointPillarsScatter", "in_channels": 32, "output_shape": [100, 100]},
        **second(32, [2, 2]),
        **anchor_head(),
    }


def voxelnet() -> Config:
    """Stock SECOND."""
    return {
        "type": "VoxelNet",
        "data_preprocessor": preprocessor([0.25, 0.25, 0.1], False),
        "voxel_encoder": {"type": "HardSimpleVFE"},
        "middle_encoder": {
            "type": "SparseEncoder",
            "in_channels": 4,
            "sparse_shape": [41, 160, 160],
            "order": ("conv", "norm", "act"),
        },
        **second(256, [1, 2]),
        **anchor_head(),
    }


RESIDUAL = {
    "block_type": "basicblock",
    "encoder_channels": ((16, 16, 24), (24, 24, 32), (32, 32, 32), (32, 32)),
    "encoder_paddings": ((0, 0, 1), (0, 0, 1), (0, 0, [0, 1, 1]), (0, 0)),
    "output_channels": 32,
}


def voxelnet_residual() -> Config:
    """SECOND with the residual blocks of CenterPoint's sparse encoder."""
    found = voxelnet()
    return found | {"middle_encoder": found["middle_encoder"] | RESIDUAL, **second(64, [1, 2])}


def centerpoint() -> Config:
    """Stock CenterPoint of dynamic pillars, in whose boxes the velocity is left out of the loss."""
    head = {
        "type": "CenterHead",
        "in_channels": 64,
        "tasks": [{"num_class": 3, "class_names": CLASSES}],
        "common_heads": {"reg": (2, 2), "height": (1, 2), "dim": (3, 2), "rot": (2, 2), "vel": (2, 2)},
        "share_conv_channel": 32,
        "bbox_coder": {
            "type": "CenterPointBBoxCoder",
            "pc_range": RANGE[:2],
            "post_center_range": [0, -20, -4, 40, 20, 2],
            "max_num": 50,
            "score_threshold": 0.01,
            "out_size_factor": 2,
            "voxel_size": FLAT[:2],
            "code_size": 9,
        },
        "separate_head": {"type": "SeparateHead", "init_bias": -2.19, "final_kernel": 3},
        "loss_cls": {"type": "mmdet.GaussianFocalLoss", "reduction": "mean"},
        "loss_bbox": {"type": "mmdet.L1Loss", "reduction": "mean", "loss_weight": 0.25},
        "norm_bbox": True,
    }
    train = {
        "grid_size": [100, 100, 1],
        "voxel_size": FLAT,
        "point_cloud_range": RANGE,
        "out_size_factor": 2,
        "dense_reg": 1,
        "gaussian_overlap": 0.1,
        "max_objs": 50,
        "min_radius": 2,
        "code_weights": [1.0] * 8 + [0.2, 0.2],
    }
    test = {
        "post_center_limit_range": [0, -20, -4, 40, 20, 2],
        "max_per_img": 50,
        "max_pool_nms": False,
        "min_radius": [4, 4, 4],
        "score_threshold": 0.01,
        "pc_range": RANGE[:2],
        "out_size_factor": 2,
        "voxel_size": FLAT[:2],
        "nms_type": "rotate",
        "pre_max_size": 200,
        "post_max_size": 50,
        "nms_thr": 0.2,
    }
    parts = {f"pts_{name}": part for name, part in second(32, [2, 2]).items()}
    return {
        "type": "CenterPoint",
        "data_preprocessor": preprocessor(FLAT, False),
        "pts_voxel_encoder": pointpillars()["voxel_encoder"] | {"legacy": False},
        "pts_middle_encoder": {"type": "PointPillarsScatter", "in_channels": 32, "output_shape": (100, 100)},
        **parts,
        "pts_bbox_head": head,
        "train_cfg": {"pts": train},
        "test_cfg": {"pts": test},
    }


def with_backbone(backbone: Config, voxel_size: list[float]) -> Config:
    """A detector of dynamic voxels with our encoder and backbone, whose sizes the plugin derives."""
    encoder = "DynamicPillarVFE" if voxel_size == FLAT else "DynamicVoxelVFE"
    return {
        "type": "DynamicVoxelNet",
        "data_preprocessor": preprocessor(voxel_size, True),
        "voxel_encoder": {
            "type": "PcdetExtVoxelEncoder",
            "in_channels": 4,
            "config": {"name": encoder, "num_filters": [32]},
        },
        "middle_encoder": {"type": "PcdetExtMiddleEncoder", "config": backbone},
        **second(None, [1, 2]),
        **anchor_head(),
    }


def lion(mixer: str) -> Config:
    """A small LION with one of its five operators."""
    return {
        "name": "LION",
        "mixer": MIXERS[mixer],
        "windows": [[16, 13, 13]],
        "group_sizes": [128],
        "scales": [[[2, 2, 2]]],
        "out_window": [8, 13, 13],
        "out_group_size": 64,
    }


def ours() -> Config:
    """All parts ours, of hard pillars: encoder, backbone, 2-D backbone and head."""
    box = {"shared_channels": 32, "branch_channels": 32, "score_threshold": 0.01}
    return {
        "type": "VoxelNet",
        "data_preprocessor": preprocessor(FLAT, False),
        "voxel_encoder": {
            "type": "PcdetExtVoxelEncoder",
            "in_channels": 4,
            "config": {"name": "PillarVFE", "num_filters": [32]},
        },
        "middle_encoder": {"type": "PcdetExtMiddleEncoder", "config": FLATFORMER},
        "backbone": {
            "type": "PcdetExtBackbone",
            "config": {
                "name": "BaseBEVBackbone",
                "layer_nums": [1],
                "layer_strides": [2],
                "num_filters": [32],
                "upsample_strides": [1],
                "num_upsample_filters": [32],
            },
        },
        "bbox_head": {"type": "PcdetExtHead", "classes": CLASSES, "config": {"name": "CenterHead", **box}},
        "train_cfg": {},
        "test_cfg": {},
    }


PUBLISHED_FLATFORMER: Config = {
    "type": "FlatFormer",
    "in_channels": 32,
    "num_heads": 4,
    "num_blocks": 1,
    "activation": "gelu",
    "window_shape": (9, 9, 1),
    "sparse_shape": (100, 100, 1),
    "output_shape": (100, 100),
    "pos_temperature": 10000,
    "normalize_pos": False,
    "group_size": 64,
}


def models() -> dict[str, Config]:
    """Every model that is tried, by name."""
    found = {
        name: globals()[name]() for name in ("pointpillars", "voxelnet", "voxelnet_residual", "centerpoint", "ours")
    }
    found["flatformer"] = with_backbone(FLATFORMER, FLAT)
    found["flatformer_published"] = with_backbone({}, FLAT) | {"middle_encoder": PUBLISHED_FLATFORMER}
    found["dsvt"] = with_backbone(DSVT, FLAT)
    found["sequence"] = with_backbone(SEQUENCE, CUBIC)
    found["scatterformer"] = with_backbone(SCATTERFORMER, CUBIC)
    found["octformer"] = with_backbone(OCTFORMER, CUBIC)
    found["hotformer"] = with_backbone(HOTFORMER, CUBIC)
    for mixer in MIXERS:
        found[f"lion_{mixer}"] = with_backbone(lion(mixer), CUBIC)
    return found


def write_config(path: Path, name: str) -> Path:
    """A configuration as mmengine's Runner writes it: literals alone."""
    loader = {"dataset": {"type": "KittiDataset", "data_root": "data/kitti/", "metainfo": {"classes": CLASSES}}}
    lines = [f"model = {models()[name]!r}", f"test_dataloader = {loader!r}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
