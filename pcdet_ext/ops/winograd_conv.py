"""3x3 convolution of bird's-eye-view maps for inference, by Winograd's minimal filtering and without repetitions."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import Int32, has_kernels, kernel_kind, launch
from pcdet_ext.ops._operator import needs_derivatives

LANES = 16  # channels that the kernel takes together
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity


def takes_winograd(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether `winograd_conv2d` has a kernel for a map [B, C, Y, X] and the weight [D, C, 3, 3] of a convolution.

    There is one, without derivatives (in these or in `others`, on which the result depends too), for float32 on the
    CPU where C and D are multiples of 16.
    """
    if needs_derivatives(x, weight, *others):
        return False
    fits = x.dtype == weight.dtype == torch.float32 and weight.shape[2:] == (3, 3) and weight.numel() > 0
    return fits and not any(n % LANES for n in weight.shape[:2]) and kernel_kind(x.device) == "cpu" and has_kernels(x)


@typed
def winograd_weight(weight: Tensor) -> Tensor:
    """The weight of a 3x3 convolution at the points at which Winograd's filtering multiplies.

    Args:
        weight: [D, C, 3, 3], of floating point; D and C are multiples of 16.

    Returns:
        float32 [36, D / 16, C * 16]; a fourth dimension would be laid out anew with those of convolutions.

    Raises:
        ValueError: the weight has another shape.
    """
    if weight.ndim != 4 or weight.shape[2:] != (3, 3) or any(n % LANES for n in weight.shape[:2]):
        raise ValueError(f"weight must be [D, C, 3, 3] with multiples of {LANES} D and C, got {list(weight.shape)}")
    rows = []
    for point in POINTS:
        scale = 1.0
        for other in POINTS:
            scale *= point - other if other != point else 1.0
        rows.append([1 / scale, point / scale, point**2 / scale])
    factors = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64, device=weight.device)
    at_points = torch.einsum("ip,dcpq,jq->ijdc", factors, weight.detach().double(), factors)
    d, c = weight.shape[:2]
    return at_points.reshape(36, d // LANES, LANES, c).transpose(2, 3).float().flatten(2)


@typed
def winograd_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, at_points: Tensor, addend: Tensor | None = None, relu: bool = False
) -> Tensor:
    """conv2d(x, weight, bias, padding=1) + addend, and ReLU where wanted; without gradients.

    On the CPU F(4x4, 3x3) computes tiles of 4x4 cells (Lavin and Gray, CVPR 2016), and tiles whose surroundings are
    those of most of the map, like all that no point reaches, only once. It agrees with a plain convolution up to
    rounding, of about 1e-5 of the values' size; where a value is not finite, no cell of the tiles around it is.
    What `takes_winograd` refuses is a plain convolution. Autocast has no effect.

    Args:
        x: maps [B, C, Y, X].
        weight: [D, C, 3, 3].
        bias: [D].
        at_points: `winograd_weight(weight)`.
        addend: what is added to the result [B, D, Y, X] before ReLU.
        relu: whether negative values become 0.

    Returns:
        [B, D, Y, X], in the channels-last layout where the kernel ran.

    Raises:
        ValueError: arguments do not fit each other.
    """
    _check(x, weight, bias, addend)
    if not takes_winograd(x, weight, bias, addend):
        with torch.autocast(x.device.type, enabled=False):
            return winograd_conv2d_reference(x, weight, bias, addend, relu)
    rows = None if addend is None else addend.permute(0, 2, 3, 1).contiguous()
    x = x.permute(0, 2, 3, 1).contiguous()
    out, _ = _winograd_conv(x, at_points.contiguous(), bias.contiguous(), rows, relu)
    return out.permute(0, 3, 1, 2)


def winograd_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None = None, relu: bool = False
) -> Tensor:
    """The definition on any device. Arguments as in `winograd_conv2d`, which also takes the transformed weights."""
    out = conv2d(x, weight, bias, padding=1)
    out = out if addend is None else out + addend
    return torch.relu(out) if relu else out


def computed_tiles(x: Tensor, at_points: Tensor) -> int:
    """How many tiles of a map [B, C, Y, X] `winograd_conv2d` computes, the others being copies, on the CPU."""
    bias = x.new_zeros(at_points.shape[1] * LANES)
    return int(_winograd_conv(x.permute(0, 2, 3, 1).contiguous(), at_points, bias, None, False)[1])


def _check(x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None) -> None:
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"x [B, C, Y, X] and weight [D, C, 3, 3] must have the same C, got {list(x.shape)} and {list(weight.shape)}"
        )
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{len(weight)}], got {list(bias.shape)}")
    shape = (len(x), len(weight), *x.shape[2:])
    if addend is not None and (addend.shape != shape or addend.dtype != x.dtype):
        raise ValueError(f"addend must be {x.dtype} {list(shape)}, got {addend.dtype} {list(addend.shape)}")


@torch.library.custom_op("pcdet_ext::winograd_conv", mutates_args=())
def _winograd_conv(
    x: Tensor, at_points: Tensor, bias: Tensor, addend: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    """The kernel, on maps [B, Y, X, C]; also the number of computed tiles, int64 []."""
    batch, height, width, depth = x.shape
    channels = at_points.shape[1] * LANES
    out = x.new_empty(batch, height, width, channels)
    computed = ctypes.c_int64()
    f32 = torch.float32
    given = (x, f32, x.numel()), (at_points, f32, 36 * channels * depth), (bias, f32, channels)
    sizes = batch, height, width, depth, channels, Int32(relu)
    more = None if addend is None else addend.contiguous(), f32, out.numel()
    launch("winograd_conv", x.device, *given, more, *sizes, (out, f32, out.numel()), computed)
    return out, torch.tensor(computed.value)


@_winograd_conv.register_fake
def _(x: Tensor, at_points: Tensor, bias: Tensor, addend: Tensor | None, relu: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:3], at_points.shape[1] * LANES), x.new_empty((), dtype=torch.int64, device="cpu")
