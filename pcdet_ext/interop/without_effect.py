"""Published settings that change nothing here, and those of which one value is known.

Keys are the ends of paths in a configuration, for example "TARGET_ASSIGNER_CONFIG.NAME"; `*` stands for any text.
"""

from __future__ import annotations

from typing import Any

TRAINING = "how the published model was trained, which the training section of our configurations says"
DATA = "how the data was prepared"
DERIVED = "follows from other settings, which are read"
EVALUATION = "how detections were scored"
SHAPES = "sizes of the input of a numeric case"
MADE = "how the parameters and inputs of a numeric case were made, which it gives"
IN_CODE = "published heads of queries do not read it: their suppression stands in the code"

# Settings without effect here whatever their value is, and why.
WITHOUT_EFFECT: dict[str, str] = {
    # training, data and scoring
    "OPTIMIZATION*": TRAINING,
    "optimiz*": TRAINING,
    "HOOK*": TRAINING,
    "hook*": TRAINING,
    "augmentor*": TRAINING,
    "fp16*": TRAINING,
    "lr_config*": TRAINING,
    "max_epochs": TRAINING,
    "samples_per_gpu": TRAINING,
    "load_interval": TRAINING,
    "repeat": TRAINING,
    "separate_head.init_bias": TRAINING,
    "dataset": DATA,
    "extra_sweeps*": DATA,
    "sweeps": DATA,
    "SAMPLED_INTERVAL*": DATA,
    "point_features*": DATA,
    "EVAL_METRIC": EVALUATION,
    "RECALL_THRESH_LIST": EVALUATION,
    # what other settings say already
    "grid_size*": DERIVED,
    "GRID_XYZ": DERIVED,
    "train_cfg.grid_size": DERIVED,
    "MAP_TO_BEV.INPUT_SHAPE": DERIVED,
    "MAP_TO_BEV.NUM_BEV_FEATURES": DERIVED,
    "output_shape": DERIVED,
    "NUM_CLASSES": DERIVED,
    "num_class": DERIVED,
    "in_channels": DERIVED,
    "code_size": DERIVED,
    "bbox_coder.pc_range": DERIVED,
    "bbox_coder.voxel_size": DERIVED,
    "bbox_coder.type": DERIVED,
    "voxel_encoder.point_cloud_range": DERIVED,
    "voxel_encoder.voxel_size": DERIVED,
    "train_cfg.point_cloud_range": DERIVED,
    "train_cfg.voxel_size": DERIVED,
    "train_cfg.out_size_factor": DERIVED,
    "test_cfg.out_size_factor": DERIVED,
    "test_cfg.voxel_size": DERIVED,
    "test_cfg.pc_range": DERIVED,
    "test_cfg.max_per_img": "published heads limit boxes by post_max_size",
    "test_cfg.min_radius": "counts only with nms_type circle, which is refused",
    "test_cfg.nms": "what a numeric case says of itself",
    "voxel_layer.voxel_size": DERIVED,
    "voxel_layer.point_cloud_range": DERIVED,
    "separate_head.type": DERIVED,
    "norm_cfg.type": "kinds of batch norm, which are the same outside of distributed training",
    "voxel_processor.NAME": DERIVED,
    "voxel_processor.VOXEL_SIZE": DERIVED,
    "voxel_processor.MAX_*": "encoders of dynamic voxels have no limits",
    "model.NAME": "the sections say what the detector is made of",
    "MODEL.NAME": "the sections say what the detector is made of",
    "model_cfg.NAME": "the sections say what the detector is made of",
    # of heads
    "TARGET_ASSIGNER_CONFIG.NORM_BY_NUM_EXAMPLES": "changes weights of targets that no published loss reads",
    "TARGET_ASSIGNER_CONFIG.SAMPLE_SIZE": "counts only with POS_FRACTION, which is refused",
    "TARGET_ASSIGNER_CONFIG.NUM_MAX_OBJS": "our heads have room for every object",
    "TARGET_ASSIGNER_CONFIG.DENSE_REG": "published heads do not read it",
    "train_cfg.max_objs": "our heads have room for every object",
    "train_cfg.dense_reg": "published heads do not read it",
    "NMS_CONFIG.NMS_TYPE": IN_CODE,
    "NMS_CONFIG.NMS_THRESH": IN_CODE,
    "NMS_CONFIG.NMS_PRE_MAXSIZE": IN_CODE,
    "NMS_CONFIG.NMS_POST_MAXSIZE": IN_CODE,
    "NMS_CONFIG.SCORE_THRES": IN_CODE,
    "NMS_CONFIG.NMS_NAME": IN_CODE,
    "POST_PROCESSING.SCORE_THRESH": "heads with a threshold of their own do not read the detector's",
    "PREDICT_BOXES_WHEN_TRAINING": "only for detectors of two stages",
    "DIFF_SCALE": "counts only with DIFFUSION",
    "diff_scale": "counts only with diffusion",
    # what numeric cases say besides
    "batch_size": SHAPES,
    "group_size": SHAPES,
    "num_groups": SHAPES,
    "voxels_per_sample*": SHAPES,
    "sparse_shape_*": SHAPES,
    "spatial_shape": SHAPES,
    "indice_key": SHAPES,
    "pillar_size": SHAPES,
    "note": SHAPES,
    "bf16": MADE,
    "cls_bias_shift": MADE,
    "cls_gain": MADE,
    "cone_shift": MADE,
    "dim_bias": MADE,
    "gain": MADE,
    "grad_ins": MADE,
    "grad_params": MADE,
    "hm_bias_shift": MADE,
    "hm_class_shift": MADE,
    "hm_gain": MADE,
    "save_features": MADE,
    "save_objs": MADE,
    "variant": MADE,
}

# Settings that nothing reads because this library has one value only, and that value.
ONLY: dict[str, tuple[Any, ...]] = {
    "CLASS_AGNOSTIC": (False,),
    "USE_MULTIHEAD": (False,),
    "DENSE_HEAD.ACTIVATION": ("relu",),
    "model_cfg.ACTIVATION": ("relu",),
    "LOSS_CONFIG.LOSS_CLS.use_sigmoid": (True,),
    "LOSS_CONFIG.LOSS_CLS.alpha": (0.25,),
    "LOSS_CONFIG.LOSS_CLS.gamma": (2,),
    "HUNGARIAN_ASSIGNER.cls_cost.alpha": (0.25,),
    "HUNGARIAN_ASSIGNER.cls_cost.gamma": (2,),
    "TARGET_ASSIGNER_CONFIG.NAME": ("AxisAlignedTargetAssigner",),
    "POST_PROCESSING.OUTPUT_RAW_SCORE": (False,),  # heads of anchors read it
    "MAP_TO_BEV.NAME": ("HeightCompression", "PointPillarScatter", "PointPillarScatter3d"),
    "BACKBONE_3D.INPUT_TYPE": ("MLP",),
    "model.type": ("DynamicCenterPoint",),
    "voxel_layer.max_num_points": (-1,),
    "voxel_layer.max_voxels": ([-1, -1], (-1, -1)),
    "voxel_encoder.type": ("DynamicVFE",),
    "middle_encoder.type": ("FlatFormer",),
    "backbone.type": ("SECOND",),
    "neck.type": ("SECONDFPN",),
    "bbox_head.type": ("CenterHead",),
    "test_cfg.max_pool_nms": (False,),
    "conv_cfg.type": ("Conv2d",),
    "conv_cfg.bias": (False,),
    "loss_cls.type": ("GaussianFocalLoss",),
    "loss_cls.reduction": ("mean",),
    "loss_bbox.type": ("L1Loss",),
    "loss_bbox.reduction": ("mean",),
}
