"""Benchmarks of the scans inside Mamba and RWKV, on sequences as LION makes them of 100 000 voxels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pcdet_ext.benchmark.registry import Contest, Workload, benchmark
from pcdet_ext.ops import causal_conv1d, selective_scan, wkv
from pcdet_ext.ops.causal_conv1d import causal_conv1d_reference
from pcdet_ext.ops.selective_scan import selective_scan_reference
from pcdet_ext.ops.wkv import wkv_reference

GROUPS = {"groups of 4096": (25, 4096), "groups of 256": (391, 256)}  # the first and the last stage of LION
CHANNELS = 64
STATE = 16  # numbers that a channel of Mamba remembers
HEADS = 2  # of RWKV


@benchmark("selective_scan", per_frame=False)
def mamba_scans(load: Workload) -> Iterator[Contest]:
    """Mamba's scan over twice the channels, with gate and step sizes, in the layout of the linear layers before it."""
    for name, (batch, length) in GROUPS.items():
        generator, inner = load.generator(), 2 * CHANNELS

        def series(rows: int, batch=batch, length=length, generator=generator) -> Tensor:
            return torch.randn(batch, length, rows, generator=generator).to(load.device).mT

        rates = -torch.arange(1.0, STATE + 1, device=load.device).repeat(inner, 1)
        bias = torch.full((inner,), -4.0, device=load.device)
        ones = torch.ones(inner, device=load.device)
        inputs = [series(inner), series(inner), rates, series(STATE), series(STATE), ones, series(inner), bias]
        yield from _contests(name, selective_scan, selective_scan_reference, inputs, (True,), batch * length)


@benchmark("causal_conv1d", per_frame=False)
def convolutions(load: Workload) -> Iterator[Contest]:
    """The convolution before Mamba's scan: width 4, then SiLU."""
    for name, (batch, length) in GROUPS.items():
        generator, inner = load.generator(), 2 * CHANNELS
        x = torch.randn(batch, length, inner, generator=generator).to(load.device).mT
        weight = torch.randn(inner, 4, generator=generator).to(load.device)
        inputs = [x, weight, torch.zeros(inner, device=load.device)]
        yield from _contests(name, causal_conv1d, causal_conv1d_reference, inputs, ("silu",), batch * length)


@benchmark("wkv", per_frame=False)
def rwkv_scans(load: Workload) -> Iterator[Contest]:
    """One direction of RWKV's scan, with the bonus of a step for itself."""
    for name, (batch, length) in GROUPS.items():
        generator, shape = load.generator(), (batch, length, HEADS, CHANNELS // HEADS)
        r, k, v, w = (torch.randn(shape, generator=generator).to(load.device) for _ in range(4))
        u = torch.randn(shape[2:], generator=generator).to(load.device)
        yield from _contests(name, wkv, wkv_reference, [r, k, v, w - 2, u], (), batch * length)


def _contests(
    name: str,
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    options: tuple,
    voxels: int,
) -> Iterator[Contest]:
    """Forward alone, and with all gradients of a quarter of the sequences, for which the reference keeps gigabytes."""
    size = sum(t.nbytes for t in inputs) + inputs[0].nbytes
    yield Contest(
        f"forward, {name}",
        lambda: op(*inputs, *options),
        lambda: reference(*inputs, *options),
        agrees=_near,
        work={"voxels": voxels},
        bytes=size,
    )
    quarter = len(inputs[0]) // 4
    few = [t[:quarter] if t.ndim > 2 else t for t in inputs]
    yield Contest(
        f"with gradient, {name}",
        lambda: _gradient(op, few, options),
        lambda: _gradient(reference, few, options),
        agrees=_all_near,
        work={"voxels": voxels * quarter // len(inputs[0])},
        bytes=3 * size * quarter // len(inputs[0]),
    )


def _gradient(op: Callable[..., Tensor], inputs: Sequence[Tensor], options: tuple) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = op(*leaves, *options)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def _near(ours: Tensor, theirs: Tensor) -> bool:
    """To a thousandth of the largest number: sums of thousands of terms, in another order."""
    return bool((ours - theirs).abs().max() <= 1e-3 * theirs.abs().max())


def _all_near(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(map(_near, ours, theirs))
