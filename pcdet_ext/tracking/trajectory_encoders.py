"""The parts of TrajectoryFormer's network that turn rows of boxes and of points into one vector.

Chen et al., "TrajectoryFormer: 3D Object Tracking Transformer with Predictive Trajectory Hypotheses", ICCV 2023.
Parameters have the published names.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

BOX_WIDTHS = (64, 128, 256, 512)  # of the layers that look at each box of a trajectory
BOX_HIDDEN = 256


class Perceptron(nn.Module):
    """Three linear layers with ReLU between them.

    Args:
        dim_in: width of the input.
        hidden: width of the two inner layers.
        dim_out: width of the output.
    """

    def __init__(self, dim_in: int, hidden: int, dim_out: int) -> None:
        super().__init__()
        widths = (dim_in, hidden, hidden, dim_out)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim_out] of [..., dim_in]."""
        for layer in list(self.layers)[:-1]:
            x = layer(x).relu()
        return cast(Tensor, self.layers[-1](x))


def _linear_norm_relu(*widths: int) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for a, b in pairwise(widths):
        modules += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    return modules


class MotionEncoder(nn.Module):
    """Where a box moves, out of the boxes that it was before (the vector encoder of VectorNet, with batch norms).

    The batch norms see the rows that count alone.

    Args:
        dim_in: numbers of a row.
        hidden: width.
        dim_out: numbers of the result.
    """

    def __init__(self, dim_in: int, hidden: int, dim_out: int) -> None:
        super().__init__()
        self.dim_out = dim_out
        self.pre_mlps = nn.Sequential(*_linear_norm_relu(dim_in, hidden))
        self.mlps = nn.Sequential(*_linear_norm_relu(2 * hidden, hidden, hidden))
        self.out_mlps = nn.Sequential(*_linear_norm_relu(hidden, hidden, hidden), nn.Linear(hidden, dim_out))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Encode polylines.

        Args:
            rows: [..., T, dim_in].
            counts: bool [..., T], rows that count; what the others hold has no effect.

        Returns:
            [..., dim_out]; zeros where no row counts.
        """
        own = _of_valid(self.pre_mlps, rows, counts)
        largest = own.amax(-2, keepdim=True).expand_as(own)
        both = _of_valid(self.mlps, torch.cat([own, largest], -1), counts)
        return _of_valid(self.out_mlps, both.amax(-2), counts.any(-1))


def _of_valid(module: nn.Sequential, x: Tensor, valid: Tensor) -> Tensor:
    """The module on the rows [K, C] of x [..., C] that are valid (bool [...]), zeros elsewhere."""
    last = [layer for layer in module if isinstance(layer, nn.Linear)][-1]
    found = x.new_zeros(*valid.shape, last.out_features)
    if bool(valid.any()):
        found[valid] = module(x[valid])
    return found


class _BoxLayers(nn.Module):
    """What looks at each box of a trajectory by itself."""

    def __init__(self, dim_in: int) -> None:
        super().__init__()
        widths = (dim_in, *BOX_WIDTHS)
        for i, (a, b) in enumerate(pairwise(widths), 1):
            self.add_module(f"conv{i}", nn.Conv1d(a, b, 1))
            self.add_module(f"bn{i}", nn.BatchNorm1d(b))

    def forward(self, x: Tensor) -> Tensor:
        last = len(BOX_WIDTHS)
        for i in range(1, last + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            x = x if i == last else x.relu()
        return x.amax(2)


class TrajectoryEncoder(nn.Module):
    """What the boxes of a trajectory look like together (Qi et al., "PointNet", CVPR 2017).

    Args:
        dim_in: numbers of a box.
        hidden: width of the result.
    """

    def __init__(self, dim_in: int, hidden: int) -> None:
        super().__init__()
        self.feat = _BoxLayers(dim_in)
        self.fc1, self.fc2 = nn.Linear(BOX_WIDTHS[-1], BOX_HIDDEN), nn.Linear(BOX_HIDDEN, hidden)
        self.pre_bn = nn.BatchNorm1d(dim_in)
        self.bn1, self.bn2 = nn.BatchNorm1d(BOX_HIDDEN), nn.BatchNorm1d(hidden)

    def forward(self, boxes: Tensor) -> Tensor:
        """[M, hidden] of trajectories [M, T, dim_in]."""
        x = self.feat(self.pre_bn(boxes.transpose(1, 2)))
        x = self.bn1(self.fc1(x)).relu()
        return cast(Tensor, self.bn2(self.fc2(x)).relu())
