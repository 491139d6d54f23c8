"""Operators of the published mixers on sequences."""

from __future__ import annotations

import torch

from pcdet_ext.conformance.golden import Case, Values, backward, runs
from pcdet_ext.ops.linear_attention import scattered_linear_attention


@runs("scatterformer", "sla_op")
def scattered_attention(case: Case, grads: bool) -> Values:
    """Scattered linear attention on rows that are sorted by window."""
    inputs = {name: case.tensor(f"in.{name}").requires_grad_(grads) for name in ("q", "k", "v")}
    counts = case.tensor("in.counts")
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    attended = scattered_linear_attention(inputs["q"], inputs["k"], inputs["v"], offsets, case.config.get("eps", 1e-6))
    values = {"out.y": attended}
    if grads:
        values |= backward(values, case, {f"in.{name}": tensor for name, tensor in inputs.items()})
    return values
