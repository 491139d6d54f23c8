"""What references share: the precision they compute in, and their gradients where no kernel covers a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def own_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Where products of matrices keep the type of their inputs, whatever autocast is set to."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def reference_gradients(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor
) -> list[Tensor | None]:
    """Gradients by autograd, so not for the body of a custom operator, where autograd is off.

    Args:
        reference: the function.
        inputs: what it takes in this order; None for an optional tensor that is not given.
        grad: gradient of its result, of the same shape.

    Returns:
        Gradients of the tensors among the inputs, and None in the other places.
    """
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
        wanted = [t for t in leaves if t is not None]
        found = torch.autograd.grad(reference(*leaves), wanted, grad, allow_unused=True, materialize_grads=True)
    grads = iter(found)
    return [None if t is None else next(grads) for t in inputs]
