"""Planning: the path that the vehicle should take, one of several for what the driver is told (UniLION's planner).

Published properties that one would not choose are named options, all off:
  mask_tiled   of a path whose steps are not all known, other numbers are left out than those that are not known
  pooling      the state of the vehicle is read from a window of so many cells instead of from the whole map
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.models.heads.base import Features, Reads
from pcdet_ext.models.heads.paths import (
    FAN,
    MapFusion,
    anchors_of,
    best_mode,
    fan_of_paths,
    mlp,
    mode_loss,
    sine_embedding,
    two_layers,
)
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.heads.transfusion_decoder import DecoderLayer
from pcdet_ext.ranges import check_range
from pcdet_ext.scenes import COMMANDS, EgoPlan, PlannedPath
from pcdet_ext.structures import Targets

FFN_CHANNELS = 1024
TURNS = ((FAN, FAN / 2, FAN / 4), (-FAN, -FAN / 2, -FAN / 4), (0.0, FAN / 8, -FAN / 8))  # of each command
STATUS = 10  # acceleration, rate of rotation, velocity, steering
# The vehicle as a box like those of objects: centre, logarithms of its sizes, cosine and sine of its heading, velocity.
EGO_ANCHOR = (0.0, 0.5, -1.06, 1.40609699, 0.54812141, 0.44468582, 1.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class PlanOutput:
    """Possible paths of the vehicle for each command.

    steps: offsets [B, commands, K, T, 2] in each half second; logits: [B, commands, K]; status: [B, 10], the predicted
    state of the vehicle; commands: int64 [B], what it was told.
    """

    steps: Tensor
    logits: Tensor
    status: Tensor
    commands: Tensor


@HEADS.register
class PlanningHead(nn.Module):
    """The path of the vehicle, from the map and a command ("left", "right" or "straight") for each frame.

    Args:
        in_channels: of the map.
        hidden_channels: of all layers.
        modes: possible paths for each command, K.
        steps: of half a second, T.
        anchors: typical paths [3 commands, K, T, 2], numbers or the path of a .npy file; by default arcs to the side
            of the command.
        num_layers: of attention.
        num_heads: of the attention.
        dropout: of the attention.
        classification_weight: of the loss of the choice between paths.
        regression_weight: of the loss of their places.
        alpha: of the focal loss of the choice.
        gamma: of the same.
        mask_tiled: see the module.
        pooling: see the module.

    Raises:
        ValueError: the anchors have another shape, or num_heads does not divide hidden_channels.
    """

    reads: ClassVar[Reads] = "scene"
    finds: ClassVar[type] = PlannedPath

    anchors: Tensor
    ego_anchor: Tensor

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 128,
        modes: int = 6,
        steps: int = 6,
        anchors: Any = None,
        num_layers: int = 1,
        num_heads: int = 8,
        dropout: float = 0.1,
        classification_weight: float = 5.0,
        regression_weight: float = 1.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        mask_tiled: bool = False,
        pooling: int | None = None,
    ) -> None:
        super().__init__()
        check_range(1, hidden_channels=hidden_channels, modes=modes, steps=steps, num_heads=num_heads, pooling=pooling)
        check_range(0, 1, dropout=dropout, alpha=alpha)
        check_range(0, classification_weight=classification_weight, regression_weight=regression_weight, gamma=gamma)
        check_range(1, num_layers=num_layers)
        if hidden_channels % num_heads or hidden_channels % 4:
            raise ValueError(f"hidden_channels must divide by num_heads and by 4, got {hidden_channels}, {num_heads}")
        width, self.modes, self.steps = hidden_channels, modes, steps
        self.weights, self.focal = (classification_weight, regression_weight), (alpha, gamma)
        self.mask_tiled, self.pooling = mask_tiled, pooling
        fan = torch.stack([fan_of_paths(modes, steps, turns) for turns in TURNS])
        shape = (len(COMMANDS), modes, steps, 2)
        self.register_buffer("anchors", fan if anchors is None else anchors_of(anchors, shape, "anchors"))
        self.register_buffer("ego_anchor", torch.tensor([EGO_ANCHOR]))
        self.fusion = MapFusion(in_channels, width)
        self.ego_feature_encoder = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.query_encoder = mlp(width, width, bias=False)
        self.decoder = nn.ModuleList(
            DecoderLayer(width, num_heads, FFN_CHANNELS, dropout, momentum=0.1, placed=False) for _ in range(num_layers)
        )
        self.ego_anchor_encoder = mlp(len(EGO_ANCHOR), width)
        self.status = nn.Sequential(*two_layers(width), nn.Linear(width, STATUS))
        self.status_encoder = mlp(STATUS, width)
        self.anchor_encoder = mlp(width, width)
        self.command = CommandModulation(width)
        self.layers = two_layers(width)
        self.regression = nn.Linear(width, steps * 2)
        self.classification = nn.Linear(width, 1)

    def forward(self, features: Features) -> PlanOutput:
        """Paths from the map and the commands of the batch. Raises ValueError where it has no commands."""
        if features.batch.commands is None:
            raise ValueError("planning needs the commands of the batch, an index of left, right, straight per frame")
        return self.paths(features.map(), features.batch.commands)

    def paths(self, bev: Tensor, commands: Tensor) -> PlanOutput:
        """Paths from a map [B, in_channels, Y, X] and commands int64 [B]."""
        fused = self.fusion(bev, bev)
        query = self.query_encoder(self._ego_features(fused))[:, None]  # [B, 1, C]
        keys = fused.flatten(2)
        for layer in self.decoder:
            query = layer(query.transpose(1, 2), keys).transpose(1, 2)
        status = self.status(query + self.ego_anchor_encoder(self.ego_anchor.to(query)))
        ends = sine_embedding(self.anchors[..., -1, :], query.shape[2])
        anchors = self.anchor_encoder(ends.to(query)).flatten(0, 1)
        told = F.one_hot(commands, len(COMMANDS)).to(query)
        queries = self.command(query + anchors + self.status_encoder(status), told[:, None])
        hidden = self.layers(queries)
        shape = (len(bev), len(COMMANDS), self.modes)
        steps = self.regression(hidden).float().view(*shape, self.steps, 2)
        return PlanOutput(steps, self.classification(hidden).float().view(shape), status[:, 0].float(), commands)

    def _ego_features(self, fused: Tensor) -> Tensor:
        """What the map says about the vehicle itself, [B, C]."""
        features = self.ego_feature_encoder(fused)
        if self.pooling is None:
            return features.mean((2, 3))
        pooled = F.avg_pool2d(features, self.pooling)
        if pooled.shape[2:] != (1, 1):
            raise ValueError(
                f"pooling by {self.pooling} makes {tuple(pooled.shape[2:])} cells of the map instead of one"
            )
        return pooled.flatten(1)

    def loss(self, output: PlanOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses "regression", "classification" and "status". Raises ValueError for a frame without a plan."""
        plans = [self._plan(frame, target) for frame, target in enumerate(targets)]
        steps, mask, status = (
            torch.stack([torch.as_tensor(getattr(plan, name)) for plan in plans]).to(output.steps)
            for name in ("steps", "mask", "status")
        )
        frames = torch.arange(len(plans), device=output.commands.device)
        possible, logits = output.steps[frames, output.commands], output.logits[frames, output.commands]
        best = best_mode(possible.detach(), steps, mask)
        error = (possible[frames, best] - steps).abs()
        error = error.flatten(1) * mask.repeat(1, 2) if self.mask_tiled else error * mask[..., None]
        choice = mode_loss(logits, best, *self.focal) * (mask.amax(1, keepdim=True) > 0)
        return {
            "regression": self.weights[1] * error.mean(),
            "classification": self.weights[0] * choice.mean(),
            "status": (output.status - status).abs().mean(),
        }

    def _plan(self, frame: int, target: Targets) -> EgoPlan:
        if target.plan is None:
            raise ValueError(f"frame {frame} of the batch has no plan to learn from")
        if len(target.plan.steps) != self.steps:
            raise ValueError(f"the plan of frame {frame} has {len(target.plan.steps)} steps, not {self.steps}")
        return target.plan

    @torch.no_grad()
    def decode(self, output: PlanOutput) -> list[PlannedPath]:
        """The likeliest path of each frame for its command."""
        frames = torch.arange(len(output.commands), device=output.commands.device)
        best = output.logits[frames, output.commands].argmax(1)
        return [PlannedPath(path) for path in output.steps[frames, output.commands, best].cumsum(1)]


class CommandModulation(nn.Module):
    """Layer norm whose scale and shift come from the command (feature-wise modulation, Perez et al., AAAI 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Linear(len(COMMANDS), channels), nn.ReLU())
        self.gamma, self.beta = nn.Linear(channels, channels), nn.Linear(channels, channels)
        for layer, start in ((self.gamma, 1.0), (self.beta, 0.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, start)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """Queries [B, N, C] with the command [B, 1, 3] as one-hot."""
        reduced = self.reduce(told)
        return self.gamma(reduced) * F.layer_norm(x, x.shape[-1:]) + self.beta(reduced)
