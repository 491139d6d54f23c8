"""What is measured: each benchmark names our callable, its PyTorch reference, and the peers it is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pcdet_ext.benchmark import MODULES
from pcdet_ext.config import suggest


@dataclass(frozen=True)
class Workload:
    """What a benchmark measures on.

    Args:
        frame: its name.
        points: float32 [P, 4 or more] (x, y, z, intensity, …) of one frame, on the device.
        voxels: how many an operation on voxels is measured with, None for those that the points lie in.
    """

    frame: str
    points: Tensor
    voxels: int | None = None

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


class LookUps(NamedTuple):
    """Visits of entries of a table in an order that is not that of the table, and the bytes of the table."""

    visits: int
    table_bytes: int


@dataclass(frozen=True)
class Contest:
    """One operation that is measured in several implementations, each a function without arguments.

    Args:
        setting: which sizes and options.
        ours: this library.
        reference: its PyTorch reference, or None.
        peers: other libraries by name.
        agrees: agrees(ours, theirs) tells whether two results are the same.
        work: amounts by name, such as {"voxels": 17000}, the size first.
        bytes: what ours must at least read and write, for the achieved bandwidth.
        look_ups: what ours must at least visit of a table in no order, besides those bytes.
        flops: multiplications and additions of ours, where it computes more than it moves.
        reference_limit: the size above which the reference is left out, because it takes minutes or does not fit into
            memory.
        missing: why a peer is not among `peers`, by its name.
        sizes: further results by name, such as {"bits per point": 4.2}.
    """

    setting: str
    ours: Callable[[], Any]
    reference: Callable[[], Any] | None = None
    peers: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    agrees: Callable[[Any, Any], bool] = all_close
    work: Mapping[str, int] = field(default_factory=dict)
    bytes: int | None = None
    look_ups: LookUps | None = None
    flops: int | None = None
    reference_limit: int | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)

    @property
    def reference_left_out(self) -> bool:
        """Whether there is a reference that is too slow or too large at this size."""
        size = next(iter(self.work.values()), 0)
        return self.reference is not None and self.reference_limit is not None and size > self.reference_limit


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
