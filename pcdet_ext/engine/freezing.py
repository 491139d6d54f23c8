"""Parts of a model that a training leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from pcdet_ext.config import ConfigError, suggest


class FrozenParts:
    """Parameters whose names fit a pattern get no gradients; normalization layers among them stay as in testing.

    A pattern is the name of a parameter or of a module, with the wildcards `*`, `?` and `[…]`; with a module goes
    all that is inside it. A layer that tracks running statistics is frozen when a pattern fits its own name, that of a
    module around it, or all its parameters: it then normalizes with its running statistics, which do not change.

    Args:
        model: the model, which is changed in place.
        patterns: what to freeze.

    Raises:
        ConfigError: a pattern fits no parameter, or nothing is left to train.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str]) -> None:
        parameters = dict(model.named_parameters())
        for pattern in patterns:
            if not any(_fits(name, pattern) for name in parameters):
                known = suggest(pattern, [name for name, _ in model.named_children()])
                raise ConfigError(f"train.freeze: {pattern!r} fits no parameter of the model{known}")
        frozen = {name: p for name, p in parameters.items() if any(_fits(name, pattern) for pattern in patterns)}
        if len(frozen) == len(parameters) and patterns:
            raise ConfigError(f"train.freeze: {list(patterns)} leave no parameter to train")
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        self._norms = [m for name, m in model.named_modules() if _is_frozen_norm(name, m, patterns, frozen)]
        values = sum(p.numel() for p in frozen.values())
        total = sum(p.numel() for p in parameters.values())
        self.note = (
            f"train.freeze: {len(frozen)} of {len(parameters)} parameters ({values:,} of {total:,} values) are frozen, "
            f"and the statistics of {len(self._norms)} normalization layers"
            if frozen
            else ""
        )

    def keep(self) -> None:
        """Put the frozen normalization layers back into testing mode; to be called after `model.train()`."""
        for norm in self._norms:
            norm.eval()


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a dotted name, or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: n + 1]), pattern) for n in range(len(parts)))


def _is_frozen_norm(name: str, module: nn.Module, patterns: Sequence[str], frozen: dict[str, nn.Parameter]) -> bool:
    if not isinstance(module, _NormBase):
        return False
    own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
    return any(_fits(name, pattern) for pattern in patterns) or (bool(own) and all(key in frozen for key in own))
