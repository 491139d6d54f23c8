"""Losses of detection heads, element by element, so that heads choose weights and normalisers.

Every function is differentiable in its predictions and defined on empty inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.models.targets.box_coding import box_corners
from pcdet_ext.ops import iou_3d_paired


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss on logits (RetinaNet, Lin et al. 2017, eq. 5).

    Args:
        logits: of any shape.
        targets: of the same shape, in [0, 1].
        alpha: weight of positive targets; negative ones have 1 - alpha.
        gamma: how much what is right already counts less.

    Returns:
        A loss for each element.
    """
    p = logits.sigmoid()
    missed = targets * (1 - p) + (1 - targets) * p
    weight = (targets * alpha + (1 - targets) * (1 - alpha)) * missed.pow(gamma)
    return weight * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def smooth_l1_loss(
    prediction: Tensor, target: Tensor, beta: float = 1 / 9, code_weights: Tensor | None = None
) -> Tensor:
    """Huber-like loss: quadratic below `beta`, linear above. A NaN target counts as no error.

    Args:
        prediction: [..., C].
        target: [..., C].
        beta: where the quadratic part ends; 0 gives the absolute difference.
        code_weights: [C], multiplies the difference (not the loss), or None.

    Returns:
        A loss for each element [..., C].
    """
    difference = prediction - torch.where(target.isnan(), prediction, target)
    if code_weights is not None:
        difference = difference * code_weights
    size = difference.abs()
    if beta < 1e-5:
        return size
    return torch.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def with_sine_difference(prediction: Tensor, target: Tensor, column: int = 6) -> tuple[Tensor, Tensor]:
    """Both with an angle replaced so that their difference there is sin(prediction - target) (SECOND, Yan et al. 2018).

    Args:
        prediction: [..., C].
        target: [..., C].
        column: of the angle, in radians.

    Returns:
        Prediction and target [..., C].
    """
    p, t = prediction[..., column : column + 1], target[..., column : column + 1]
    pairs = ((prediction, p.sin() * t.cos()), (target, p.cos() * t.sin()))
    first, second = (torch.cat([x[..., :column], angle, x[..., column + 1 :]], -1) for x, angle in pairs)
    return first, second


def gaussian_focal_loss(
    probability: Tensor, heatmap: Tensor, alpha: float = 2.0, gamma: float = 4.0, eps: float = 0.0
) -> Tensor:
    """Focal loss against a heatmap of Gaussians with peaks of exactly 1 (CornerNet, Law & Deng 2018, eq. 1).

    Args:
        probability: in (0, 1); clamp it away from the ends, or give `eps`.
        heatmap: of the same shape.
        alpha: how much what is right already counts less.
        gamma: how much less cells near a peak count.
        eps: added inside the logarithms.

    Returns:
        A loss for each element.
    """
    p = probability
    peak = heatmap == 1
    positive = -torch.log(p + eps) * (1 - p).pow(alpha)
    negative = -torch.log(1 - p + eps) * p.pow(alpha) * (1 - heatmap).pow(gamma)
    return torch.where(peak, positive, negative)


def center_focal_loss(probability: Tensor, heatmap: Tensor, mask: Tensor | None = None) -> Tensor:
    """Gaussian focal loss, summed and divided by the number of peaks, at least 1 (CenterPoint, Yin et al. 2021).

    Args:
        probability: [B, C, H, W], in (0, 1).
        heatmap: [B, C, H, W].
        mask: [B, H, W], 0 where a cell does not count, or None.

    Returns:
        A scalar.
    """
    loss = gaussian_focal_loss(probability, heatmap)
    peaks = (heatmap == 1).to(loss.dtype)
    if mask is not None:
        loss, peaks = loss * mask[:, None], peaks * mask[:, None]
    return loss.sum() / peaks.sum().clamp_min(1)


def masked_l1_loss(prediction: Tensor, target: Tensor, mask: Tensor, ignore_nan: bool = True) -> Tensor:
    """Absolute differences, summed over the rows that count and divided by their number, at least 1.

    Args:
        prediction: [..., C].
        target: [..., C]; NaN (a velocity that nobody measured) counts as no error.
        mask: [...], which rows count.
        ignore_nan: False lets a NaN target make its column NaN.

    Returns:
        [C], one number per column.
    """
    known = torch.where(target.isnan(), prediction, target) if ignore_nan else target
    chosen = torch.where(mask.bool()[..., None], (prediction - known).abs(), 0.0)
    return chosen.flatten(0, -2).sum(0) / mask.sum().clamp_min(1)


def axis_aligned_diou(a: Tensor, b: Tensor) -> Tensor:
    """Distance IoU [...] of boxes [..., >= 6], headings ignored, in [-1, 1] (Zheng et al. 2020, eq. 7).

    3-D overlap over union, minus the squared distance of centres over the squared diagonal of the common hull.
    """
    low_a, high_a = a[..., :3] - a[..., 3:6] / 2, a[..., :3] + a[..., 3:6] / 2
    low_b, high_b = b[..., :3] - b[..., 3:6] / 2, b[..., :3] + b[..., 3:6] / 2
    overlap = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp_min(0).prod(-1)
    union = a[..., 3:6].prod(-1) + b[..., 3:6].prod(-1) - overlap
    hull = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).clamp_min(0)
    distance = (a[..., :3] - b[..., :3]).pow(2).sum(-1)
    return (overlap / union.clamp_min(1e-6) - distance / hull.pow(2).sum(-1).clamp_min(1e-6)).clamp(-1, 1)


def corner_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean smooth-L1 (beta 1 m) distance of the 8 corners [N], to the box or to it turned by π, whichever is nearer
    (Frustum PointNets, Qi et al. 2018, eq. 1)."""
    turned = torch.cat([target[:, :6], target[:, 6:7] + torch.pi], 1)
    corners = box_corners(prediction)
    distance = torch.minimum(
        (corners - box_corners(target)).norm(dim=2),
        (corners - box_corners(turned)).norm(dim=2),
    )
    return smooth_l1_loss(distance, torch.zeros_like(distance), beta=1.0).mean(1)


def iou_prediction_loss(expected: Tensor, boxes: Tensor, objects: Tensor) -> Tensor:
    """Mean distance of predicted overlaps from 2 IoU - 1, row by row.

    Args:
        expected: [M], the predictions.
        boxes: [M, 7 or more].
        objects: [M, 7 or more], what the boxes are compared with, in 3-D.

    Returns:
        A scalar, 0 for no row.
    """
    iou = iou_3d_paired(boxes, objects)
    return (expected - (2 * iou - 1)).abs().sum() / max(len(expected), 1)
