"""Runner for LION's operators on sequences."""

from __future__ import annotations

from pcdet_ext.conformance.golden import Case, Values, backward, runs
from pcdet_ext.interop import lion


@runs("lion", "operator")
def run_operator(case: Case, grads: bool) -> Values:
    """Sequences through one operator."""
    mixer = lion.from_official(case.config, case.tensors("param"))
    x = case.tensor("in.x").requires_grad_(grads)
    values = {"out.x": mixer.mix(x)}
    if grads:
        leaves = {"in.x": x} | {f"param.{name}": value for name, value in mixer.named_parameters()}
        values |= backward(values, case, leaves)
    return values
