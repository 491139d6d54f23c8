"""How fast this machine copies memory: what an operation that only moves numbers cannot beat."""

from __future__ import annotations

import time
from statistics import median

import torch

from pcdet_ext.benchmark.timing import synchronize

SIZE = {"cpu": 1 << 28, "cuda": 1 << 30}  # bytes, beyond all caches


def copy_bandwidth(device: torch.device, size: int | None = None, rounds: int = 9) -> float:
    """Bytes per second that `Tensor.copy_` reads and writes together, the median of several rounds.

    Args:
        device: where the two tensors are.
        size: bytes of each of them, None for more than all caches hold.
        rounds: how often to copy.
    """
    size = SIZE.get(device.type, SIZE["cpu"]) if size is None else size
    source = torch.zeros(size // 4, device=device)
    target = torch.zeros_like(source)  # written once, so that its pages are there
    seconds = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / median(seconds)
