"""The settings of PointPillars for KITTI (Lang et al., CVPR 2019) as OpenPCDet publishes them, for each library.

Grid, pillars, channels, layers and anchors are OpenPCDet's. What follows the network is what all libraries can do:
anchors with a score above 0.1, at most the 4096 best; rotated suppression at an overlap of 0.01 within each class;
the 500 best boxes. (OpenPCDet suppresses across classes. Open3D-ML keeps more than 500, where there are more.)
"""

from __future__ import annotations

from typing import Any

CLASSES = ("Car", "Pedestrian", "Cyclist")
RANGE = [0, -39.68, -3, 69.12, 39.68, 1]
VOXEL_SIZE = [0.16, 0.16, 4]
GRID = [496, 432]  # rows (y), columns (x)
SIZES = [[3.9, 1.6, 1.56], [0.8, 0.6, 1.73], [1.76, 0.6, 1.73]]  # along x, y and z
BOTTOMS = (-1.78, -0.6, -0.6)
ROTATIONS = [0, 1.57]
OVERLAPS = ([0.45, 0.6], [0.35, 0.5], [0.35, 0.5])  # of background at most, of objects at least
POINTS, PILLARS = 32, [16000, 40000]  # per pillar; in training and in testing
DIRECTION_OFFSET = 0.78539
SCORE, CANDIDATES, OVERLAP, BOXES = 0.1, 4096, 0.01, 500
BLOCKS = {"layer_nums": [3, 5, 5], "layer_strides": [2, 2, 2], "out_channels": [64, 128, 256]}
UPSAMPLING = {"upsample_strides": [1, 2, 4], "out_channels": [128, 128, 128]}
FEATURES = 384


def anchor_ranges() -> list[list[float]]:
    """Of each class (x, y, z, x, y, z): the centres of its first and its last anchor."""
    return [[*RANGE[:2], bottom, *RANGE[3:5], bottom] for bottom in BOTTOMS]


def mmdetection3d() -> dict[str, Any]:
    """The configuration for mmdetection3d 1.x, which also tells the names of the parameters."""
    return {
        "model": {
            "type": "VoxelNet",
            "data_preprocessor": {
                "type": "Det3DDataPreprocessor",
                "voxel": True,
                "voxel_layer": {
                    "max_num_points": POINTS,
                    "point_cloud_range": RANGE,
                    "voxel_size": VOXEL_SIZE,
                    "max_voxels": PILLARS,
                },
            },
            "voxel_encoder": {
                "type": "PillarFeatureNet",
                "in_channels": 4,
                "feat_channels": [64],
                "with_distance": False,
                "legacy": False,
                "voxel_size": VOXEL_SIZE,
                "point_cloud_range": RANGE,
            },
            "middle_encoder": {"type": "PointPillarsScatter", "in_channels": 64, "output_shape": GRID},
            "backbone": {"type": "SECOND", "in_channels": 64, **BLOCKS},
            "neck": {"type": "SECONDFPN", "in_channels": BLOCKS["out_channels"], **UPSAMPLING},
            "bbox_head": _mmdetection3d_head(),
            "train_cfg": {"assigner": [_mmdetection3d_assigner(*pair) for pair in OVERLAPS]},
            "test_cfg": {
                "use_rotate_nms": True,
                "nms_across_levels": False,
                "nms_thr": OVERLAP,
                "score_thr": SCORE,
                "nms_pre": CANDIDATES,
                "max_num": BOXES,
            },
        },
        "test_dataloader": {"dataset": {"type": "KittiDataset", "metainfo": {"classes": list(CLASSES)}}},
    }


def _mmdetection3d_head() -> dict[str, Any]:
    return {
        "type": "Anchor3DHead",
        "num_classes": len(CLASSES),
        "in_channels": FEATURES,
        "feat_channels": FEATURES,
        "use_direction_classifier": True,
        "dir_offset": DIRECTION_OFFSET,
        "dir_limit_offset": 1,
        "anchor_generator": {
            "type": "Anchor3DRangeGenerator",
            "ranges": anchor_ranges(),
            "sizes": SIZES,
            "rotations": ROTATIONS,
            "reshape_out": False,
        },
        "diff_rad_by_sin": True,
        "bbox_coder": {"type": "DeltaXYZWLHRBBoxCoder"},
        "loss_cls": {"type": "mmdet.FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
        "loss_bbox": {"type": "mmdet.SmoothL1Loss", "beta": 1 / 9, "loss_weight": 2.0},
        "loss_dir": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.2},
    }


def _mmdetection3d_assigner(background: float, objects: float) -> dict[str, Any]:
    return {
        "type": "Max3DIoUAssigner",
        "iou_calculator": {"type": "mmdet3d.BboxOverlapsNearest3D"},
        "pos_iou_thr": objects,
        "neg_iou_thr": background,
        "min_pos_iou": background,
        "ignore_iof_thr": -1,
    }


def open3d_ml() -> dict[str, Any]:
    """The arguments of Open3D-ML's PointPillars."""
    return {
        "point_cloud_range": RANGE,
        "classes": list(CLASSES),
        "voxelize": {"max_num_points": POINTS, "voxel_size": VOXEL_SIZE, "max_voxels": PILLARS},
        "voxel_encoder": {"in_channels": 4, "feat_channels": [64], "voxel_size": VOXEL_SIZE},
        "scatter": {"in_channels": 64, "output_shape": GRID},
        "backbone": {"in_channels": 64, **BLOCKS},
        "neck": {"in_channels": BLOCKS["out_channels"], **UPSAMPLING},
        "head": {
            "in_channels": FEATURES,
            "feat_channels": FEATURES,
            "nms_pre": CANDIDATES,
            "score_thr": SCORE,
            "dir_offset": DIRECTION_OFFSET,
            "ranges": anchor_ranges(),
            "sizes": SIZES,
            "rotations": ROTATIONS,
            "iou_thr": list(OVERLAPS),
        },
        "augment": {},
    }
