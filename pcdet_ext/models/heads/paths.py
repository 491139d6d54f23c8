"""What the heads that predict paths share: queries from anchors, and losses of several possible paths (modes)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.files import ARCHIVE_ERRORS, read_array
from pcdet_ext.models.heads.losses import sigmoid_focal_loss
from pcdet_ext.scenes import STEP

TEMPERATURE = 10000.0
FAN = math.radians(25)  # how far paths without anchors of their own turn at most, per second
SPEEDS = (0.0, 2.0, 5.0, 10.0)  # of these paths, m/s


class MapFusion(nn.Module):
    """Two maps joined and convolved (3x3), batch norm and ReLU: [B, in_channels, Y, X] twice to [B, channels, Y, X]."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.fuser = nn.Sequential(
            nn.Conv2d(2 * in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The joined map."""
        return self.fuser(torch.cat([first, second], 1))


def mlp(in_channels: int, channels: int, bias: bool = True) -> nn.Sequential:
    """Linear, ReLU, layer norm, linear: what makes a query of numbers.

    Args:
        in_channels: of the input.
        channels: of both layers.
        bias: whether the first layer has one.
    """
    first = nn.Linear(in_channels, channels, bias=bias)
    return nn.Sequential(first, nn.ReLU(), nn.LayerNorm(channels), nn.Linear(channels, channels))


def two_layers(channels: int) -> nn.Sequential:
    """Twice linear and ReLU."""
    return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU())


def sine_embedding(points: Tensor, width: int) -> Tensor:
    """Sines and cosines of places (x, y) [..., 2] at many wavelengths, [..., width], those of y first (DETR).

    width: an even number; each coordinate gets half of it.
    """
    half = width // 2
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    number = torch.arange(half, device=points.device)
    scale = TEMPERATURE ** (2 * (number // 2) / half)
    angles = points.flip(-1)[..., None] * (2 * math.pi) / scale.to(points)
    return torch.where(number % 2 == 0, angles.sin(), angles.cos()).flatten(-2)


def anchors_of(given: Any, shape: Sequence[int], name: str) -> Tensor:
    """Anchors as float32 of a shape [..., modes, steps, 2]: given ones, those of a .npy file, or a fan of paths.

    Args:
        given: nested numbers, an array, the path of a .npy file, or None for the fan.
        shape: wanted.
        name: of the argument, for the messages.

    Raises:
        ValueError: they have another shape, or the file is missing or no array of numbers.
    """
    if given is None:
        return fan_of_paths(shape[-3], shape[-2]).expand(tuple(shape)).clone()
    if isinstance(given, (str, Path)):
        try:
            with Path(given).open("rb") as file:
                given = read_array(file, Path(given).stat().st_size, Path(given).name)
        except ARCHIVE_ERRORS as error:
            raise ValueError(f"{name}: {given} cannot be read as a .npy file: {error}") from error
    anchors = torch.as_tensor(np.asarray(given, np.float32))
    if tuple(anchors.shape) != tuple(shape) or not bool(anchors.isfinite().all()):
        raise ValueError(f"{name} must be finite numbers of shape {tuple(shape)}, got {tuple(anchors.shape)}")
    return anchors


def fan_of_paths(modes: int, steps: int, turns: Sequence[float] = (0.0, FAN, -FAN)) -> Tensor:
    """Arcs [modes, steps, 2] from the origin along +x: standing first, then faster and faster ones.

    Args:
        modes: how many.
        steps: of half a second.
        turns: radians per second, positive to the left, that arcs of one speed take one after the other.
    """
    paths = []
    time = (torch.arange(steps) + 1) * STEP
    for mode in range(modes):
        speed, turn = SPEEDS[min((mode + 2) // 3, len(SPEEDS) - 1)], turns[mode % len(turns)]
        heading = turn * time
        along = torch.stack([heading.cos(), heading.sin()], 1) * speed * STEP
        paths.append(along.cumsum(0))
    return torch.stack(paths)


def best_mode(steps: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
    """int64 [N]: the possible path whose places come nearest to the true ones on average, the first of equal ones.

    Args:
        steps: [N, K, T, 2], offsets of K possible paths.
        wanted: [N, T, 2], true offsets.
        mask: [N, T], which steps are known; None takes them all.
    """
    distance = (steps.cumsum(2) - wanted.cumsum(1)[:, None]).norm(dim=-1)
    if mask is not None:
        distance = distance * mask[:, None].to(distance)
    return distance.mean(-1).argmin(1)


def mode_loss(logits: Tensor, best: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of the logits that one of several modes is the best.

    Args:
        logits: [N, K].
        best: int64 [N], the best mode of each row.
        alpha: weight of the best mode; the others have 1 - alpha.
        gamma: how much less a logit counts that is right already.

    Returns:
        [N, K].
    """
    return sigmoid_focal_loss(logits, F.one_hot(best, logits.shape[1]).to(logits), alpha=alpha, gamma=gamma)
