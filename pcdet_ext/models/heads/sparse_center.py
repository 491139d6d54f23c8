"""The sparse center head of SAFDNet (Zhang et al., CVPR 2024) and LION on Argoverse 2: no dense map anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.heads.sites import Layers, SiteHead
from pcdet_ext.models.layers.sparse_conv import Engine
from pcdet_ext.models.targets.sites import SiteAssigner
from pcdet_ext.ranges import check_positive, check_range


@HEADS.register
class SparseCenterHead(SiteHead):
    """Objects as peaks of a heatmap over the occupied cells of a plane, their boxes read off at the peaks.

    An object's heatmap has its peak at the occupied cell nearest to the one that its centre is in, and its box is
    learnt there; several cells at the same distance are peaks alike. State-dict keys are those of the published head.

    Args:
        in_channels: of the sites, and width of the branches.
        classes: names.
        point_cloud_range: (x, y, z minimum, then maximum) in metres.
        voxel_size: (x, y, z) in metres.
        stride: voxels per cell.
        tasks: groups of class names with a branch set each; default: one group of all classes.
        branches: convolutions of each branch by name: "center", "center_z", "dim", "rot", and optionally "iou". This
            head has no velocity.
        heatmap_convs: convolutions of the heatmap.
        conv_bias: whether convolutions in front of a norm have one.
        norm_eps: of the norms.
        norm_momentum: of the norms.
        dilate: 3x3 convolutions also make sites of the neighbours of sites (SAFDNet).
        gaussian_overlap: see `gaussian_radius`.
        min_radius: of the Gaussians, in cells.
        max_objects: of a frame and task that are learnt from; None for all.
        swapped_limits: published models hold centres inside of the map by its number of rows in x, and of columns in y,
            which differs on maps that are not square.
        heatmaps_by_frame: published models lay the heatmaps of the frames one after the other beside sites whose order
            depends on spconv; where that is not frame after frame, a site learns the values of another one.
        class_weight: of the loss of heatmaps.
        box_weight: of the loss of boxes.
        iou_weight: of the loss of predicted overlaps.
        code_weights: factors on the losses of the 8 numbers of a box code.
        score_threshold: detections score more.
        max_candidates: sites looked at in each task.
        center_range: limits of box centres (x, y, z minimum, then maximum; closed).
        iou_rectifier: share of the predicted IoU in the score (one number, or one per class).
        nms: fields of `NMSConfig`; one suppression per task, or with `per_class` one per class.
        engine: see `sparse_conv`.

    Raises:
        ValueError: settings that contradict each other.
    """

    heatmap_name = "heatmap"

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        stride: float,
        tasks: Sequence[Sequence[str]] | None = None,
        branches: Mapping[str, int] | None = None,
        heatmap_convs: int = 2,
        conv_bias: bool = False,
        norm_eps: float = 1e-3,
        norm_momentum: float = 0.01,
        dilate: bool = False,
        gaussian_overlap: float = 0.1,
        min_radius: int = 2,
        max_objects: int | None = None,
        swapped_limits: bool = False,
        heatmaps_by_frame: bool = False,
        class_weight: float = 1.0,
        box_weight: float = 0.25,
        iou_weight: float = 1.0,
        code_weights: Sequence[float] | None = None,
        score_threshold: float = 0.1,
        max_candidates: int = 500,
        center_range: Sequence[float] | None = None,
        iou_rectifier: float | Sequence[float] | None = None,
        nms: Mapping[str, Any] | None = None,
        engine: Engine = "auto",
    ) -> None:
        check_positive(1, gaussian_overlap=gaussian_overlap)
        check_range(1, max_objects=max_objects)
        if "vel" in (branches or {}):
            raise ValueError("branches: this head has no velocity ('vel')")
        super().__init__(
            Layers(in_channels, conv_bias, norm_eps, norm_momentum, 3, dilate, engine),
            classes,
            point_cloud_range,
            voxel_size,
            stride,
            tasks,
            branches,
            heatmap_convs,
            class_weight,
            box_weight,
            iou_weight,
            code_weights,
            score_threshold,
            max_candidates,
            center_range,
            iou_rectifier,
            nms,
        )
        self.assigner = SiteAssigner(
            self.origin,
            self.cell,
            gaussian_overlap,
            min_radius,
            max_objects,
            swapped_limits=swapped_limits,
            by_frame=heatmaps_by_frame,
        )
