"""3x3 convolutions of maps as inference computes them: by Winograd's filtering, with what follows them in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.laid_out import keep_laid_out
from pcdet_ext.ops.winograd_conv import (
    LANES,
    takes_winograd,
    winograd_conv2d,
    winograd_conv2d_reference,
    winograd_weight,
)

PLAIN = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")  # kernel, stride, padding, dilation, groups, what pads


class WinogradConv2d(nn.Conv2d):
    """A plain 3x3 convolution with ReLU behind it where `relu` is True, for inference.

    Its weight must not change, but by `load_state_dict`: what the kernel reads is computed from it once. See
    `winograd_conv2d` for when a kernel is used and what it saves.
    """

    at_points: Tensor

    def __init__(self, conv: nn.Conv2d, relu: bool = False) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, device="meta")
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        keep_laid_out(self, "at_points", winograd_weight)
        self.relu = relu
        self.train(conv.training)

    def forward(self, x: Tensor, addend: Tensor | None = None, relu: bool = False) -> Tensor:
        """The convolution of a map, by Winograd's filtering where that is faster.

        Args:
            x: [B, in_channels, Y, X].
            addend: [B, out_channels, Y, X], added to the result.
            relu: whether ReLU comes last; it does too where the layer was made with it.

        Returns:
            [B, out_channels, Y, X].
        """
        assert self.bias is not None
        relu = relu or self.relu
        if takes_winograd(x, self.weight, self.bias, addend):
            return winograd_conv2d(x, self.weight, self.bias, self.at_points, addend, relu)
        return winograd_conv2d_reference(x, self.weight, self.bias, addend, relu)  # autocast works as in any layer


def is_plain_conv(layer: nn.Module) -> bool:
    """Whether `WinogradConv2d` can take the place of a layer."""
    if type(layer) is not nn.Conv2d or any(n % LANES for n in (layer.in_channels, layer.out_channels)):
        return False
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return shape == PLAIN and layer.weight.dtype == torch.float32


def normed_relu(conv: nn.Module, norm: nn.Module, x: Tensor, addend: Tensor | None = None) -> Tensor:
    """relu(norm(conv(x)) + addend), in one pass where inference has put the norm into the convolution.

    Args:
        conv: the convolution.
        norm: its norm, or an identity.
        x: [B, C, Y, X].
        addend: of the shape of the result; None for none.
    """
    if isinstance(conv, WinogradConv2d) and isinstance(norm, nn.Identity):
        return conv(x, addend, relu=True)
    y: Tensor = norm(conv(x))
    return torch.relu(y if addend is None else y + addend)
