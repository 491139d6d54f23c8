"""How fast this machine copies memory and visits tables: what an operation that only does that cannot beat."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch

from pcdet_ext.benchmark.timing import synchronize

SIZE = {"cpu": 1 << 28, "cuda": 1 << 30}  # bytes, beyond all caches
LOOK_UPS = 100_000


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


def look_up_seconds(table_bytes: int, rounds: int = 9) -> float:
    """Seconds that one look-up in a table of int32 takes on one core of the CPU, the median of several rounds.

    The places are random and known beforehand (`numpy.take`), so that many look-ups are under way at once: less than
    the latency of the memory, and what a pass over a hash table can reach at best.

    Args:
        table_bytes: size of the table.
        rounds: how often the same places are looked up.
    """
    table = np.zeros(max(table_bytes // 4, 1), np.int32)
    places = np.random.default_rng(0).integers(0, len(table), LOOK_UPS)
    found = np.empty(LOOK_UPS, np.int32)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        np.take(table, places, out=found, mode="clip")
        seconds.append(time.perf_counter() - start)
    return median(seconds) / LOOK_UPS
