"""What is measured: each benchmark names our callable, its PyTorch reference, and the peers it is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.benchmark import MODULES
from pcdet_ext.config import suggest


@dataclass(frozen=True)
class Workload:
    """What a benchmark gets. points: float32 [P, 4 or more] (x, y, z, intensity, …) of one frame, on the device."""

    frame: str
    points: Tensor

    @property
    def device(self) -> torch.device:
        """Where to measure."""
        return self.points.device

    def generator(self, seed: int = 0) -> torch.Generator:
        """Random numbers of the CPU, the same for every device."""
        return torch.Generator().manual_seed(seed)


def all_close(ours: Any, theirs: Any) -> bool:
    """Whether two results (tensors, or sequences of them) agree: integers exactly, floats to 1e-4."""
    if not isinstance(ours, Tensor):
        return len(ours) == len(theirs) and all(map(all_close, ours, theirs))
    theirs = torch.as_tensor(theirs, device=ours.device)
    if ours.shape != theirs.shape:
        return False
    if not ours.is_floating_point():
        return torch.equal(ours, theirs.to(ours.dtype))
    return torch.allclose(ours, theirs.to(ours.dtype), rtol=1e-4, atol=1e-4, equal_nan=True)


@dataclass(frozen=True)
class Contest:
    """One thing that is measured, by calling functions without arguments.

    setting: which sizes and options; ours: this library; reference: its PyTorch reference, or None; peers: other
    libraries by name; agrees(ours, theirs): whether two results are the same; work: what there is of it, such as
    {"points": 17000}; bytes: that ours must at least read and write, for the achieved bandwidth.
    """

    setting: str
    ours: Callable[[], Any]
    reference: Callable[[], Any] | None = None
    peers: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    agrees: Callable[[Any, Any], bool] = all_close
    work: Mapping[str, int] = field(default_factory=dict)
    bytes: int | None = None


Prepare = Callable[[Workload], Iterable[Contest]]


@dataclass(frozen=True)
class Benchmark:
    """A named benchmark: `prepare` gives its contests for a workload. per_frame: False measures on one frame only."""

    name: str
    prepare: Prepare
    per_frame: bool


_BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(name: str, per_frame: bool = True) -> Callable[[Prepare], Prepare]:
    """Decorator: this function prepares the contests of the benchmark `name`.

    per_frame: whether the frame matters; False for what makes its own input, which is then measured once.
    """

    def register(prepare: Prepare) -> Prepare:
        if name in _BENCHMARKS:
            raise ValueError(f"two benchmarks are named {name!r}")
        _BENCHMARKS[name] = Benchmark(name, prepare, per_frame)
        return prepare

    return register


def benchmarks(only: Iterable[str] = ()) -> list[Benchmark]:
    """All benchmarks, or those named. Raises ValueError for an unknown name."""
    for module in MODULES:
        import_module(module)
    for name in only:
        if name not in _BENCHMARKS:
            raise ValueError(f"no benchmark is named {name!r}{suggest(name, _BENCHMARKS)}")
    wanted = set(only) or set(_BENCHMARKS)
    return [entry for name, entry in _BENCHMARKS.items() if name in wanted]
