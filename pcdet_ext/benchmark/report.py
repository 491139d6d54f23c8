"""Running benchmarks, printing what they gave, and writing it down."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pcdet_ext.benchmark.copy import copy_bandwidth, look_up_seconds
from pcdet_ext.benchmark.frames import SIZES, load_frames
from pcdet_ext.benchmark.memory import peak_memory
from pcdet_ext.benchmark.registry import Benchmark, Contest, Workload, benchmarks
from pcdet_ext.benchmark.timing import OURS, Effort, Timing, measure
from pcdet_ext.engine.info import hardware, native_status, optional_packages, versions
from pcdet_ext.files import atomic_write

FORMAT = 2
LINEAR = 12.0  # times longer at most, for ten times as many voxels, to count as linear


@dataclass(frozen=True)
class Result:
    """One contest as it went on one frame.

    voxels: the size that was asked for, or None; copy: bytes per second that a copy on the device achieves; peak: bytes
    that one call of ours takes at its highest; look_up: seconds of one look-up in a table as large as the contest's;
    these three are None where not measured.
    """

    name: str
    frame: str
    contest: Contest
    timings: dict[str, Timing]
    voxels: int | None = None
    copy: float | None = None
    peak: int | None = None
    look_up: float | None = None

    @property
    def bound(self) -> float | None:
        """Seconds that ours needs at least: its bytes at the speed of a copy, then its look-ups on one core; None
        unless the contest states look-ups and both speeds are measured.
        """
        contest = self.contest
        if contest.bytes is None or contest.look_ups is None or self.copy is None or self.look_up is None:
            return None
        return contest.bytes / self.copy + contest.look_ups.visits * self.look_up

    @property
    def bandwidth(self) -> float | None:
        """Achieved GB/s of ours, where the contest states its bytes."""
        return None if self.contest.bytes is None else self.contest.bytes / self.timings[OURS].median / 1e9

    @property
    def of_copy(self) -> float | None:
        """Achieved bandwidth over that of a copy."""
        return None if self.bandwidth is None or self.copy is None else self.bandwidth * 1e9 / self.copy

    @property
    def gflops(self) -> float | None:
        """Achieved GFLOP/s of ours, where the contest states its operations."""
        return None if self.contest.flops is None else self.contest.flops / self.timings[OURS].median / 1e9

    def ratios(self) -> dict[str, float]:
        """How many times longer each other contender took, of medians."""
        return {n: t.median / self.timings[OURS].median for n, t in self.timings.items() if n != OURS}

    def line(self) -> str:
        """One line for the terminal."""
        parts = [f"{self.name} {self.contest.setting} · {self.frame}: {self.timings[OURS].median * 1e3:.3f} ms"]
        if self.bandwidth is not None:
            share = "" if self.of_copy is None else f" ({self.of_copy:.0%} of copy)"
            parts.append(f"{self.bandwidth:.2f} GB/s{share}")
        if self.bound is not None:
            parts.append(f"{self.timings[OURS].median / self.bound:.2f}x its bound ({self.bound * 1e3:.3f} ms)")
        if self.gflops is not None:
            parts.append(f"{self.gflops:.2f} GFLOP/s")
        if self.peak is not None:
            parts.append(f"peak {self.peak / 1e6:.1f} MB")
        for name, ratio in self.ratios().items():
            doubt = "" if self.timings[name].agrees else " RESULT DIFFERS"
            parts.append(f"{ratio:.2f}x {name} ({self.timings[name].median * 1e3:.3f} ms){doubt}")
        if self.contest.reference_left_out:
            parts.append(f"reference left out above {self.contest.reference_limit}")
        parts += [f"{name} {value:.2f}" for name, value in self.contest.sizes.items()]
        parts += [f"{name} skipped: {reason}" for name, reason in self.contest.missing.items()]
        return ", ".join(parts)

    def record(self) -> dict[str, Any]:
        """The same as built-in types, times in milliseconds."""
        return {
            "name": self.name,
            "setting": self.contest.setting,
            "frame": self.frame,
            "voxels": self.voxels,
            "work": dict(self.contest.work),
            "bytes": self.contest.bytes,
            "gb_per_s": self.bandwidth,
            "of_copy": self.of_copy,
            "bound_ms": None if self.bound is None else self.bound * 1e3,
            "look_ups": None if self.contest.look_ups is None else self.contest.look_ups._asdict(),
            "look_up_ns": None if self.look_up is None else self.look_up * 1e9,
            "gflop_per_s": self.gflops,
            "peak_bytes": self.peak,
            "reference_left_out": self.contest.reference_left_out,
            "sizes": dict(self.contest.sizes),
            "missing": dict(self.contest.missing),
            "timings": {
                name: {
                    "median_ms": t.median * 1e3,
                    "fastest_ms": t.fastest * 1e3,
                    "rounds": t.rounds,
                    "agrees": t.agrees,
                }
                for name, t in self.timings.items()
            },
            "ratios": self.ratios(),
        }


@dataclass(frozen=True)
class Scaling:
    """How many times longer the fastest round of ours took for ten times as many voxels, `few` and then 10 · few."""

    name: str
    setting: str
    few: int
    ratio: float


def scalings(results: Sequence[Result]) -> list[Scaling]:
    """Every pair of results of one contest whose sizes are a factor of ten apart."""
    ours = {(r.name, r.contest.setting, r.voxels): r.timings[OURS] for r in results if r.voxels is not None}
    took = {key: t.fastest for key, t in ours.items()}
    return [
        Scaling(name, setting, voxels, took[name, setting, 10 * voxels] / seconds)
        for (name, setting, voxels), seconds in took.items()
        if (name, setting, 10 * voxels) in took
    ]


def scaling_lines(found: Sequence[Scaling]) -> list[str]:
    """For each size one line: the range of ratios, and who is above `LINEAR`."""
    lines = []
    for few in sorted({s.few for s in found}):
        here = [s for s in found if s.few == few]
        ratios = [s.ratio for s in here]
        above = [f"{s.name} {s.setting} {s.ratio:.1f}x" for s in here if s.ratio > LINEAR]
        lines.append(
            f"time at {10 * few} voxels over that at {few}: {min(ratios):.1f}x to {max(ratios):.1f}x, median "
            f"{median(ratios):.1f}x; above {LINEAR:.0f}x: {', '.join(above) or 'none'}"
        )
    return lines


def run_ops(
    device: str = "cpu",
    paths: Sequence[Path] = (),
    only: Sequence[str] = (),
    json_path: Path | None = None,
    threads: int | None = None,
    voxels: Sequence[int] = SIZES,
    effort: Effort | None = None,
) -> bool:
    """Measure the operations, printing one line for each.

    Args:
        device: where they compute.
        paths: point files or folders, instead of synthetic scans.
        only: names of benchmarks; by default all.
        json_path: where everything is written, once, at the end.
        threads: of torch and the native kernels.
        voxels: sizes of the synthetic scans, of which operations on points get as many points.
        effort: how often each is measured.

    Returns:
        Whether every result agreed with that of its peers.

    Raises:
        ValueError: a benchmark is unknown, or a folder has no frames.
        DataError: a frame is damaged.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch sees no CUDA device")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    if any(n < 1 for n in voxels):
        raise ValueError(f"voxels must be at least 1, got {min(voxels)}")
    effort, wanted, results = effort or Effort(), benchmarks(only), []
    copy = copy_bandwidth(torch.device(device))
    print(f"copy on {device}: {copy / 1e9:.2f} GB/s, read and written", flush=True)
    for result in _measure_all(wanted, device, paths, voxels, effort, copy):
        print(result.line(), flush=True)
        results.append(result)
    for line in scaling_lines(scalings(results)):
        print(line)
    if json_path is not None:
        _write(json_path, device, effort, results, copy)
    return all(t.agrees for result in results for t in result.timings.values())


def _measure_all(
    wanted: list[Benchmark], device: str, paths: Sequence[Path], voxels: Sequence[int], effort: Effort, copy: float
) -> Iterator[Result]:
    for number, (frame, points) in enumerate(load_frames(paths, voxels)):
        size = None if paths else voxels[number]
        workload = Workload(frame, torch.from_numpy(points).to(device), size)
        for entry in wanted:
            if number and not entry.per_frame:
                continue
            for contest in entry.prepare(workload):
                timings, peak = measure(contest, workload.device, effort), peak_memory(contest.ours, workload.device)
                visited = contest.look_ups if device == "cpu" else None
                look_up = None if visited is None else look_up_seconds(visited.table_bytes)
                named, of_size = (frame, size) if entry.per_frame else ("own input", None)
                yield Result(entry.name, named, contest, timings, of_size, copy, peak, look_up)


def _write(path: Path, device: str, effort: Effort, results: list[Result], copy: float) -> None:
    content = {
        "format": FORMAT,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": device,
        "hardware": hardware(),
        "versions": versions() | {name: v for name, v in optional_packages().items() if v},
        "native": native_status(device),
        "effort": asdict(effort),
        "copy_gb_per_s": copy / 1e9,
        "results": [result.record() for result in results],
        "scaling": [asdict(scaling) for scaling in scalings(results)],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
