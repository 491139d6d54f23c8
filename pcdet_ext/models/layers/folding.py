"""A copy of a model for inference: batch norm folded into the layers before it, 3x3 convolutions of maps faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pcdet_ext.models.layers.sparse_conv import SparseConv3d
from pcdet_ext.models.layers.winograd import WinogradConv2d, is_plain_conv

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
OUTPUTS_FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d, SparseConv3d)  # their weight begins with the output channels

M = TypeVar("M", bound=nn.Module)


def folded(model: M) -> M:
    """A copy of a model in evaluation mode, with fewer and faster layers, for inference.

    It lacks the batch norms that follow a convolution or a linear layer.
    Such a norm only scales and shifts what the layer gives, so its factors go into the layer's weight and its shift
    into the bias. What follows what is read from `nn.Sequential`s, and from the pairs of names in the attribute
    `normed` of other modules. A norm stays where it or its layer is registered in several places, has forward hooks, or
    computes its parameters from others (`torch.nn.utils.parametrizations`, `spectral_norm`). Plain 3x3 convolutions
    become `WinogradConv2d`, which takes the ReLU behind it along; transposed ones of a single cell become plain ones.
    Other norms of maps become `ScaleAndShift`, and ReLUs behind transposed convolutions work in place.
    Weights of 2-D convolutions lie in the channels-last
    layout, which maps of pillars have.
    The copy gives the same values up to rounding. It cannot be trained on, and its state dict has other keys.
    """
    copy = deepcopy(model).eval().requires_grad_(False)
    pairs = [pair for module in copy.modules() for pair in _pairs(module)]
    uses = Counter(id(part) for _, layer, _, norm in pairs for part in (layer, norm))
    places = Counter(id(part) for module in copy.modules() for part in module._modules.values())
    for owner, layer, name, norm in pairs:
        # a layer that has two norms in turn keeps them, and one that is also used elsewhere, maybe without a norm
        if all(uses[id(part)] == places[id(part)] == 1 and _is_plain(part) for part in (layer, norm)):
            _fold(layer, norm)
            setattr(owner, name, nn.Identity())
    _speed_up(copy)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it
    return copy


def _speed_up(model: nn.Module) -> None:
    """Replace layers that nobody observes by faster ones.

    A transposed convolution of one cell becomes a plain one, whose kernels are faster. Plain 3x3 convolutions become
    `WinogradConv2d`, and where ReLU follows one, it takes that along. ReLU behind a transposed convolution changes its
    output, which nobody else has. Norms of maps become `ScaleAndShift`.
    """
    places = Counter(id(part) for module in model.modules() for part in module._modules.values())
    for owner in list(model.modules()):
        for name, layer in list(owner._modules.items()):
            if layer is None or not _is_plain(layer) or places[id(layer)] != 1:
                continue
            if type(layer) is nn.BatchNorm2d and layer.running_mean is not None:
                setattr(owner, name, ScaleAndShift(layer))
                continue
            above = _relu_behind(owner, name) if type(layer) is nn.ConvTranspose2d else None
            if above is not None:
                getattr(owner, above).inplace = True
            if _transposes_cells(layer):
                setattr(owner, name, _of_cells(cast(nn.ConvTranspose2d, layer)))
            if not is_plain_conv(layer):
                continue
            behind = _relu_behind(owner, name)
            setattr(owner, name, WinogradConv2d(cast(nn.Conv2d, layer), relu=behind is not None))
            if behind is not None:
                setattr(owner, behind, nn.Identity())


class ScaleAndShift(nn.Module):
    """What a batch norm in evaluation mode does to maps [B, C, Y, X], in one step: torch's is slow on channels-last."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        kind = norm.running_var.dtype if norm.running_var is not None else torch.float32
        for name, values in zip(("scale", "shift"), scale_and_shift(norm), strict=True):
            self.register_buffer(name, values.to(kind)[:, None, None])
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, Y, X] to the same shape and type."""
        kind = torch.promote_types(x.dtype, self.scale.dtype)
        scale, shift = (t.to(kind).expand_as(x) for t in (self.scale, self.shift))  # gives the result the layout of x
        return torch.addcmul(shift, x.to(kind), scale).to(x.dtype)


def _transposes_cells(layer: nn.Module) -> bool:
    """Whether a transposed convolution works cell by cell."""
    if type(layer) is not nn.ConvTranspose2d or layer.groups != 1:
        return False
    return layer.kernel_size == layer.stride == (1, 1) and layer.padding == layer.output_padding == (0, 0)


def _of_cells(layer: nn.ConvTranspose2d) -> nn.Conv2d:
    """The 1x1 convolution that a transposed one of one cell is."""
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None, device="meta")
    conv.weight = nn.Parameter(layer.weight.detach().transpose(0, 1).contiguous(), requires_grad=False)
    conv.bias = layer.bias
    return conv.train(layer.training)


def _relu_behind(owner: nn.Module, name: str) -> str | None:
    """The name of the ReLU that takes, in an `nn.Sequential`, the output of a layer, through nothing but identities."""
    names = list(owner._modules) if isinstance(owner, nn.Sequential) else []
    for following in names[names.index(name) + 1 :] if names else []:
        layer = getattr(owner, following)
        if isinstance(layer, nn.ReLU):
            return following if _is_plain(layer) else None
        if type(layer) is not nn.Identity or not _is_plain(layer):
            return None
    return None


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """What a batch norm in evaluation mode multiplies its channels by and then adds to them, in float64, both [C]."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module, str, nn.Module]]:
    """Layers in a module whose output goes to a batch norm: (module, layer, name of the norm, norm)."""
    names = list(module._modules) if isinstance(module, nn.Sequential) else []
    for first, second in [*pairwise(names), *getattr(module, "normed", ())]:
        layer, norm = getattr(module, first), getattr(module, second)
        if _takes_norm(layer) and isinstance(norm, BATCH_NORMS) and norm.running_mean is not None:
            yield module, layer, second, norm


def _is_plain(part: nn.Module) -> bool:
    """Whether nobody sees what goes in and out of a module, and its parameters are its own.

    The older weight and spectral norms of torch compute parameters in a hook before the module runs.
    """
    return not (part._forward_hooks or part._forward_pre_hooks or is_parametrized(part))


def _takes_norm(layer: nn.Module) -> bool:
    return isinstance(layer, OUTPUTS_FIRST) or (isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1)


def _fold(layer: Any, norm: nn.Module) -> None:
    """Let a layer give what the norm behind it makes of its output."""
    scale, shift = scale_and_shift(norm)
    weight = layer.weight
    shape = [1] * weight.dim()
    shape[0 if isinstance(layer, OUTPUTS_FIRST) else 1] = -1
    bias = shift if layer.bias is None else layer.bias.double() * scale + shift
    layer.weight = nn.Parameter((weight.double() * scale.view(shape)).to(weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
