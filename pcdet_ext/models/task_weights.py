"""The losses of several heads, weighted."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

LEAST = 1e-5  # added to the loss that another one is divided by


def weighted_losses(
    losses: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float], balance: str | None = None
) -> dict[str, Tensor]:
    """The losses of all heads, each by the name "head/loss", times the weight of its head.

    Args:
        losses: of each head, by name.
        weights: of the heads.
        balance: a head by which the others are balanced: their losses are scaled so that those of a head together are
            as large as this head's own without its weight. The scale has no gradient (UniLION's dynamic weights).
    """
    found: dict[str, Tensor] = {}
    for head, own in losses.items():
        scale: float | Tensor = weights[head]
        if balance is not None and head != balance:
            scale = scale * _total(losses[balance]) / (_total(own) + LEAST)
        found |= {f"{head}/{name}": scale * value for name, value in own.items()}
    return found


def _total(losses: Mapping[str, Tensor]) -> float | Tensor:
    return sum(value.detach() for value in losses.values())
