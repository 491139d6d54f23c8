"""Transposed convolutions as inference computes them: with what follows them in one pass, into a part of a map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pcdet_ext.models.layers.laid_out import keep_laid_out
from pcdet_ext.ops.enlarging_conv import (
    LANES,
    enlarging_conv2d,
    enlarging_conv2d_reference,
    enlarging_panels,
    takes_enlarging,
)


class EnlargingConv2d(nn.Module):
    """A transposed convolution whose kernel is as long as its stride, with ReLU where `relu` is True, for inference.

    Its weight must not change, but by `load_state_dict`: what the kernel reads is laid out from it once.
    """

    panels: Tensor

    def __init__(self, conv: nn.ConvTranspose2d, relu: bool = False) -> None:
        super().__init__()
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        keep_laid_out(self, "panels", enlarging_panels)
        self.relu, self.factor, self.out_channels = relu, conv.stride[0], conv.out_channels
        self.train(conv.training)

    def forward(
        self,
        x: Tensor,
        addend: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        out: Tensor | None = None,
        first: int = 0,
    ) -> Tensor:
        """Map [B, C, Y, X] to [B, D, factor * Y, factor * X]. Arguments as in `enlarging_conv2d`."""
        if takes_enlarging(x, self.weight, self.bias, addend, scale, shift):
            weights = self.weight, self.bias, self.panels
            return enlarging_conv2d(x, *weights, addend, scale, shift, self.relu, out, first)
        more = addend, scale, shift, self.relu, out, first
        return enlarging_conv2d_reference(x, self.weight, self.bias, *more)  # autocast works as in any layer


def is_enlarging(layer: nn.Module) -> bool:
    """Whether `EnlargingConv2d` can take the place of a layer."""
    if type(layer) is not nn.ConvTranspose2d or layer.groups != 1 or layer.out_channels % LANES:
        return False
    shape = (layer.padding, layer.output_padding, layer.dilation, layer.weight.dtype)
    square = layer.kernel_size == layer.stride and len(set(layer.stride)) == 1
    return square and shape == ((0, 0), (0, 0), (1, 1), torch.float32)


def only_enlarging(block: nn.Module) -> EnlargingConv2d | None:
    """The `EnlargingConv2d` of an `nn.Sequential` that has only identities behind it; None for others."""
    layers = list(block) if type(block) is nn.Sequential else []
    if not layers or not isinstance(layers[0], EnlargingConv2d):
        return None
    if any(type(layer) is not nn.Identity for layer in layers[1:]):
        return None
    return layers[0] if all(map(is_plain, (block, *layers))) else None


def is_plain(part: nn.Module) -> bool:
    """Whether nobody sees what goes in and out of a module, and its parameters are its own.

    The older weight and spectral norms of torch compute parameters in a hook before the module runs.
    """
    return not (part._forward_hooks or part._forward_pre_hooks or is_parametrized(part))
