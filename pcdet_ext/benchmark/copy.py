"""How fast this machine copies memory: what an operation that only moves numbers cannot beat."""

from __future__ import annotations

import time
from statistics import median

import torch

from pcdet_ext.benchmark.timing import synchronize

SIZE = {"cpu": 1 << 28, "cuda": 1 << 30}  # bytes, beyond all caches


def copy_bandwidth(device: torch.device, size: int | None = None, rounds: int = 9) -> float:
    """Bytes a second that `Tensor.copy_` reads and writes together on the device, the median of `rounds`.

    size: bytes of each of the two tensors.
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
