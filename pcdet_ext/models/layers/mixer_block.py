"""The block around a mixer: norms, residuals, layer scale, stochastic depth, dropout and the feed-forward part.

Mixers are bare (see `pcdet_ext.mixers`): they exchange information inside groups and nothing else. Everything that
the published layers put around them is a setting here:

    placement   formula of a sublayer f                     used by
    "pre"       x + γ · f(norm(x))                          RetNet, RWKV, xLSTM, TTT in LION; ScatterFormer; OctFormer
    "post"      norm(x + γ · f(x))                          FlatFormer, DSVT
    "branch"    x + γ · norm(f(x))                          Mamba in LION
    "none"      x + γ · f(x)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pcdet_ext.grouping.partitions import Partition
from pcdet_ext.mixers import MIXERS
from pcdet_ext.models.layers.feed_forward import FEED_FORWARDS
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.structures import Groups, Segments

Placement = Literal["pre", "post", "branch", "none"]
NormKind = Literal["layer", "rms", "batch"]
DropPer = Literal["group", "owner"]
NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "layer": lambda channels, eps: nn.LayerNorm(channels, eps=eps),
    "rms": lambda channels, eps: nn.RMSNorm(channels, eps=eps),
    "batch": lambda channels, eps: SparseBatchNorm(channels, eps=eps),
}


class MixerBlock(nn.Module):
    """A mixer and, optionally, a feed-forward part, each as a sublayer with its own norm and residual.

    Args:
        channels: C.
        mixer: configuration of a bare mixer, its name and arguments.
        feed_forward: configuration of a feed-forward part, or None for a block without one.
        norm: where the norm of each sublayer stands, see the module.
        norm_kind: which norm it is.
        norm_eps: its epsilon.
        residual: add the sublayer's input; False replaces the features.
        layer_scale: γ of each channel at the start, learnt; None for γ = 1.
        drop_path: share of the groups that skip a sublayer in training (stochastic depth).
        drop_per: what skips it together: a "group", or all voxels of an "owner", such as a frame in octree windows.
        dropout: share of a sublayer's outputs that is dropped in training.
        input_norm: norm the features before everything else, as RWKV's first layer does.
        layer_id: number of this block among all blocks of the model, from 0.
        num_layers: how many there are; both are for mixers whose initialisation depends on them.

    Raises:
        ValueError: for shares outside [0, 1) and numbers that do not fit.
        ConfigError: for unknown names and arguments of the mixer or the feed-forward part.
    """

    def __init__(
        self,
        channels: int,
        mixer: Mapping[str, Any],
        feed_forward: Mapping[str, Any] | None = None,
        norm: Placement = "pre",
        norm_kind: NormKind = "layer",
        norm_eps: float = 1e-5,
        residual: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        input_norm: bool = False,
        layer_id: int = 0,
        num_layers: int = 1,
        drop_per: DropPer = "group",
    ) -> None:
        super().__init__()
        if not 0 <= layer_id < num_layers:
            raise ValueError(f"layer_id must be from 0 to num_layers - 1 = {num_layers - 1}, got {layer_id}")
        if norm not in get_args(Placement):
            raise ValueError(f"norm must be one of {', '.join(get_args(Placement))}, got {norm!r}")
        if not 0 < norm_eps < math.inf:
            raise ValueError(f"norm_eps must be positive and finite, got {norm_eps}")
        if layer_scale is not None and not math.isfinite(layer_scale):
            raise ValueError(f"layer_scale must be finite, got {layer_scale}")
        place = {"channels": channels, "layer_id": layer_id, "num_layers": num_layers}
        settings = (channels, norm, norm_kind, norm_eps, residual, layer_scale, DropPath(drop_path, drop_per), dropout)
        self.input_norm = NORMS[norm_kind](channels, norm_eps) if input_norm else None
        self.mix = Sublayer(MIXERS.build(mixer, **place), *settings)
        self.feed = None
        if feed_forward is not None:
            self.feed = Sublayer(FEED_FORWARDS.build(feed_forward, **place), *settings)

    def forward(self, x: Tensor, plan: Groups | Segments, position: Tensor | None = None) -> Tensor:
        """Mix the features, then apply the feed-forward network where there is one.

        Args:
            x: floating-point [N, C], features of the voxels.
            plan: which voxels are together.
            position: [N, C], added where the mixer wants it, or None.

        Returns:
            [N, C].
        """
        if self.input_norm is not None:
            x = self.input_norm(x)
        x = self.mix(x, plan, position)
        return x if self.feed is None else self.feed(x, plan)

    def check_partition(self, partition: Partition) -> None:
        """Raises ValueError where the mixer or the feed-forward part cannot take what the partition gives.

        Modules name what they take in `plan_types`; those that do not, take groups and segments.
        """
        for module in (part.module for part in (self.mix, self.feed) if part is not None):
            taken = getattr(module, "plan_types", (Groups, Segments))
            if partition.plan_type not in taken:
                raise ValueError(
                    f"{type(module).__name__} takes {' or '.join(t.__name__ for t in taken)}, "
                    f"but {type(partition).__name__} gives {partition.plan_type.__name__}"
                )


class Sublayer(nn.Module):
    """A module with norm, residual, layer scale, stochastic depth and dropout around it.

    Args:
        module: what is inside.
        channels: of its input and output.
        norm: where the norm stands, see `MixerBlock`.
        norm_kind: which norm, see `MixerBlock`.
        norm_eps: added to the variance by the norm.
        residual: whether the input is added to the output.
        layer_scale: initial value of a learnt factor per channel, None for none.
        drop_path: stochastic depth.
        dropout: share of the output that is set to zero in training.
    """

    def __init__(
        self,
        module: nn.Module,
        channels: int,
        norm: Placement,
        norm_kind: NormKind,
        norm_eps: float,
        residual: bool,
        layer_scale: float | None,
        drop_path: DropPath,
        dropout: float,
    ) -> None:
        super().__init__()
        self.module, self.placement, self.residual = module, norm, residual
        self.norm = None if norm == "none" else NORMS[norm_kind](channels, norm_eps)
        self.scale = None if layer_scale is None else nn.Parameter(torch.full((channels,), float(layer_scale)))
        self.drop_path, self.dropout = drop_path, nn.Dropout(dropout)

    def forward(self, x: Tensor, plan: Groups | Segments, *arguments: Tensor | None) -> Tensor:
        """Features [N, C] to [N, C]; further arguments go to the module."""
        branch = self.module(self._norm_if("pre", x), plan, *arguments)
        branch = self._norm_if("branch", branch)
        branch = branch if self.scale is None else self.scale * branch
        branch = self.drop_path(self.dropout(branch), plan)
        return self._norm_if("post", x + branch if self.residual else branch)

    def _norm_if(self, placement: Placement, x: Tensor) -> Tensor:
        return self.norm(x) if self.norm is not None and self.placement == placement else x


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training, a branch is dropped for whole groups, or owners.

    rate: share that is dropped, in [0, 1); the rest is scaled up so that the mean stays. per: what is dropped as a
    whole, a "group", or an "owner" (see `Groups`; the group where a plan has no owners).
    Raises ValueError for another rate or a word that is neither.
    """

    def __init__(self, rate: float = 0.0, per: DropPer = "group") -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {rate}")
        if per not in get_args(DropPer):
            raise ValueError(f"drop_per must be one of {', '.join(get_args(DropPer))}, got {per!r}")
        self.rate, self.per = rate, per

    def forward(self, x: Tensor, plan: Groups | Segments) -> Tensor:
        """Features [N, C] to the same shape."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        part, count = plan.group_of_voxel(), plan.num_groups
        if self.per == "owner" and isinstance(plan, Groups) and len(part):
            part = plan.owner_of_voxel()
            count = int(part.max()) + 1
        mask = x.new_empty(count, 1).bernoulli_(keep)
        return x * (mask / keep)[part]

    def extra_repr(self) -> str:
        """The rate, for print."""
        return f"rate={self.rate}"


def run_on_slots(blocks: Iterable[nn.Module], x: Tensor, groups: Groups) -> Tensor:
    """Run several blocks on the slots of the same groups, gathered and scattered once.

    A voxel that stands in two slots is then two tokens until the end, as in the published LION: the second block sees
    the copies as the first one left them. With blocks called on voxels it would see the voxel itself again.

    Args:
        blocks: modules that take (features, plan).
        x: floating-point [N, C], features of the voxels.
        groups: which voxels are together.

    Returns:
        [N, C].
    """
    slots, plan = groups.gather(x).flatten(0, 1), groups.of_slots()
    for block in blocks:
        slots = block(slots, plan)
    return groups.scatter(slots)
