"""Linear layers of rows for inference, with what follows them in one pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import Int32, has_kernels, kernel_kind, launch
from pcdet_ext.ops._operator import needs_derivatives

LANES = 16  # output channels that the kernel takes together
WIDE_ENOUGH = ("AVX2", "AVX512")  # processors on which the kernel is faster than the libraries that torch brings


def takes_packed_linear(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether `packed_linear` has a kernel for rows [..., C] and the weight [D, C] of a linear layer.

    There is one, without derivatives (in these or in `others`, on which the result depends too), for float32 on x86
    processors with AVX2 where D is a multiple of 16.
    """
    if needs_derivatives(x, weight, *others):
        return False
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or len(weight) % LANES or not weight.numel():
        return False
    if kernel_kind(x.device) != "cpu" or not has_kernels(x):
        return False
    return torch.backends.cpu.get_cpu_capability() in WIDE_ENOUGH


@typed
def linear_panels(weight: Tensor) -> Tensor:
    """The weight [D, C] of a linear layer as the kernel reads it, [D / 16, C * 16].

    Raises ValueError where D is no multiple of 16.
    """
    if weight.ndim != 2 or len(weight) % LANES:
        raise ValueError(f"weight must be [D, C] with a multiple of {LANES} as D, got {list(weight.shape)}")
    return weight.detach().unflatten(0, (-1, LANES)).transpose(1, 2).flatten(1).contiguous()


@typed
def packed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    panels: Tensor,
    addend: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """linear(x, weight, bias) + addend, and ReLU where wanted; without gradients.

    What `takes_packed_linear` refuses are plain operations. Autocast has no effect.

    Args:
        x: [..., C].
        weight: [D, C], of the same type.
        bias: [D], or None for zeros.
        panels: `linear_panels(weight)`.
        addend: [..., D], added before ReLU; None for zeros.
        relu: whether negative values become 0.

    Returns:
        [..., D].

    Raises:
        ValueError: arguments do not fit each other.
    """
    _check(x, weight, bias, panels, addend)
    if not takes_packed_linear(x, weight, bias, addend):
        with torch.autocast(x.device.type, enabled=False):
            return packed_linear_reference(x, weight, bias, addend, relu)
    bias, addend = (None if t is None else t.contiguous() for t in (bias, addend))
    return _packed_linear(x.contiguous(), panels.contiguous(), bias, addend, relu)


def packed_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None = None, relu: bool = False
) -> Tensor:
    """The definition on any device. Arguments as in `packed_linear`, which also takes the weight in panels."""
    out = linear(x, weight, bias)
    out = out if addend is None else out + addend
    return torch.relu(out) if relu else out


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, panels: Tensor, addend: Tensor | None) -> None:
    if not x.ndim or weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"x [..., C] and weight [D, C] must have the same C, got {list(x.shape)} and {list(weight.shape)}"
        )
    if x.dtype != weight.dtype:
        raise ValueError(f"x and weight must be of one type, got {x.dtype} and {weight.dtype}")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(f"bias must be {weight.dtype} [{len(weight)}], got {bias.dtype} {list(bias.shape)}")
    laid_out = (len(weight) // LANES, weight.shape[1] * LANES)
    if panels.shape != laid_out or panels.dtype != weight.dtype:
        raise ValueError(f"panels must be {weight.dtype} {list(laid_out)}, got {panels.dtype} {list(panels.shape)}")
    if len({t.device for t in (x, weight, bias, panels, addend) if t is not None}) != 1:
        raise ValueError("x, weight, bias, panels and addend must be on one device")
    shape = (*x.shape[:-1], len(weight))
    if addend is not None and (addend.shape != shape or addend.dtype != x.dtype):
        raise ValueError(f"addend must be {x.dtype} {list(shape)}, got {addend.dtype} {list(addend.shape)}")


@torch.library.custom_op("pcdet_ext::packed_linear", mutates_args=())
def _packed_linear(x: Tensor, panels: Tensor, bias: Tensor | None, addend: Tensor | None, relu: bool) -> Tensor:
    depth, channels, f32 = x.shape[-1], len(panels) * LANES, torch.float32
    out = x.new_empty(*x.shape[:-1], channels)
    rows = x.numel() // depth
    given = (x, f32, rows * depth), (panels, f32, channels * depth), (bias, f32, channels)
    sizes = rows, depth, channels, Int32(relu)
    launch("packed_linear", x.device, *given, (addend, f32, rows * channels), *sizes, (out, f32, rows * channels))
    return out


@_packed_linear.register_fake
def _(x: Tensor, panels: Tensor, bias: Tensor | None, addend: Tensor | None, relu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(panels) * LANES)
