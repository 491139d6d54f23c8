"""Published parameters under our names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

MOST_NAMED = 10  # entries that do not fit, in a message


Convert = Callable[[str, Tensor, torch.Size], Tensor]


def load_renamed(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    rename: Callable[[str], str],
    convert: Convert = lambda key, value, shape: value,
) -> None:
    """Load a published state dict into a module, every entry of it. Arguments as in `renamed`, and the same errors."""
    module.load_state_dict(renamed(module, state_dict, rename, convert))


def renamed(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    rename: Callable[[str], str],
    convert: Convert = lambda key, value, shape: value,
) -> dict[str, Tensor]:
    """A published state dict under our names, every entry of it; differentiable where `convert` is.

    Args:
        module: for whose state dict.
        state_dict: published tensors by name.
        rename: our name for a published one.
        convert: our value for (our name, published value, our shape).

    Raises:
        ValueError: entries are missing, have no place or another shape; the message names them.
    """
    own = module.state_dict()
    loaded, wrong = {}, []
    for name, value in state_dict.items():
        key = rename(name)
        if key not in own:
            wrong.append(f"{name} has no place")
            continue
        loaded[key] = convert(key, value, own[key].shape)
        if loaded[key].shape != own[key].shape:
            wrong.append(f"{name} is {tuple(value.shape)}, not {tuple(own[key].shape)}")
    wrong += [f"{key} is missing" for key in own if key not in loaded]
    if wrong:
        more = f", and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise ValueError(f"the state dict does not fit the configuration: {'; '.join(wrong[:MOST_NAMED])}{more}")
    return loaded


def in_spconv_2_order(key: str, value: Tensor, shape: torch.Size) -> Tensor:
    """A weight as it is, or from spconv 1's order [kz, ky, kx, in, out] where that gives the shape; a `Convert`.

    Args:
        key: our name.
        value: the published tensor.
        shape: ours.
    """
    reordered = value.ndim == 5 and value.shape != shape and value.movedim(-1, 0).shape == shape
    return value.movedim(-1, 0) if reordered else value


def first_prefix(prefixes: Mapping[str, str], name: str) -> str:
    """The name with the first of the prefixes that it has replaced, or as it is where it has none."""
    for published, ours in prefixes.items():
        if name.startswith(published):
            return ours + name.removeprefix(published)
    return name
