"""Linear layers as inference computes them: with what follows them in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.enlarging import is_plain
from pcdet_ext.models.layers.laid_out import keep_laid_out
from pcdet_ext.ops.packed_linear import (
    LANES,
    linear_panels,
    packed_linear,
    packed_linear_reference,
    takes_packed_linear,
)


class PackedLinear(nn.Linear):
    """A linear layer with ReLU behind it where `relu` is True, for inference.

    Its weight must not change, but by `load_state_dict`: what the kernel reads is laid out from it once.
    """

    panels: Tensor

    def __init__(self, layer: nn.Linear, relu: bool = False) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
        keep_laid_out(self, "panels", linear_panels)
        self.relu = relu
        self.train(layer.training)

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """Rows [..., in_features] to [..., out_features]; an addend of that shape is added before ReLU."""
        if takes_packed_linear(x, self.weight, self.bias, addend) and not torch.is_autocast_enabled(x.device.type):
            return packed_linear(x, self.weight, self.bias, self.panels, addend, self.relu)
        return packed_linear_reference(x, self.weight, self.bias, addend, self.relu)  # autocast works as in any layer


def is_packable(layer: nn.Module) -> bool:
    """Whether `PackedLinear` can take the place of a layer."""
    if type(layer) is not nn.Linear or layer.out_features % LANES or not layer.in_features:
        return False
    return layer.weight.dtype == torch.float32


def plus_branch(x: Tensor, branch: nn.Sequential) -> Tensor:
    """x + branch(x), the sum in one pass with the last layer where that is linear and inference can do that.

    Args:
        x: [..., C].
        branch: layers from C to C channels.
    """
    *layers, last = branch
    if not isinstance(last, PackedLinear) or last.relu or not all(map(is_plain, (branch, *branch))):
        whole: Tensor = branch(x)
        return x + whole
    hidden = x
    for layer in layers:
        hidden = layer(hidden)
    return last.forward(hidden, x)
