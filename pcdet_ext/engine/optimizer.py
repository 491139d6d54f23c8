"""The one-cycle Adam that the field trains its detectors with.

Adam with decoupled weight decay (Loshchilov and Hutter, "Decoupled Weight Decay Regularization": every parameter is
first multiplied by 1 - weight_decay * lr), the learning rate and the momentum following one cosine cycle (Smith, "A
Disciplined Approach to Neural Network Hyper-Parameters").
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pcdet_ext.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """Optimiser settings; the defaults are the ones most published detectors use.

    Args:
        learning_rate: peak of the cycle, which starts at learning_rate / div_factor and ends at a 10,000th of that.
        weight_decay: decoupled weight decay.
        momentum: Adam's beta1 at the ends of the cycle, and at the peak.
        beta2: Adam's beta2.
        pct_start: share of steps before the peak.
        div_factor: peak of the learning rate over its start.
        grad_norm_clip: largest L2 norm of all gradients together, 0 for no limit.
        parameter_groups: "all" updates every parameter. "published" leaves out what the published training leaves out:
            parameters held directly by a module that has children (`in_proj_weight` of every nn.MultiheadAttention),
            whose gradients then accumulate over the steps and enter the clipped norm; only for reproducing published
            weights.
        undecayed: parameters whose name contains one of these are left out of the weight decay ("norm" in FlatFormer).

    Raises:
        ValueError: a value is outside its range.
    """

    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    momentum: tuple[float, float] = (0.95, 0.85)
    beta2: float = 0.99
    pct_start: float = 0.4
    div_factor: float = 10.0
    grad_norm_clip: float = 10.0
    parameter_groups: Literal["all", "published"] = "all"
    undecayed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.div_factor <= 0:
            raise ValueError(
                f"learning_rate and div_factor must be above 0, got {self.learning_rate} and {self.div_factor}"
            )
        if not 0 <= self.pct_start <= 1:
            raise ValueError(f"pct_start must be in [0, 1], got {self.pct_start}")
        if not all(0 <= beta < 1 for beta in (*self.momentum, self.beta2)):
            raise ValueError(f"momentum and beta2 must be in [0, 1), got {self.momentum} and {self.beta2}")
        if self.weight_decay < 0 or self.grad_norm_clip < 0:
            raise ValueError(
                f"weight_decay and grad_norm_clip must be at least 0, got {self.weight_decay} and {self.grad_norm_clip}"
            )

    def at(self, step: int, total_steps: int) -> tuple[float, float]:
        """Learning rate and momentum of a step (from 0) of a training that takes `total_steps`."""
        peak = int(total_steps * self.pct_start)
        low = self.learning_rate / self.div_factor
        outer, inner = self.momentum
        if step < peak:
            q = step / peak
            return _cosine(low, self.learning_rate, q), _cosine(outer, inner, q)
        q = min(1.0, (step - peak) / max(1, total_steps - peak))
        return _cosine(self.learning_rate, low / 1e4, q), _cosine(inner, outer, q)


def _cosine(start: float, end: float, q: float) -> float:
    """The value a fraction q of the way from start to end along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * q))


def trained_parameters(model: nn.Module, groups: Literal["all", "published"]) -> list[nn.Parameter]:
    """The parameters that an optimiser receives, each once; see `OneCycle.parameter_groups`."""
    if groups == "all":
        return [p for p in model.parameters() if p.requires_grad]
    leaves = (module for module in model.modules() if next(module.children(), None) is None)
    unique = dict.fromkeys(p for leaf in leaves for p in leaf.parameters(recurse=False) if p.requires_grad)
    return list(unique)


def build_optimizer(model: nn.Module, settings: OneCycle) -> torch.optim.AdamW:
    """Adam for a model, set to the first step of the cycle. Weight decay applies to norms and biases too, unless they
    are `settings.undecayed`. Raises ValueError for a model without parameters, ConfigError for names that none has.
    """
    parameters = trained_parameters(model, settings.parameter_groups)
    if not parameters:
        raise ValueError("the model has no parameters to train")
    spared = _named(model, settings.undecayed)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) not in spared]},
        {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate / settings.div_factor,
        betas=(settings.momentum[0], settings.beta2),
        eps=1e-8,
        weight_decay=settings.weight_decay,
    )


def _named(model: nn.Module, parts: Iterable[str]) -> set[int]:
    """Identities of the parameters whose name contains one of the parts."""
    found = set()
    for part in parts:
        these = {id(p) for name, p in model.named_parameters() if part in name}
        if not these:
            raise ConfigError(f"train.undecayed: no parameter of the model has {part!r} in its name")
        found |= these
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser the moments of an earlier one; its weight decay and betas stay as they were set.

    torch would take these from the earlier one too, and a changed `train.weight_decay` would silently not count.
    Raises ValueError where the parameters are not the same.
    """
    kept = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, kept, strict=True):
        group.update(settings)


def set_schedule(optimizer: torch.optim.Optimizer, learning_rate: float, momentum: float) -> None:
    """Change the settings of the next step.

    Args:
        optimizer: one of Adam's kind, which is changed.
        learning_rate: of all its groups.
        momentum: their first beta.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["betas"] = (momentum, group["betas"][1])


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients so that their common L2 norm is at most `max_norm` (0: no limit). Returns the norm before."""
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)
