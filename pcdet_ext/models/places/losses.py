"""Losses on the descriptors of a batch, in which some frames show the same place (positives) and others do not.

All take descriptors [N, D] and bool [N, N]: `positives`, and `negatives`; pairs that are neither do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcdet_ext.config import Registry

LOSSES = Registry("loss")
MOST_EXPONENT = 50.0  # beyond it a sigmoid is 0 or 1 in float32


def distances(descriptors: Tensor) -> Tensor:
    """Euclidean distances [N, N] of descriptors [N, D]; the gradient of a distance of 0 is 0."""
    return torch.cdist(descriptors, descriptors, compute_mode="donot_use_mm_for_euclid_dist")


@LOSSES.register
class TruncatedSmoothAP(nn.Module):
    """One minus the smoothed average precision of each frame's nearest positives: the mean over frames that have one.

    Smooth-AP (Brown et al., ECCV 2020) ranks the positives of a query among all frames with a sigmoid in the place of
    each comparison; truncated (Komorowski, ICPR 2022), only the positives nearest to the query count, so that the loss
    asks for some right frames in front and not for all of them.

    Args:
        temperature: of the sigmoid, in units of distance.
        positives_per_query: how many of the nearest positives count.

    Raises:
        ValueError: for values that are not positive.
    """

    def __init__(self, temperature: float = 0.01, positives_per_query: int = 4) -> None:
        super().__init__()
        if temperature <= 0 or positives_per_query < 1:
            raise ValueError(
                "temperature must be above 0 and positives_per_query at least 1, got "
                f"{temperature} and {positives_per_query}"
            )
        self.temperature, self.positives_per_query = temperature, positives_per_query

    def forward(self, descriptors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """The loss of a batch; 0 where no frame has a positive.

        Args:
            descriptors: floating-point [N, D].
            positives: bool [N, N], frames of the same place.
            negatives: bool [N, N], frames of other places.
        """
        similarity = -distances(descriptors)
        count = min(self.positives_per_query, len(descriptors))
        known = similarity.detach().masked_fill(~positives, -torch.inf)
        nearest = known.topk(count, dim=1).indices  # [N, k]; where there are fewer positives, also others
        counted = positives.gather(1, nearest)
        ahead = similarity[:, None, :] - similarity.gather(1, nearest)[:, :, None]  # [N, k, N]
        before = torch.sigmoid((ahead / self.temperature).clamp(-MOST_EXPONENT, MOST_EXPONENT))
        itself = torch.zeros_like(before, dtype=torch.bool).scatter_(2, nearest[:, :, None], True)
        among_positives = 1 + (before * (positives[:, None, :] & ~itself)).sum(2)
        among_all = among_positives + (before * negatives[:, None, :]).sum(2)
        precision = (among_positives / among_all * counted).sum(1) / counted.sum(1).clamp(min=1)
        asked = counted.any(1)
        return ((1 - precision) * asked).sum() / asked.sum().clamp(min=1)


@LOSSES.register
class BatchHardTriplet(nn.Module):
    """Hinge loss of each frame's farthest positive and nearest negative (Hermans et al. 2017, equation 5).

    Args:
        margin: by how much the negative is to be farther away.

    Raises:
        ValueError: for a margin that is not positive.
    """

    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        if margin <= 0:
            raise ValueError(f"margin must be above 0, got {margin}")
        self.margin = margin

    def forward(self, descriptors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """The mean loss over all frames that have both positives and negatives; 0 where there is none.

        Args:
            descriptors: floating-point [N, D].
            positives: bool [N, N], frames of the same place.
            negatives: bool [N, N], frames of other places.
        """
        distance = distances(descriptors)
        asked = positives.any(1) & negatives.any(1)
        farthest = distance.masked_fill(~positives, -torch.inf).amax(1)
        nearest = distance.masked_fill(~negatives, torch.inf).amin(1)
        gap = torch.where(asked, farthest - nearest, 0) + self.margin
        return (gap.relu() * asked).sum() / asked.sum().clamp(min=1)
