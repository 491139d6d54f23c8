"""The exponential moving average of a model's weights, which is often better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """The setting `train.ema`.

    After each step the average w' of a weight w becomes decay · w' + (1 - decay) · w (after Polyak and Juditsky,
    "Acceleration of Stochastic Approximation by Averaging").

    Args:
        decay: the share of the old average.
        warmup: whether the average follows faster at first: in step t (from 1) with a decay of at most
            (1 + t) / (10 + t), so that it soon forgets the untrained weights.

    Raises:
        ValueError: decay is not in [0, 1).
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")

    def at(self, update: int) -> float:
        """The decay of an update, counted from 1."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay


class WeightAverage:
    """The moving average of the parameters and floating-point buffers of a model; other buffers are the model's own.

    Args:
        model: the model, whose weights the average starts with.
        config: how fast the average follows.
        updates: how many updates were made before.
    """

    def __init__(self, model: nn.Module, config: EMAConfig, updates: int = 0) -> None:
        self.config, self.updates = config, updates
        self.state = _copied(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow the model's weights after one more step."""
        self.updates += 1
        weight = 1 - self.config.at(self.updates)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, weight)
            else:
                self.state[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own afterwards, whatever happens."""
        own = _copied(model)
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take an average from elsewhere, of a model with the same names and shapes."""
        for name, value in self.state.items():
            value.copy_(state[name])


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
