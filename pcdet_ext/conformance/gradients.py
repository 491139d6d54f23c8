"""Gradients of what runners computed, under the published names of parameters and in their published shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pcdet_ext.conformance.golden import Case, Values, backward

Rename = Callable[[str], str]


def leaves_of(case: Case, module: nn.Module, inputs: Mapping[str, Tensor], rename: Rename) -> dict[str, Tensor]:
    """The inputs ("in.x"), and the parameters that a module has of a case ("param.<published name>").

    Args:
        case: with its parameters.
        module: whose parameters have our names.
        inputs: leaves beside, by name.
        rename: our name for a published one.
    """
    ours = dict(module.named_parameters())
    parameters = {f"param.{name}": ours[key] for name in case.tensors("param") if (key := rename(name)) in ours}
    return {**parameters, **inputs}


def probe_gradients(
    case: Case, values: Values, module: nn.Module, inputs: Mapping[str, Tensor], rename: Rename
) -> dict[str, Tensor]:
    """Gradients of Σ probe·out. Arguments as in `leaves_of`, and the computed values, see `backward`."""
    return _in_published_shapes(case, backward(values, case, leaves_of(case, module, inputs, rename)))


def loss_gradients(
    case: Case, loss: Tensor, module: nn.Module, inputs: Mapping[str, Tensor], rename: Rename
) -> dict[str, Tensor]:
    """Gradients of a loss, those that the case has; zero where the loss does not reach. Arguments as in `leaves_of`."""
    leaves = leaves_of(case, module, inputs, rename)
    wanted = {key: leaf for key, leaf in leaves.items() if f"grad.{key}" in case.arrays}
    if not wanted:
        return {}
    found = torch.autograd.grad(
        loss, list(wanted.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return _in_published_shapes(case, {f"grad.{key}": value for key, value in zip(wanted, found, strict=True)})


def _in_published_shapes(case: Case, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each gradient in the shape of the published parameter itself; those of inputs as they are."""
    shapes = {f"grad.{key}": case.arrays[key].shape for key in case.arrays if key.startswith("param.")}
    return {key: value.reshape(shapes.get(key, value.shape)) for key, value in gradients.items()}
