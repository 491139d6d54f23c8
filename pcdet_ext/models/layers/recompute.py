"""Memory for time: activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def call(run: Callable[..., Any], *arguments: Any, recompute: bool) -> Any:
    """`run(*arguments)`; with `recompute` its activations are not kept but computed again for the gradients."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(run, *arguments, use_reentrant=False)
    return run(*arguments)


def check_recompute(module: nn.Module) -> None:
    """Raises ValueError for a module with batch norms: run twice, they would count every batch twice."""
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"recompute cannot be used with batch norms, but {name} is one")
