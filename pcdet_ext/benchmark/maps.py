"""Benchmarks of convolutions of bird's-eye-view maps: Winograd's filtering against torch's convolution (oneDNN)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from pcdet_ext.benchmark.registry import Contest, Workload, benchmark
from pcdet_ext.ops.winograd_conv import winograd_conv2d, winograd_conv2d_reference, winograd_weight

CELLS = 234  # of the map along each axis, Waymo's at half the resolution of pillars of 0.32 m
REACHED = (1.0, 0.3)  # shares of the map: dense, and about as points of one frame reach it


@benchmark("winograd_conv", per_frame=False)
def convolutions(load: Workload) -> Iterator[Contest]:
    """3x3 convolutions with ReLU of maps of 234 x 234 cells, all of which differ, or a square in the middle alone."""
    for channels in (64, 128):
        for share in REACHED:
            x = torch.zeros(1, channels, CELLS, CELLS).to(memory_format=torch.channels_last)
            side = round(CELLS * share**0.5)
            first = (CELLS - side) // 2
            values = torch.randn(1, channels, side, side, generator=load.generator())
            x[:, :, first : first + side, first : first + side] = values
            weight = torch.randn(channels, channels, 3, 3, generator=load.generator(1)) / channels**0.5 / 3
            plain = weight.to(load.device, memory_format=torch.channels_last)
            x, bias = x.to(load.device), torch.zeros(channels, device=load.device)
            yield Contest(
                f"{channels} channels, {share:.0%} of the map",
                partial(winograd_conv2d, x, plain, bias, winograd_weight(plain), None, True),
                partial(winograd_conv2d_reference, x, plain, bias, None, True),
                work={"cells": CELLS * CELLS},
                bytes=2 * x.nbytes,
            )
