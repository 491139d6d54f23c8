"""Transposed convolution whose kernel is as long as its stride, for inference, with what follows it in one pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv_transpose2d

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import Int32, has_kernels, kernel_kind, launch
from pcdet_ext.ops._operator import needs_derivatives

LANES = 16  # output channels that the kernel takes together


def takes_enlarging(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether `enlarging_conv2d` has a kernel for a map [B, C, Y, X] and a weight [C, D, k, k].

    There is one, without derivatives (in these or in `others`, on which the result depends too), for float32 on the
    CPU where D is a multiple of 16.
    """
    if needs_derivatives(x, weight, *others):
        return False
    fits = x.dtype == weight.dtype == torch.float32 and weight.shape[1] % LANES == 0
    return fits and kernel_kind(x.device) == "cpu" and has_kernels(x)


@typed
def enlarging_panels(weight: Tensor) -> Tensor:
    """The weight [C, D, k, k] of a transposed convolution as the kernel reads it, [k * k, D / 16, C * 16].

    Raises ValueError where D is no multiple of 16, or the kernel no square.
    """
    if weight.ndim != 4 or weight.shape[1] % LANES or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight must be [C, D, k, k] with a multiple of {LANES} as D, got {list(weight.shape)}")
    depth, channels, factor, _ = weight.shape
    panels = weight.detach().permute(2, 3, 1, 0).reshape(factor * factor, channels // LANES, LANES, depth)
    return panels.transpose(2, 3).flatten(2).contiguous()


@typed
def enlarging_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    panels: Tensor,
    addend: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    out: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """scale * (relu(conv_transpose2d(x, weight, bias, stride=k)) + addend) + shift, each part only where it is wanted.

    Without gradients. On the CPU a cell that equals one of the four before it, like all that no point reaches, is not
    computed again. What `takes_enlarging` refuses are plain operations. Autocast has no effect.

    Args:
        x: maps [B, C, Y, X].
        weight: [C, D, k, k].
        bias: [D].
        panels: `enlarging_panels(weight)`.
        addend: [B, D, k * Y, k * X], added behind ReLU.
        scale: [D], by which the sum is multiplied, given together with `shift`.
        shift: [D], which is added last.
        relu: whether negative values become 0.
        out: [B, E, k * Y, k * X] in the channels-last layout, of which D channels are written.
        first: the first of these channels.

    Returns:
        `out`, or [B, D, k * Y, k * X], in the channels-last layout where the kernel ran.

    Raises:
        ValueError: arguments do not fit each other.
    """
    factor = _check(x, weight, bias, addend, scale, shift, out, first)
    if not takes_enlarging(x, weight, bias, addend, scale, shift):
        with torch.autocast(x.device.type, enabled=False):
            return enlarging_conv2d_reference(x, weight, bias, addend, scale, shift, relu, out, first)
    rows = x.permute(0, 2, 3, 1).contiguous()
    batch, height, width, _ = rows.shape
    if out is None:
        out = x.new_empty(batch, factor * height, factor * width, len(bias)).permute(0, 3, 1, 2)
    more = None if addend is None else addend.permute(0, 2, 3, 1).contiguous()
    scale, shift = (None if t is None else t.contiguous() for t in (scale, shift))
    weights = panels.contiguous(), bias.contiguous()
    _enlarging_conv(rows, *weights, more, scale, shift, relu, factor, out.permute(0, 2, 3, 1), first)
    return out


def enlarging_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    addend: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    out: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """The definition on any device. Arguments as in `enlarging_conv2d`, which also takes the weights in panels."""
    y = conv_transpose2d(x, weight, bias, stride=weight.shape[2])
    y = torch.relu(y) if relu else y
    y = y if addend is None else y + addend
    y = y if scale is None or shift is None else y * scale[:, None, None] + shift[:, None, None]
    if out is None:
        return y
    out[:, first : first + y.shape[1]] = y
    return out


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    addend: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    out: Tensor | None,
    first: int,
) -> int:
    if x.ndim != 4 or weight.ndim != 4 or len(weight) != x.shape[1] or weight.shape[2] != weight.shape[3]:
        raise ValueError(
            f"x [B, C, Y, X] and weight [C, D, k, k] must have the same C, got {list(x.shape)} and {list(weight.shape)}"
        )
    channels, factor = weight.shape[1:3]
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift must be given together")
    for name, values in (("bias", bias), ("scale", scale), ("shift", shift)):
        if values is not None and values.shape != (channels,):
            raise ValueError(f"{name} must be [{channels}], got {list(values.shape)}")
    size = (len(x), channels, factor * x.shape[2], factor * x.shape[3])
    if addend is not None and (addend.shape != size or addend.dtype != x.dtype):
        raise ValueError(f"addend must be {x.dtype} {list(size)}, got {addend.dtype} {list(addend.shape)}")
    if out is None:
        return factor
    if (len(out), *out.shape[2:]) != (size[0], *size[2:]) or out.dtype != x.dtype or first + channels > out.shape[1]:
        wanted = f"{x.dtype} {[size[0], first + channels, *size[2:]]}, or have more channels"
        raise ValueError(f"out must be {wanted}, got {out.dtype} {list(out.shape)}")
    if not out.permute(0, 2, 3, 1).is_contiguous():
        raise ValueError("out must be in the channels-last layout")
    return factor


@torch.library.custom_op("pcdet_ext::enlarging_conv", mutates_args=("out",))
def _enlarging_conv(
    x: Tensor,
    panels: Tensor,
    bias: Tensor,
    addend: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    factor: int,
    out: Tensor,
    first: int,
) -> None:
    """The kernel, on maps [B, Y, X, C]."""
    depth, channels, f32 = x.shape[3], len(bias), torch.float32
    cells = x.numel() // depth if depth else 0
    more = (addend, f32, cells * factor * factor * channels), (scale, f32, channels), (shift, f32, channels)
    given = (x, f32, x.numel()), (panels, f32, factor * factor * channels * depth), (bias, f32, channels)
    sizes = cells, x.shape[2], depth, channels, factor, out.shape[3], first, Int32(relu)
    launch("enlarging_conv", x.device, *given, *more, *sizes, (out, f32, out.numel()))


@_enlarging_conv.register_fake
def _(
    x: Tensor,
    panels: Tensor,
    bias: Tensor,
    addend: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    factor: int,
    out: Tensor,
    first: int,
) -> None:
    pass
