"""Batch normalization of rows: accurate on the CPU, and at work where a sparse batch is (nearly) empty."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-3  # both as in the published models
MOMENTUM = 0.01


class SparseBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d over rows [N, C] whose defaults are those of the published LiDAR detectors.

    A training batch of fewer than two rows has no variance: it is normalized with the running statistics, which then
    stay as they are, where torch would raise an error.

    Args:
        channels: C.
        eps: added to the variance.
        momentum: weight of a new batch in the running statistics.
    """

    def __init__(self, channels: int, eps: float = EPS, momentum: float = MOMENTUM) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Rows [N, C] to normalized rows [N, C]."""
        if self.training and len(x) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        # torch's CPU kernel for rows sums a channel's squares one by one in float32: the variance of some 10,000 rows
        # is off by 1e-4 relative, enough to miss published results. Its kernel for [B, C, L] sums in double.
        return super().forward(x.t().contiguous()[None])[0].t().contiguous()
