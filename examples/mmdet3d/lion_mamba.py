"""LION with Mamba as the backbone of a detector in mmdetection3d: small, for KITTI data on a CPU. See README.md."""

custom_imports = dict(imports=["pcdet_ext.plugins.mmdet3d"])
default_scope = "mmdet3d"

# Data, as mmdetection3d's KITTI configurations have them
data_root = "data/kitti/"
class_names = ["Pedestrian", "Cyclist", "Car"]
point_cloud_range = [0, -20, -3, 40, 20, 1]
voxel_size = [0.4, 0.4, 0.25]
metainfo = dict(classes=class_names)
load_points = dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=4, use_dim=4)

train_pipeline = [
    load_points,
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(type="RandomFlip3D", flip_ratio_bev_horizontal=0.5),
    dict(type="GlobalRotScaleTrans", rot_range=[-0.4, 0.4], scale_ratio_range=[0.95, 1.05]),
    dict(type="PointsRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="ObjectRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="PointShuffle"),
    dict(type="Pack3DDetInputs", keys=["points", "gt_bboxes_3d", "gt_labels_3d"]),
]
test_pipeline = [
    load_points,
    dict(type="PointsRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="Pack3DDetInputs", keys=["points"]),
]
frames = dict(
    type="KittiDataset",
    data_root=data_root,
    data_prefix=dict(pts="training/velodyne_reduced"),
    modality=dict(use_lidar=True, use_camera=False),
    metainfo=metainfo,
    box_type_3d="LiDAR",
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(ann_file="kitti_infos_train.pkl", pipeline=train_pipeline, test_mode=False, **frames),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(ann_file="kitti_infos_val.pkl", pipeline=test_pipeline, test_mode=True, **frames),
)
val_dataloader = test_dataloader
test_evaluator = dict(type="KittiMetric", ann_file=data_root + "kitti_infos_val.pkl", metric="bbox")
val_evaluator = test_evaluator

# Sizes that are not here (channels, sparse_shape, voxel size and range of our parts) follow from the other sections
assigner = dict(
    type="Max3DIoUAssigner",
    iou_calculator=dict(type="mmdet3d.BboxOverlapsNearest3D"),
    pos_iou_thr=0.5,
    neg_iou_thr=0.35,
    min_pos_iou=0.35,
    ignore_iof_thr=-1,
)
model = dict(
    type="DynamicVoxelNet",
    data_preprocessor=dict(
        type="Det3DDataPreprocessor",
        voxel=True,
        voxel_type="dynamic",
        voxel_layer=dict(
            max_num_points=-1, point_cloud_range=point_cloud_range, voxel_size=voxel_size, max_voxels=(-1, -1)
        ),
    ),
    voxel_encoder=dict(
        type="PcdetExtVoxelEncoder", in_channels=4, config=dict(name="DynamicVoxelVFE", num_filters=[32, 32])
    ),
    middle_encoder=dict(
        type="PcdetExtMiddleEncoder",
        config=dict(
            name="LION",
            mixer=dict(name="Mamba", d_state=8),
            windows=[[16, 13, 13]],
            group_sizes=[256],
            scales=[[[2, 2, 2]]],
            out_window=[8, 13, 13],
            out_group_size=128,
        ),
    ),
    backbone=dict(type="SECOND", layer_nums=[2, 2], layer_strides=[1, 2], out_channels=[32, 64]),
    neck=dict(type="SECONDFPN", in_channels=[32, 64], upsample_strides=[1, 2], out_channels=[32, 32]),
    bbox_head=dict(
        type="Anchor3DHead",
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        use_direction_classifier=True,
        assign_per_class=True,
        anchor_generator=dict(
            type="AlignedAnchor3DRangeGenerator",
            ranges=[[0, -20, z, 40, 20, z] for z in (-0.6, -0.6, -1.78)],
            sizes=[[0.8, 0.6, 1.73], [1.76, 0.6, 1.73], [3.9, 1.6, 1.56]],
            rotations=[0, 1.57],
            reshape_out=False,
        ),
        diff_rad_by_sin=True,
        dir_offset=0.7854,
        bbox_coder=dict(type="DeltaXYZWLHRBBoxCoder"),
        loss_cls=dict(type="mmdet.FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="mmdet.SmoothL1Loss", beta=1.0 / 9.0, loss_weight=2.0),
        loss_dir=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=False, loss_weight=0.2),
    ),
    train_cfg=dict(
        assigner=[assigner, assigner, dict(assigner, pos_iou_thr=0.6, neg_iou_thr=0.45, min_pos_iou=0.45)],
        allowed_border=0,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        use_rotate_nms=True,
        nms_across_levels=False,
        nms_thr=0.1,
        score_thr=0.05,
        min_bbox_size=0,
        nms_pre=100,
        max_num=50,
    ),
)

# Training
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=2)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.002, weight_decay=0.01), clip_grad=dict(max_norm=10)
)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=2, by_epoch=True, convert_to_iter_based=True)]
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=1),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend="gloo"))
log_level = "INFO"
