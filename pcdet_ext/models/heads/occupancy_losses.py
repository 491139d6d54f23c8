"""Losses of semantic occupancy: of whole sets of cells (MonoScene's, Lovász-softmax) and of single ones (focal)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.models.heads.losses import sigmoid_focal_loss
from pcdet_ext.scenes import NOT_COUNTED

EPS = 1e-5


def scene_class_affinity(probabilities: Tensor, labels: Tensor, free: int) -> Tensor:
    """Scene-class affinity loss over the occupied classes (MonoScene, Cao & de Charette, CVPR 2022, eq. 3 to 5).

    Minus the logarithms of precision, recall and specificity, each computed with probabilities for counts.

    Args:
        probabilities: [N, C], each row of sum 1.
        labels: int64 [N], in [0, C).
        free: the class of empty cells, which is left out; so are all after it.

    Returns:
        The mean over the classes that occur in the labels; 0 where none does.
    """
    losses = []
    for number in range(free):
        own = labels == number
        if bool(own.any()):
            losses.append(_affinity(probabilities[:, number], own))
    return torch.stack(losses).mean() if losses else probabilities.sum() * 0


def geometric_affinity(probabilities: Tensor, labels: Tensor, free: int) -> Tensor:
    """Scene-class affinity loss of occupied against free cells (MonoScene, Cao & de Charette, CVPR 2022).

    Unlike that of a class, it always has its three terms: without any free cell, that of specificity is -ln 1e-5.
    Arguments as in `scene_class_affinity`.
    """
    occupied, own = 1 - probabilities[:, free], labels != free
    loss = _affinity(occupied, own)
    return loss if bool((~own).any()) else loss + _minus_log(occupied.new_zeros(()))


def _affinity(p: Tensor, own: Tensor) -> Tensor:
    """Minus the logarithms of precision, recall and specificity of one class, p [N] against bool [N]; a scalar."""
    hit, predicted = p[own].sum(), p.sum()
    others = 1 - p[~own]
    loss = p.new_zeros(())
    if bool(predicted > 0):
        loss = loss + _minus_log(hit / (predicted + EPS))
    loss = loss + _minus_log(hit / (own.sum() + EPS))
    if len(others):
        loss = loss + _minus_log(others.sum() / (len(others) + EPS))
    return loss


def _minus_log(share: Tensor) -> Tensor:
    """-ln of a share in [0, 1], which is moved off its ends in steps of 1e-5 so that its gradient stays finite."""
    for _ in range(2):
        share = torch.where(share >= 1 - EPS, share - EPS, share)
    share = torch.where(share < EPS, share + EPS, share)
    return -share.log()


def weighted_focal(logits: Tensor, labels: Tensor, class_weights: Tensor, cell_weights: Tensor) -> Tensor:
    """Sigmoid focal loss (γ 2, α 0.25) of cells, weighted by class and by cell; the mean over the cells.

    Args:
        logits: [N, C].
        labels: int64 [N], in [0, C).
        class_weights: [C].
        cell_weights: [N].
    """
    one_hot = F.one_hot(labels, logits.shape[1]).to(logits)
    each = (sigmoid_focal_loss(logits, one_hot) * class_weights).sum(-1) * cell_weights
    return each.sum() / max(len(each), 1)


def flow_loss(flow: Tensor, target: Tensor, moving: Tensor) -> Tensor:
    """Mean absolute difference of velocities over the cells of moving things; 0 without any (UniOcc).

    Each component counts as much as it is large, and 0.01 where it is 0.

    Args:
        flow: predicted, [..., 2] in metres per second.
        target: true ones of the same shape.
        moving: bool [...], which cells count.
    """
    if not bool(moving.any()):
        return flow.sum() * 0
    wanted = target[moving]
    weight = torch.where(wanted == 0, torch.full_like(wanted, 0.01), wanted.abs())
    return ((flow[moving] - wanted).abs() * weight).mean()


def counted_cells(labels: Tensor) -> Tensor:
    """bool: which labels say something."""
    return labels != NOT_COUNTED
