"""Benchmarks of the scans inside Mamba, RWKV and RetNet, on sequences as LION makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.benchmark.peers import fla_retention, fla_wkv, mamba_conv, mamba_scan
from pcdet_ext.benchmark.registry import Contest, Workload, benchmark
from pcdet_ext.ops import causal_conv1d, selective_scan, wkv
from pcdet_ext.ops.causal_conv1d import causal_conv1d_reference
from pcdet_ext.ops.retention import retention, retention_reference
from pcdet_ext.ops.selective_scan import selective_scan_reference
from pcdet_ext.ops.wkv import wkv_reference

LENGTHS = (4096, 256)  # of a group, in the first and the last stage of LION
CHANNELS = 64
STATE = 16  # numbers that a channel of Mamba remembers
HEADS = 2  # of RWKV and RetNet
REFERENCE_LIMIT = 200_000  # voxels; above, references take minutes, and that of Mamba's gradient tens of gigabytes
Op = Callable[..., Tensor]


def _groups(load: Workload) -> Iterator[tuple[str, int, int]]:
    """Name, number and length of the groups that hold the load's voxels."""
    voxels = load.voxels or len(load.points)
    for most in LENGTHS:
        length = min(most, voxels)
        yield f"groups of {most}", -(-voxels // length), length


@benchmark("selective_scan")
def mamba_scans(load: Workload) -> Iterator[Contest]:
    """Mamba's scan over twice the channels, with gate and step sizes, in the layout of the linear layers before it."""
    for name, batch, length in _groups(load):
        inner = 2 * CHANNELS
        series = partial(_series, load, load.generator(), batch, length)
        rates = -torch.arange(1.0, STATE + 1, device=load.device).repeat(inner, 1)
        bias = torch.full((inner,), -4.0, device=load.device)
        ones = torch.ones(inner, device=load.device)
        inputs = [series(inner), series(inner), rates, series(STATE), series(STATE), ones, series(inner), bias]
        peer = {"mamba-ssm": mamba_scan()}
        yield from _contests(name, selective_scan, selective_scan_reference, peer, inputs, (True,), batch * length)


def _series(load: Workload, generator: torch.Generator, batch: int, length: int, rows: int) -> Tensor:
    """Random numbers [batch, rows, length] in the layout that a linear layer leaves."""
    return torch.randn(batch, length, rows, generator=generator).to(load.device).mT


@benchmark("causal_conv1d")
def convolutions(load: Workload) -> Iterator[Contest]:
    """The convolution before Mamba's scan: width 4, then SiLU."""
    for name, batch, length in _groups(load):
        generator, inner = load.generator(), 2 * CHANNELS
        x = torch.randn(batch, length, inner, generator=generator).to(load.device).mT
        weight = torch.randn(inner, 4, generator=generator).to(load.device)
        inputs = [x, weight, torch.zeros(inner, device=load.device)]
        peer = {"causal-conv1d": mamba_conv()}
        yield from _contests(name, causal_conv1d, causal_conv1d_reference, peer, inputs, ("silu",), batch * length)


@benchmark("wkv")
def rwkv_scans(load: Workload) -> Iterator[Contest]:
    """One direction of RWKV's scan, with the bonus of a step for itself."""
    for name, batch, length in _groups(load):
        generator, shape = load.generator(), (batch, length, HEADS, CHANNELS // HEADS)
        r, k, v, w = (torch.randn(shape, generator=generator).to(load.device) for _ in range(4))
        u = torch.randn(shape[2:], generator=generator).to(load.device)
        peer = {"flash-linear-attention": fla_wkv()}
        yield from _contests(name, wkv, wkv_reference, peer, [r, k, v, w - 2, u], (), batch * length)


@benchmark("retention")
def retentions(load: Workload) -> Iterator[Contest]:
    """One direction of RetNet's retention in chunks, with the published decays."""
    for name, batch, length in _groups(load):
        generator, shape = load.generator(), (batch, length, HEADS, CHANNELS // HEADS)
        q, k, v = (torch.randn(shape, generator=generator).to(load.device) for _ in range(3))
        decay = 1 - 2.0 ** (-5 - torch.arange(HEADS, device=load.device))
        peer = {"flash-linear-attention": fla_retention()}
        yield from _contests(name, retention, retention_reference, peer, [q, k, v], (decay,), batch * length)


def _contests(
    name: str,
    op: Op,
    reference: Op,
    peers: dict[str, Op | None],
    inputs: Sequence[Tensor],
    options: tuple[Any, ...],
    voxels: int,
) -> Iterator[Contest]:
    """Forward alone, and with all gradients of a quarter of the sequences, for which the reference keeps gigabytes.

    Args:
        name: what the groups are.
        op: our operator.
        reference: the same in PyTorch.
        peers: other libraries' operators, which take part on CUDA where they are installed.
        inputs: tensors with gradients.
        options: what else is given to all of them.
        voxels: rows of the inputs.
    """
    here = {n: peer for n, peer in peers.items() if peer is not None and inputs[0].is_cuda}
    size = sum(t.nbytes for t in inputs) + inputs[0].nbytes
    yield Contest(
        f"forward, {name}",
        lambda: op(*inputs, *options),
        lambda: reference(*inputs, *options),
        {n: partial(peer, *inputs, *options) for n, peer in here.items()},
        agrees=_near,
        work={"voxels": voxels},
        bytes=size,
        reference_limit=REFERENCE_LIMIT,
    )
    quarter = max(len(inputs[0]) // 4, 1)
    few = [t[:quarter] if t.ndim > 2 else t for t in inputs]
    yield Contest(
        f"with gradient, {name}",
        lambda: _gradient(op, few, options),
        lambda: _gradient(reference, few, options),
        {n: partial(_gradient, peer, few, options) for n, peer in here.items()},
        agrees=_all_near,
        work={"voxels": voxels * quarter // len(inputs[0])},
        bytes=3 * size * quarter // len(inputs[0]),
        reference_limit=REFERENCE_LIMIT // 4,
    )


def _gradient(op: Op, inputs: Sequence[Tensor], options: tuple[Any, ...]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = op(*leaves, *options)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def _near(ours: Tensor, theirs: Tensor) -> bool:
    """To a thousandth of the largest number: sums of thousands of terms, in another order."""
    return bool((ours - theirs).abs().max() <= 1e-3 * theirs.abs().max())


def _all_near(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(map(_near, ours, theirs))
