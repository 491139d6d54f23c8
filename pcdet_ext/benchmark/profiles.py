"""Which operations take the time of a call: kernels on CUDA, operators of PyTorch on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from pcdet_ext.benchmark.timing import synchronize


@dataclass(frozen=True)
class Operation:
    """An operation of a profile: a kernel's or operator's name, how often it ran, and the seconds of all its runs.

    On the CPU the seconds are without those of the operators that it calls.
    """

    name: str
    calls: int
    seconds: float

    def line(self) -> str:
        """What to print."""
        return f"    {1000 * self.seconds:9.3f} ms {self.calls:5d} calls  {self.name}"


def longest_operations(call: Callable[[], object], device: torch.device, count: int) -> list[Operation]:
    """The operations of a call that take the most time, the longest first.

    Args:
        call: what is measured.
        device: where it computes.
        count: how many operations.
    """
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as recorded:
        call()
        synchronize(device)
    found = [
        Operation(
            event.key,
            event.count,
            1e-6 * (event.self_device_time_total if on_cuda else event.self_cpu_time_total),
        )
        for event in recorded.key_averages()
        if event.device_type.name == device.type.upper()
    ]
    return sorted(found, key=lambda operation: -operation.seconds)[:count]
