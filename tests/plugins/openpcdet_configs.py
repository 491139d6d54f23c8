"""Small OpenPCDet configurations for tests, as the mappings that their YAML files hold."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]
CLASSES = ["Car", "Pedestrian", "Cyclist"]
SIZES = {"Car": [3.9, 1.6, 1.56], "Pedestrian": [0.8, 0.6, 1.73], "Cyclist": [1.76, 0.6, 1.73]}
HEIGHTS = {"Car": -1.78, "Pedestrian": -0.6, "Cyclist": -0.6}
RANGE = [0, -20, -3, 40, 20, 1]
FLAT = [0.4, 0.4, 4]  # metres of a voxel: a pillar
CUBIC = [0.4, 0.4, 0.25]

MIXERS: dict[str, Config] = {
    "Mamba": {"name": "Mamba", "d_state": 4},
    "RetNet": {"name": "RetNet", "num_heads": 2},
    "RWKV": {"name": "RWKV"},
    "xLSTM": {"name": "XLSTM"},
    "TTT": {"name": "TTT", "num_heads": 2},
}


def dataset(folder: str, voxel_size: list[float], hard: bool, augment: list[Config] | None = None) -> Config:
    """DATA_CONFIG of a KITTI folder."""
    voxelize: Config = {"NAME": "calculate_grid_size", "VOXEL_SIZE": voxel_size}
    if hard:
        voxelize = {
            "NAME": "transform_points_to_voxels",
            "VOXEL_SIZE": voxel_size,
            "MAX_POINTS_PER_VOXEL": 5,
            "MAX_NUMBER_OF_VOXELS": {"train": 16000, "test": 16000},
        }
    return {
        "DATASET": "KittiDataset",
        "DATA_PATH": folder,
        "POINT_CLOUD_RANGE": RANGE,
        "DATA_SPLIT": {"train": "train", "test": "val"},
        "INFO_PATH": {"train": ["kitti_infos_train.pkl"], "test": ["kitti_infos_val.pkl"]},
        "GET_ITEM_LIST": ["points"],
        "FOV_POINTS_ONLY": True,
        "DATA_AUGMENTOR": {"DISABLE_AUG_LIST": ["placeholder"], "AUG_CONFIG_LIST": augment or []},
        "POINT_FEATURE_ENCODING": {
            "encoding_type": "absolute_coordinates_encoding",
            "used_feature_list": ["x", "y", "z", "intensity"],
            "src_feature_list": ["x", "y", "z", "intensity"],
        },
        "DATA_PROCESSOR": [{"NAME": "mask_points_and_boxes_outside_range", "REMOVE_OUTSIDE_BOXES": True}, voxelize],
    }


SAMPLING: Config = {
    "NAME": "gt_sampling",
    "USE_ROAD_PLANE": False,
    "DB_INFO_PATH": ["kitti_dbinfos_train.pkl"],
    "PREPARE": {"filter_by_min_points": ["Car:5"], "filter_by_difficulty": [-1]},
    "SAMPLE_GROUPS": ["Car:8"],
    "NUM_POINT_FEATURES": 4,
    "DATABASE_WITH_FAKELIDAR": False,
    "REMOVE_EXTRA_WIDTH": [0.0, 0.0, 0.0],
    "LIMIT_WHOLE_SCENE": True,
}


def bev(strides: list[int]) -> Config:
    """BACKBONE_2D, narrow."""
    return {
        "NAME": "BaseBEVBackbone",
        "LAYER_NUMS": [1, 1],
        "LAYER_STRIDES": strides,
        "NUM_FILTERS": [32, 32],
        "UPSAMPLE_STRIDES": [1, 2],
        "NUM_UPSAMPLE_FILTERS": [32, 32],
    }


def anchor_head(stride: int) -> Config:
    """DENSE_HEAD of PointPillars and SECOND."""
    anchors = [
        {
            "class_name": name,
            "anchor_sizes": [SIZES[name]],
            "anchor_rotations": [0, 1.57],
            "anchor_bottom_heights": [HEIGHTS[name]],
            "align_center": False,
            "feature_map_stride": stride,
            "matched_threshold": 0.6,
            "unmatched_threshold": 0.45,
        }
        for name in CLASSES
    ]
    weights = {"cls_weight": 1.0, "loc_weight": 2.0, "dir_weight": 0.2, "code_weights": [1.0] * 7}
    return {
        "NAME": "AnchorHeadSingle",
        "CLASS_AGNOSTIC": False,
        "USE_DIRECTION_CLASSIFIER": True,
        "DIR_OFFSET": 0.78539,
        "DIR_LIMIT_OFFSET": 0.0,
        "NUM_DIR_BINS": 2,
        "ANCHOR_GENERATOR_CONFIG": anchors,
        "TARGET_ASSIGNER_CONFIG": {
            "NAME": "AxisAlignedTargetAssigner",
            "POS_FRACTION": -1.0,
            "SAMPLE_SIZE": 512,
            "NORM_BY_NUM_EXAMPLES": False,
            "MATCH_HEIGHT": False,
            "BOX_CODER": "ResidualCoder",
        },
        "LOSS_CONFIG": {"LOSS_WEIGHTS": weights},
    }


def center_head(stride: int) -> Config:
    """DENSE_HEAD of CenterPoint."""
    return {
        "NAME": "CenterHead",
        "CLASS_AGNOSTIC": False,
        "CLASS_NAMES_EACH_HEAD": [CLASSES],
        "SHARED_CONV_CHANNEL": 32,
        "USE_BIAS_BEFORE_NORM": True,
        "NUM_HM_CONV": 2,
        "SEPARATE_HEAD_CFG": {
            "HEAD_ORDER": ["center", "center_z", "dim", "rot"],
            "HEAD_DICT": {
                "center": {"out_channels": 2, "num_conv": 2},
                "center_z": {"out_channels": 1, "num_conv": 2},
                "dim": {"out_channels": 3, "num_conv": 2},
                "rot": {"out_channels": 2, "num_conv": 2},
            },
        },
        "TARGET_ASSIGNER_CONFIG": {
            "FEATURE_MAP_STRIDE": stride,
            "NUM_MAX_OBJS": 100,
            "GAUSSIAN_OVERLAP": 0.1,
            "MIN_RADIUS": 2,
        },
        "LOSS_CONFIG": {"LOSS_WEIGHTS": {"cls_weight": 1.0, "loc_weight": 2.0, "code_weights": [1.0] * 8}},
        "POST_PROCESSING": {
            "SCORE_THRESH": 0.02,
            "POST_CENTER_LIMIT_RANGE": [0, -20, -4, 40, 20, 2],
            "MAX_OBJ_PER_SAMPLE": 50,
            "NMS_CONFIG": {
                "NMS_TYPE": "nms_gpu",
                "NMS_THRESH": 0.7,
                "NMS_PRE_MAXSIZE": 500,
                "NMS_POST_MAXSIZE": 50,
            },
        },
    }


POST_PROCESSING: Config = {
    "RECALL_THRESH_LIST": [0.3, 0.5, 0.7],
    "SCORE_THRESH": 0.002,
    "OUTPUT_RAW_SCORE": False,
    "EVAL_METRIC": "kitti",
    "NMS_CONFIG": {
        "MULTI_CLASSES_NMS": False,
        "NMS_TYPE": "nms_gpu",
        "NMS_THRESH": 0.1,
        "NMS_PRE_MAXSIZE": 200,
        "NMS_POST_MAXSIZE": 50,
    },
}
OPTIMIZATION: Config = {
    "BATCH_SIZE_PER_GPU": 2,
    "NUM_EPOCHS": 1,
    "OPTIMIZER": "adam_onecycle",
    "LR": 0.003,
    "WEIGHT_DECAY": 0.01,
    "MOMENTUM": 0.9,
    "MOMS": [0.95, 0.85],
    "PCT_START": 0.4,
    "DIV_FACTOR": 10,
    "DECAY_STEP_LIST": [35, 45],
    "LR_DECAY": 0.1,
    "LR_CLIP": 0.0000001,
    "LR_WARMUP": False,
    "WARMUP_EPOCH": 1,
    "GRAD_NORM_CLIP": 10,
}


def detector(data: Config, model: Config) -> Config:
    """The whole configuration of a detector."""
    return {
        "CLASS_NAMES": CLASSES,
        "DATA_CONFIG": data,
        "MODEL": model | {"POST_PROCESSING": POST_PROCESSING},
        "OPTIMIZATION": OPTIMIZATION,
    }


def pointpillars(folder: str) -> Config:
    """Stock PointPillars, with ground truth sampling."""
    model = {
        "NAME": "PointPillar",
        "VFE": {
            "NAME": "PillarVFE",
            "WITH_DISTANCE": False,
            "USE_ABSLOTE_XYZ": True,
            "USE_NORM": True,
            "NUM_FILTERS": [32],
        },
        "MAP_TO_BEV": {"NAME": "PointPillarScatter", "NUM_BEV_FEATURES": 32},
        "BACKBONE_2D": bev([2, 2]),
        "DENSE_HEAD": anchor_head(2),
    }
    return detector(dataset(folder, FLAT, True, [SAMPLING]), model)


def second(folder: str) -> Config:
    """Stock SECOND."""
    model = {
        "NAME": "SECONDNet",
        "VFE": {"NAME": "MeanVFE"},
        "BACKBONE_3D": {"NAME": "VoxelBackBone8x"},
        "MAP_TO_BEV": {"NAME": "HeightCompression", "NUM_BEV_FEATURES": 256},
        "BACKBONE_2D": bev([1, 2]),
        "DENSE_HEAD": anchor_head(8),
    }
    return detector(dataset(folder, [0.1, 0.1, 0.1], True), model)


def centerpoint(folder: str) -> Config:
    """Stock CenterPoint of pillars, whose encoder needs torch_scatter."""
    model = {
        "NAME": "CenterPoint",
        "VFE": {
            "NAME": "DynPillarVFE",
            "WITH_DISTANCE": False,
            "USE_ABSLOTE_XYZ": True,
            "USE_NORM": True,
            "NUM_FILTERS": [32, 32],
        },
        "MAP_TO_BEV": {"NAME": "PointPillarScatter", "NUM_BEV_FEATURES": 32},
        "BACKBONE_2D": bev([2, 2]),
        "DENSE_HEAD": center_head(2),
    }
    return detector(dataset(folder, FLAT, False), model)


def with_backbone(folder: str, backbone: Config, voxel_size: list[float], stride: int = 1) -> Config:
    """CenterPoint with our encoder and one of our 3-D backbones, whose channels and map the plugin derives."""
    encoder = "DynamicPillarVFE" if voxel_size == FLAT else "DynamicVoxelVFE"
    section = backbone if "NAME" in backbone else {"NAME": "PcdetExt", "CONFIG": backbone}
    model = {
        "NAME": "CenterPoint",
        "VFE": {"NAME": "PcdetExt", "CONFIG": {"name": encoder, "num_filters": [32]}},
        "BACKBONE_3D": section,
        "MAP_TO_BEV": {"NAME": "PcdetExt"},
        "BACKBONE_2D": bev([1, 2]),
        "DENSE_HEAD": center_head(stride),
    }
    return detector(dataset(folder, voxel_size, False), model)


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
