"""The Lovász-softmax loss, which goes down where the mean intersection over union goes up."""

from __future__ import annotations

import torch
from torch import Tensor


def lovasz_gradient(own: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient of the Lovász extension of the Jaccard loss, [N] (Berman et al., CVPR 2018, algorithm 1).

    own: bool [N], which points are of the class, sorted by falling error; dtype: of the result.
    """
    total = own.sum()
    intersection = (total - own.cumsum(0)).to(dtype)
    union = (total + (~own).cumsum(0)).to(dtype)
    jaccard = 1 - intersection / union
    return torch.diff(jaccard, prepend=jaccard.new_zeros(1))


def lovasz_softmax(probabilities: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Lovász-softmax loss over the classes that occur in the labels (Berman et al., CVPR 2018, eq. 11 and 12).

    For probabilities that are 0 or 1 it is the mean over these classes of one minus the intersection over union.

    Args:
        probabilities: [N, C], each row of sum 1.
        labels: int64 [N]. A label of C or more is of no class: the point counts as background of each. Leave out
            points that do not count.
        class_weights: [C], makes the mean a weighted one.

    Returns:
        A scalar, differentiable in the probabilities; 0 without any point.
    """
    present = [number for number in labels.unique().tolist() if number < probabilities.shape[1]]
    if not present:
        return probabilities.sum() * 0
    losses = []
    for number in present:
        own = labels == number
        error = (own.to(probabilities.dtype) - probabilities[:, number]).abs()
        falling, order = error.sort(descending=True, stable=True)
        losses.append(falling @ lovasz_gradient(own[order], falling.dtype))
    each = torch.stack(losses)
    if class_weights is None:
        return each.mean()
    weights = class_weights.to(each)[present]
    return (each * weights).sum() / weights.sum()
