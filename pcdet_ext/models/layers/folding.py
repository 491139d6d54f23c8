"""A copy of a model for inference: batch norm folded into the layers before it, 3x3 convolutions of maps faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.enlarging import EnlargingConv2d, is_enlarging, is_plain
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.models.layers.packed_linear import PackedLinear, is_packable
from pcdet_ext.models.layers.sparse_conv import SparseConv3d
from pcdet_ext.models.layers.winograd import WinogradConv2d, is_plain_conv

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
OUTPUTS_FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d, SparseConv3d)  # their weight begins with the output channels

M = TypeVar("M", bound=nn.Module)


def folded(model: M) -> M:
    """A copy of a model in evaluation mode, with fewer and faster layers, for inference.

    It lacks the batch norms that follow a convolution or a linear layer, and those of rows before a linear layer.
    Such a norm only scales and shifts what it takes, so its factors go into the layer's weight and its shift into the
    bias. What follows what is read from `nn.Sequential`s, from the pairs of names in the attribute `normed` of other
    modules and from their method `norms_before_linear`. A norm stays where it or its layer is registered in several
    places, has forward hooks, or computes its parameters from others (`torch.nn.utils.parametrizations`,
    `spectral_norm`). Plain 3x3 convolutions become `WinogradConv2d`, transposed ones whose kernel is as long as their
    stride `EnlargingConv2d`, linear layers `PackedLinear`; these and sparse convolutions take the ReLU behind them
    along. Other norms of maps become `ScaleAndShift`, and ReLUs behind other linear layers and transposed convolutions
    work in place. Weights of 2-D convolutions lie in the channels-last layout, which maps of pillars have.
    The copy gives the same values up to rounding. It cannot be trained on, and its state dict has other keys.
    """
    copy = deepcopy(model).eval().requires_grad_(False)
    pairs = [pair for module in copy.modules() for pair in _pairs(module)]
    uses = Counter(id(part) for _, layer, _, norm in pairs for part in (layer, norm))
    places = Counter(id(part) for module in copy.modules() for part in module._modules.values())
    for owner, layer, name, norm in pairs:
        # a layer that has two norms in turn keeps them, and one that is also used elsewhere, maybe without a norm
        if all(uses[id(part)] == places[id(part)] == 1 and is_plain(part) for part in (layer, norm)):
            _fold(layer, norm)
            setattr(owner, name, nn.Identity())
    _fold_into_following(copy)
    _speed_up(copy)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it
    return copy


def _fold_into_following(model: nn.Module) -> None:
    """Fold norms of rows into the linear layers behind them, where `_norms_before_linear` finds some."""
    places = Counter(id(part) for module in model.modules() for part in module._modules.values())
    for owner, name, linear in [found for module in model.modules() for found in _norms_before_linear(module)]:
        norm = getattr(owner, name)
        # other batch norms also take [N, C, L], whose last dimension a linear layer reads
        if not isinstance(norm, SparseBatchNorm) or type(linear) is not nn.Linear or norm.running_mean is None:
            continue
        if all(places[id(part)] == 1 and is_plain(part) for part in (norm, linear)):
            _fold_before(norm, linear)
            setattr(owner, name, nn.Identity())


def _norms_before_linear(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Layers that alone read what one before them, maybe a norm, gives: (its module, its name, the layer)."""
    if isinstance(module, nn.Sequential):
        for name, following in pairwise(list(module._modules)):
            yield module, name, getattr(module, following)
    elif hasattr(module, "norms_before_linear"):
        yield from cast(Any, module).norms_before_linear()


def _fold_before(norm: SparseBatchNorm, linear: nn.Linear) -> None:
    """Let a linear layer give what it makes of a norm's output."""
    (scale, shift), weight = scale_and_shift(norm), linear.weight.double()
    bias = weight @ shift if linear.bias is None else weight @ shift + linear.bias.double()
    linear.weight, linear.bias = (
        nn.Parameter(values.to(linear.weight.dtype), requires_grad=False) for values in (weight * scale, bias)
    )


def _speed_up(model: nn.Module) -> None:
    """Replace layers that nobody observes by faster ones.

    Plain 3x3 convolutions become `WinogradConv2d`, transposed ones whose kernel is as long as their stride
    `EnlargingConv2d`, linear ones `PackedLinear`; where ReLU follows one, or a sparse convolution, it takes that along.
    ReLU behind another transposed convolution or linear layer changes its output, which nobody else has. Other
    transposed convolutions of one cell become plain ones, whose kernels are faster. Norms of maps become
    `ScaleAndShift`.
    """
    places = Counter(id(part) for module in model.modules() for part in module._modules.values())
    for owner in list(model.modules()):
        for name, layer in list(owner._modules.items()):
            if layer is None or not is_plain(layer) or places[id(layer)] != 1:
                continue
            if type(layer) is nn.BatchNorm2d and layer.running_mean is not None:
                setattr(owner, name, ScaleAndShift(layer))
                continue
            behind = _relu_behind(owner, name)
            if not _take_relu(owner, name, layer, relu=behind is not None):
                if behind is not None and type(layer) in (nn.ConvTranspose2d, nn.Linear):
                    getattr(owner, behind).inplace = True
                if _transposes_cells(layer):
                    setattr(owner, name, _of_cells(cast(nn.ConvTranspose2d, layer)))
            elif behind is not None:
                setattr(owner, behind, nn.Identity())


def _take_relu(owner: nn.Module, name: str, layer: nn.Module, relu: bool) -> bool:
    """Replace or change a layer of a kind that takes ReLU along. Returns whether it is of such a kind."""
    if is_plain_conv(layer):
        setattr(owner, name, WinogradConv2d(cast(nn.Conv2d, layer), relu))
    elif is_enlarging(layer):
        setattr(owner, name, EnlargingConv2d(cast(nn.ConvTranspose2d, layer), relu))
    elif is_packable(layer):
        setattr(owner, name, PackedLinear(cast(nn.Linear, layer), relu))
    elif isinstance(layer, SparseConv3d):
        layer.relu = relu
    else:
        return False
    return True


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
            return following if is_plain(layer) else None
        if type(layer) is not nn.Identity or not is_plain(layer):
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
