"""Arrays of NumPy and tensors of torch side by side."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray


# Decorator: torch.compile runs the function as it is instead of tracing it, for what decides sizes from data and gains
# nothing from compilation. torch's own lazy form of `torch.compiler.disable`, which would import the compiler at once.
untraced = torch._disable_dynamo  # type: ignore[attr-defined]  # torch has no public name for it


def is_tracing() -> bool:
    """Whether torch's tracer records what is computed, whose graphs are to hold for any layout and size."""
    return torch._C._get_tracing_state() is not None


def tensor_of(values: Tensor | Array) -> Tensor:
    """The values as a tensor where they are: `torch.as_tensor` would bring them to torch's default device."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))


def rows_of(values: Array, keep: Array) -> Array:
    """values[keep] for `keep` bool [N] or int64 [K], without general indexing, which takes several times longer.

    Raises IndexError for rows that are not there.
    """
    if keep.dtype != bool:
        return values.take(keep, axis=0)
    if len(keep) != len(values):
        raise IndexError(f"{len(values)} rows but {len(keep)} flags")
    return values.compress(keep, axis=0)
